"""What launch/evaluate.py does."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from elc_bert.config.reader import load_config
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import POLICY
from elc_bert.data.format.vocabulary import MASK, check_tokenizer, load_tokenizer
from elc_bert.data.sampling.from_config import masking_from_config
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.steps import HeldOut, MicroBatch
from elc_bert.distributed.collectives import agree
from elc_bert.distributed.watchdog.watchdog import Watchdog
from elc_bert.distributed.world import World
from elc_bert.engine.processes import connect
from elc_bert.evaluation.fill_mask import Cloze, fill
from elc_bert.evaluation.held_out import combined, score
from elc_bert.evaluation.minimal_pairs import read_paradigms
from elc_bert.evaluation.pseudo_likelihood import Method
from elc_bert.evaluation.run_pairs import collect, evaluation_key, folder_in_run, score_paradigms
from elc_bert.hub.loading import Loaded
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write
from elc_bert.utils.progress import progress_bar

DEFAULT_LENGTH = 128
DEFAULT_SEED = 42
"""Of the masks, where no run says which."""


def evaluate_pairs(
    watchdog: Watchdog,
    load: Callable[[], Loaded],
    tokenizer: Path | None,
    pairs: Path,
    output: Path | None,
    method: Method,
    limit: int | None,
) -> None:
    """Score minimal pairs on all processes of the launcher; print and save the accuracy. Collective.

    Args:
        load: reads the model.
        tokenizer: its file; the model's own if None.
        pairs: folder of .jsonl files.
        output: folder to write to, which all ranks must see; None for one in the model's run.
        method: see ``pseudo_likelihood``.
        limit: pairs of each file; all if None.

    Raises:
        UserError: on all ranks alike.
    """
    world = connect(watchdog)
    paradigms = agree(world, lambda: read_paradigms(pairs))
    loaded = agree(world, load)
    path = agree(world, lambda: _tokenizer(loaded, tokenizer))
    folder = agree(world, lambda: _output(loaded, output, pairs))
    words = agree(world, lambda: load_tokenizer(path))
    model = loaded.model.to(world.device)
    key = evaluation_key(model, path, method, limit)
    start = time.monotonic()
    with world.watchdog.activity("scoring minimal pairs"):
        score_paradigms(
            model,
            words,
            paradigms[world.rank :: world.size],
            folder,
            key,
            method,
            limit,
            show_progress=world.is_main,
        )
        dist.barrier()
    if not world.is_main:
        return
    results = collect(paradigms, folder, key)
    results.save(folder)
    settings = {"pairs": str(pairs), "method": method, "limit": limit}
    with atomic_write(folder / "settings.json", "w") as file:
        json.dump(settings, file, indent=2)
    seconds = time.monotonic() - start
    print(results.table())
    print(f"{seconds:.0f} s; {folder}: results.json, results.csv, results.png")


def evaluate_loss(
    watchdog: Watchdog,
    load: Callable[[], Loaded],
    tokenizer: Path | None,
    data: Path | None,
    sequence_length: int | None,
    sequences: int | None,
    output: Path | None,
) -> None:
    """Loss, perplexity and accuracy on masked held-out text, on all processes of the launcher. Collective.

    Args:
        load: reads the model.
        tokenizer: its file; the model's own if None.
        data: prefix of the dataset; of a run's model that of the run if None.
        sequence_length: tokens of a sequence; the run's, or 128, if None.
        sequences: how many; those that the run evaluates on, or all, if None.
        output: JSON file for the figures; None to print them only.

    Raises:
        UserError: on all ranks alike.
    """
    world = connect(watchdog)
    agree(world, lambda: _check_folder_of(output))
    loaded = agree(world, load)
    path = agree(world, lambda: _tokenizer(loaded, tokenizer))
    held_out = agree(world, lambda: _held_out(loaded, path, data, sequence_length, sequences, world))
    model = loaded.model.to(world.device)
    with world.watchdog.activity("evaluating"):
        with progress_bar(len(held_out), "batch", title="held-out loss", shown=world.is_main) as bar:
            own = score(model, _counted(held_out, bar))
        parts = [own] * world.size
        dist.all_gather_object(parts, own)
    if not world.is_main:
        return
    total = combined(parts)
    print(
        f"loss        {total.loss:.4f} nats per masked token\nperplexity  {total.perplexity:.2f}\n"
        f"accuracy    {total.accuracy:.2%}\n"
        f"on          {total.predictions:,} masked tokens of {held_out.sequences:,} sequences"
    )
    if output is not None:
        with atomic_write(output, "w") as file:
            json.dump({**asdict(total), "perplexity": total.perplexity}, file, indent=2)


def fill_in(model: ElcBertForMaskedLM, tokenizer: Path, text: str, guesses: int) -> str:
    """The most probable tokens for the one ``[MASK]`` of a text, a line each.

    Raises:
        UserError: the text has none or several.
    """
    words = load_tokenizer(tokenizer)
    ids = np.array(words.encode(text, add_special_tokens=False).ids, dtype=np.int64)
    places = np.flatnonzero(ids == MASK)
    if len(places) != 1:
        raise UserError(f"the text has {len(places)} [MASK]; give it one")
    with torch.no_grad():
        found = fill(model, words, Cloze(ids, int(places[0])), guesses)
    return "\n".join(f"{guess.probability:7.2%}  {guess.text}" for guess in found)


def _tokenizer(loaded: Loaded, given: Path | None) -> Path:
    path = given or loaded.tokenizer
    if path is None:
        raise UserError("the model comes without a tokenizer; name its file by --tokenizer")
    return path


def _counted(held_out: HeldOut, bar: Any) -> Iterator[MicroBatch]:
    for index in range(len(held_out)):
        yield held_out[index]
        bar.update()


def _output(loaded: Loaded, given: Path | None, pairs: Path) -> Path:
    if given is not None:
        folder = given
    elif loaded.checkpoint is not None:
        folder = folder_in_run(loaded.checkpoint, pairs)
    else:
        raise UserError("the model is of no run here; name a folder for the results by --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror}; name another folder by --output"
        ) from None
    return folder


def _check_folder_of(output: Path | None) -> None:
    """Before the model is run, not after."""
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise UserError(f"--output {output}: must be a file in a folder that is there; name another")


def _held_out(
    loaded: Loaded,
    tokenizer: Path,
    data: Path | None,
    sequence_length: int | None,
    sequences: int | None,
    world: World,
) -> HeldOut:
    ours = None
    if loaded.checkpoint is not None:
        ours = load_config(loaded.checkpoint.resolve().parent.parent / "config.json").elc_bert
    prefix = data or (ours.data.dev if ours else None)
    if prefix is None:
        raise UserError("the model is of no run here; name a held-out dataset by --data")
    dataset, size = IndexedDataset(prefix), loaded.model.config.vocab_size
    check_tokenizer(dataset, tokenizer)
    if dataset.manifest.vocab_size not in (None, size):
        raise UserError(
            f"{prefix}: built with {dataset.manifest.vocab_size} subwords, but the model has {size}; give a "
            "dataset of its tokenizer"
        )
    return HeldOut(
        prefix,
        sequence_length or (ours.training.sequence_length if ours else DEFAULT_LENGTH),
        sequences or (ours.evaluation.sequences if ours and data is None else None),
        ours.training.seed if ours else DEFAULT_SEED,
        masking_from_config(ours.data) if ours else Masking(),
        vocab_size=size,
        rank=world.rank,
        world_size=world.size,
        micro_batch=32,
        policy=ours.data.segments if ours else POLICY,
    )
