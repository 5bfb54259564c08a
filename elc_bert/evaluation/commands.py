"""The commands of ``launch/evaluate.py``: minimal pairs, held-out loss, filling in a masked word."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from elc_bert.config.held_out import HeldOutSettings
from elc_bert.config.reader import load_config
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.text_tokenizer import TextTokenizer
from elc_bert.data.format.text_with_masks import accept_special_tokens
from elc_bert.data.format.vocabulary import check_tokenizer, load_tokenizer, special_tokens
from elc_bert.data.sampling.from_config import held_out_set
from elc_bert.data.sampling.steps import HeldOut, MicroBatch
from elc_bert.distributed.collectives import agree
from elc_bert.distributed.watchdog.watchdog import Watchdog
from elc_bert.distributed.world import World
from elc_bert.engine.processes import connect
from elc_bert.evaluation.fill_mask import Cloze, fill_blank
from elc_bert.evaluation.held_out import combine_scores, score_held_out
from elc_bert.evaluation.minimal_pairs import Paradigm, read_paradigms
from elc_bert.evaluation.pair_settings import PairSettings
from elc_bert.evaluation.pseudo_likelihood import check_words
from elc_bert.evaluation.run_pairs import collect_results, evaluation_key, score_paradigms
from elc_bert.evaluation.saved_results import SETTINGS, default_results_folder
from elc_bert.model.loaded import LoadedModel
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write, sha256_of
from elc_bert.utils.progress import progress_bar


def evaluate_pairs(
    watchdog: Watchdog,
    load: Callable[[], LoadedModel],
    tokenizer: Path | None,
    pairs: Path,
    output: Path | None,
    settings: PairSettings,
) -> None:
    """Score minimal pairs in all processes of the launcher; print and save the accuracy. Collective.

    Args:
        watchdog: Watchdog of this process.
        load: Function that reads the model.
        tokenizer: Tokenizer file; None for the model's own.
        pairs: Folder of ``.jsonl`` files, or one file.
        output: Folder for the results, on a file system that all nodes share; None for the default folder in
            the model's run. The results of each setting are in a folder of their own in it.
        settings: Method, and number of pairs to score of each paradigm.

    Raises:
        UserError: An input is invalid; raised on all ranks.
    """
    world = connect(watchdog)
    paradigms = agree(world, lambda: read_paradigms(pairs))
    loaded = agree(world, load)
    path = agree(world, lambda: loaded.tokenizer_path(tokenizer))
    folder = agree(world, lambda: _results_folder(loaded, output, pairs)) / settings.name
    loaded_tokenizer = agree(world, lambda: _tokenizer_for_pairs(path, loaded, settings))
    model = loaded.model.to(world.device)
    key = evaluation_key(model, path, settings)
    if output is not None:
        agree(world, lambda: _check_same_results(folder, key.current, paradigms))
    start = time.monotonic()
    with world.watchdog.activity("scoring minimal pairs"):
        agree(
            world,
            score_paradigms,
            model,
            loaded_tokenizer,
            paradigms[world.rank :: world.size],
            folder,
            key,
            settings,
            show_progress=world.is_main,
        )
    if not world.is_main:
        return
    results = collect_results(paradigms, folder, key)
    if results.overall is None:
        raise UserError(
            f"{pairs}: every pair is longer than the {model.config.max_position_embeddings} tokens of the "
            "model's max_position_embeddings; give shorter pairs or another model"
        )
    about = {"pairs": str(pairs), **asdict(settings), **_identity(key.current, paradigms)}
    with atomic_write(folder / SETTINGS, "w") as file:
        json.dump(about, file, indent=2)
    results.save(folder, settings)
    seconds = time.monotonic() - start
    print(results.table(settings))
    print(f"took {seconds:.0f} s; wrote results.json, results.csv and results.png to {folder}")


def evaluate_loss(
    watchdog: Watchdog,
    load: Callable[[], LoadedModel],
    tokenizer: Path | None,
    data: Path | None,
    sequence_length: int | None,
    sequences: int | None,
    output: Path | None,
) -> None:
    """Print loss, perplexity and accuracy on masked held-out text, using all processes. Collective.

    Args:
        watchdog: Watchdog of this process.
        load: Function that reads the model.
        tokenizer: Tokenizer file; None for the model's own.
        data: Prefix of the dataset; None for ``elc_bert.data.dev`` of the model's run.
        sequence_length: Tokens per sequence; None for that of the run, or 128 without a run.
        sequences: Number of sequences; None for those that the run evaluates on, or all without a run.
        output: JSON file for the figures; None to print them only.

    Raises:
        UserError: An input is invalid; raised on all ranks.
    """
    world = connect(watchdog)
    agree(world, lambda: _check_output_file(output))
    loaded = agree(world, load)
    path = agree(world, lambda: loaded.tokenizer_path(tokenizer))
    held_out, settings = agree(world, _held_out, loaded, path, data, sequence_length, sequences, world)
    model = loaded.model.to(world.device)
    with world.watchdog.activity("evaluating"):
        with progress_bar(len(held_out), "batch", title="held-out loss", shown=world.is_main) as bar:
            local = score_held_out(model, _with_progress(held_out, bar))
        parts = [local] * world.size
        dist.all_gather_object(parts, local)
    if not world.is_main:
        return
    total = combine_scores(parts)
    if not math.isfinite(total.loss):
        raise UserError(
            f"the held-out loss is {total.loss}, so the predictions of the model mean nothing; use an "
            "earlier checkpoint"
        )
    print(
        f"loss        {total.loss:.4f} nats per masked token\nperplexity  {total.perplexity:.2f}\n"
        f"accuracy    {total.accuracy:.2%}\n"
        f"on          {total.predictions:,} masked tokens of {held_out.sequences:,} sequences\n"
        f"{settings.describe()}"
    )
    if output is not None:
        with atomic_write(output, "w") as file:
            json.dump(
                {**asdict(total), "perplexity": total.perplexity, "settings": asdict(settings)},
                file,
                indent=2,
            )


def fill_in(loaded: LoadedModel, tokenizer: Path | None, text: str, guesses: int) -> str:
    """Return the most probable tokens for the mask token in a text, one per line.

    Args:
        loaded: Model that was read from files.
        tokenizer: Tokenizer file; None for the model's own.
        text: Text with exactly one mask token, usually ``[MASK]``.
        guesses: Number of tokens.

    Raises:
        UserError: There is no tokenizer, or the text has no mask token or several.
    """
    names = loaded.special_names
    loaded_tokenizer = TextTokenizer.load(loaded.tokenizer_path(tokenizer), names)
    encoding = accept_special_tokens(loaded_tokenizer.tokenizer).encode(text, add_special_tokens=False)
    ids = np.array(encoding.ids, dtype=np.int64)
    positions = np.flatnonzero(ids == loaded_tokenizer.special.mask)
    if len(positions) != 1:
        raise UserError(f"TEXT: contains {names.mask} {len(positions)} times; write it exactly once")
    with torch.no_grad():
        predicted = fill_blank(loaded.model, loaded_tokenizer, Cloze(ids, int(positions[0])), guesses)
    if not math.isfinite(predicted[0].probability):
        raise UserError("the predictions of the model are not finite; use an earlier checkpoint")
    return "\n".join(f"{guess.probability:7.2%}  {guess.text}" for guess in predicted)


def _tokenizer_for_pairs(path: Path, loaded: LoadedModel, settings: PairSettings) -> TextTokenizer:
    tokenizer = TextTokenizer.load(path, loaded.special_names)
    check_words(tokenizer, settings.method)
    return tokenizer


def _with_progress(held_out: HeldOut, bar: Any) -> Iterator[MicroBatch]:
    for index in range(len(held_out)):
        yield held_out[index]
        bar.update()


def _results_folder(loaded: LoadedModel, given: Path | None, pairs: Path) -> Path:
    if given is not None:
        folder = given
    elif loaded.checkpoint is not None:
        folder = default_results_folder(loaded.checkpoint, pairs)
    else:
        raise UserError(
            "--output: required, because the model is not a checkpoint of a run; give a folder for the "
            "results"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be created: {error.strerror}; give another folder with --output"
        ) from None
    return folder


def _identity(key: str, paradigms: Sequence[Paradigm]) -> dict[str, str]:
    """Return hashes of model and settings, and of the pairs, that results belong to."""
    files = dict.fromkeys(paradigm.file for paradigm in paradigms)
    return {"key": key, "pairs_sha256": sha256("".join(map(sha256_of, files)).encode()).hexdigest()}


def _check_same_results(folder: Path, key: str, paradigms: Sequence[Paradigm]) -> None:
    """Check that a folder that the user named does not hold the results of another model or other pairs."""
    try:
        saved = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if any(saved.get(name) != value for name, value in _identity(key, paradigms).items()):
        raise UserError(
            f"{folder}: holds the results of another model or of other pairs; choose another --output"
        )


def _check_output_file(output: Path | None) -> None:
    """Check the output file before the evaluation starts, not after it has run."""
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise UserError(f"--output {output}: must be a file in an existing folder; give another path")


def _held_out(
    loaded: LoadedModel,
    tokenizer: Path,
    data: Path | None,
    sequence_length: int | None,
    sequences: int | None,
    world: World,
) -> tuple[HeldOut, HeldOutSettings]:
    """Return the set to evaluate on, and its settings with the number of sequences filled in."""
    prefix, settings = data, HeldOutSettings()
    if loaded.checkpoint is not None:
        file = loaded.checkpoint.resolve().parent.parent / "config.json"
        config = load_config(file, of_finished_run=True)
        settings = HeldOutSettings.of_run(config)
        if data is None:
            prefix = config.elc_bert.data.dev
        else:
            settings = replace(settings, sequences=None)
    if prefix is None:
        raise UserError(
            "--data: required, because the model is not a checkpoint of a run; give the prefix of a dataset"
        )
    settings = replace(
        settings,
        sequence_length=sequence_length or settings.sequence_length,
        sequences=sequences or settings.sequences,
    )
    dataset, size = IndexedDataset(prefix), loaded.model.config.vocab_size
    check_tokenizer(dataset, tokenizer)
    if dataset.manifest.vocab_size not in (None, size):
        raise UserError(
            f"{prefix}: built with a vocabulary of {dataset.manifest.vocab_size} subwords, but the model has "
            f"{size}; give a dataset that was built with the model's tokenizer"
        )
    special = special_tokens(load_tokenizer(tokenizer, loaded.special_names), loaded.special_names)
    held_out = held_out_set(
        prefix, settings, special, vocab_size=size, rank=world.rank, world_size=world.size, micro_batch=32
    )
    return held_out, replace(settings, sequences=held_out.sequences)
