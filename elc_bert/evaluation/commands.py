"""What launch/evaluate.py does."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from elc_bert.data.vocabulary import MASK, load_tokenizer
from elc_bert.errors import UserError
from elc_bert.evaluation.fill_mask import Cloze, fill
from elc_bert.evaluation.minimal_pairs import read_paradigms
from elc_bert.evaluation.pseudo_likelihood import Method
from elc_bert.evaluation.run_pairs import collect, evaluation_key, score_paradigms
from elc_bert.files import atomic_write
from elc_bert.hub.loading import Loaded
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.training.distributed import agree, connect


def evaluate_pairs(
    load: Callable[[], Loaded],
    tokenizer: Path | None,
    pairs: Path,
    output: Path,
    method: Method,
    limit: int | None,
) -> None:
    """Score minimal pairs on all processes of the launcher; print and save the accuracy. Collective.

    Args:
        load: reads the model.
        tokenizer: its file; the model's own if None.
        pairs: folder of .jsonl files.
        output: folder to write to; all ranks must see the same.
        method: see ``pseudo_likelihood``.
        limit: pairs of each file; all if None.

    Raises:
        UserError: on all ranks alike.
    """
    world = connect()
    paradigms = agree(lambda: read_paradigms(pairs))
    loaded = agree(load)
    path = agree(lambda: _tokenizer(loaded, tokenizer))
    words = agree(lambda: load_tokenizer(path))
    model = loaded.model.to(world.device)
    key = evaluation_key(model, path, method, limit)
    start = time.monotonic()
    score_paradigms(
        model,
        words,
        paradigms[world.rank :: world.size],
        output,
        key,
        method,
        limit,
        show_progress=world.is_main,
    )
    dist.barrier()
    if not world.is_main:
        return
    results = collect(paradigms, output, key)
    results.save(output)
    settings = {"pairs": str(pairs), "method": method, "limit": limit}
    with atomic_write(output / "settings.json", "w") as file:
        json.dump(settings, file, indent=2)
    seconds = time.monotonic() - start
    print(results.table())
    print(f"{seconds:.0f} s; {output}: results.json, results.csv, results.png")


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
