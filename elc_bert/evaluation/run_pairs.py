"""Scoring minimal pairs on all processes of a launcher, going on where an earlier try stopped."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elc_bert.evaluation.accuracy import ParadigmResult, Results, compare
from elc_bert.evaluation.minimal_pairs import Pair, Paradigm, Sentence
from elc_bert.evaluation.pseudo_likelihood import Method, encode, score_sentences
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write, sha256_of
from elc_bert.utils.progress import progress_bar

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def evaluation_key(model: ElcBertForMaskedLM, tokenizer: Path, method: Method, limit: int | None) -> str:
    """Hash of what decides the scores, besides the pairs."""
    digest = hashlib.sha256()
    digest.update(json.dumps([sha256_of(tokenizer), method, limit]).encode())
    digest.update(model.config.model_dump_json().encode())
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def folder_in_run(checkpoint: Path, pairs: Path) -> Path:
    """Where the results of a run's checkpoint go if nothing else is said.

    Args:
        checkpoint: its directory.
        pairs: what is scored; of BLiMP's ``blimp/data`` the name of the folder around it is taken.
    """
    path = pairs.resolve()
    name = path.parent.name if path.name == "data" else path.stem
    return checkpoint.resolve().parent.parent / "minimal_pairs" / f"{name}-{checkpoint.resolve().name}"


def scores_of_checkpoint(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """What ``Results.as_json`` gave for a run's checkpoint, by the name of the pairs."""
    suffix = f"-{checkpoint.resolve().name}"
    scores = {}
    for file in sorted(checkpoint.resolve().parent.parent.glob(f"minimal_pairs/*{suffix}/results.json")):
        with contextlib.suppress(OSError, ValueError):
            scores[file.parent.name.removesuffix(suffix)] = json.loads(file.read_text(encoding="utf-8"))
    return scores


def score_paradigms(
    model: ElcBertForMaskedLM,
    tokenizer: "Tokenizer",
    paradigms: list[Paradigm],
    folder: Path,
    key: str,
    method: Method = "within-word",
    limit: int | None = None,
    show_progress: bool = True,
) -> None:
    """Score paradigms and leave a file for each in ``folder / "paradigms"``; what is there already stays.

    Args:
        model: in evaluation mode.
        paradigms: this rank's.
        key: see ``evaluation_key``.
        limit: pairs of each paradigm, from its beginning; None for all.
    """
    missing = [each for each in paradigms if _read(folder, each, key) is None]
    total = sum(2 * len(each.pairs[:limit]) for each in missing)
    with progress_bar(total, "sentence", shown=show_progress) as bar:
        for paradigm in missing:
            bar.set_description(paradigm.name[:32])
            result = score_paradigm(model, tokenizer, paradigm, method, limit, bar.update)
            _write(folder, paradigm, key, result)


def score_paradigm(
    model: ElcBertForMaskedLM,
    tokenizer: "Tokenizer",
    paradigm: Paradigm,
    method: Method = "within-word",
    limit: int | None = None,
    advance: Callable[[int], object] = lambda sentences: None,
) -> ParadigmResult:
    """Accuracy on the pairs of one file.

    Args:
        model: in evaluation mode, float32.
        limit: pairs, from the beginning; None for all.
        advance: told how many sentences are done.
    """

    def fits(pair: Pair) -> bool:
        return all(len(encoded[each].ids) <= longest for each in (pair.good, pair.bad))

    longest = model.config.max_position_embeddings
    pairs = paradigm.pairs[:limit]
    encoded = {each: encode(tokenizer, each) for pair in pairs for each in (pair.good, pair.bad)}
    kept = [pair for pair in pairs if fits(pair)]
    advance(2 * (len(pairs) - len(kept)))
    sentences: list[Sentence] = [each for pair in kept for each in (pair.good, pair.bad)]
    scores = score_sentences(model, [encoded[each] for each in sentences], method, advance=advance)
    return compare(paradigm.name, paradigm.phenomenon, scores[::2], scores[1::2], len(pairs) - len(kept))


def collect(paradigms: list[Paradigm], folder: Path, key: str) -> Results:
    """The results of all paradigms, which all ranks have left.

    Raises:
        UserError: some are missing, on a rank that sees another folder.
    """
    results = [(each, _read(folder, each, key)) for each in paradigms]
    for paradigm, result in results:
        if result is None:
            raise UserError(
                f"{_path(folder, paradigm)}: not written by its process; use a folder that all nodes share"
            )
    return Results([result for _, result in results if result is not None])


def _path(folder: Path, paradigm: Paradigm) -> Path:
    return folder / "paradigms" / f"{paradigm.name}.json"


def _key(paradigm: Paradigm, key: str) -> str:
    return f"{key} {sha256_of(paradigm.file)}"


def _read(folder: Path, paradigm: Paradigm, key: str) -> ParadigmResult | None:
    """What an earlier try found, if it was for the same model and pairs."""
    try:
        content: Mapping[str, Any] = json.loads(_path(folder, paradigm).read_text(encoding="utf-8"))
        return ParadigmResult(**content["result"]) if content["key"] == _key(paradigm, key) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write(folder: Path, paradigm: Paradigm, key: str, result: ParadigmResult) -> None:
    path = _path(folder, paradigm)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        json.dump({"key": _key(paradigm, key), "result": vars(result)}, file, indent=2)
