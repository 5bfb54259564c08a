"""Scoring of minimal pairs in one or several processes, resumable after an interruption."""

import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from elc_bert.data.format.text_tokenizer import TextTokenizer
from elc_bert.data.format.tokenizer_identity import tokenizer_fingerprint, tokenizer_sha256
from elc_bert.evaluation.accuracy import ParadigmResult, Results, compare_scores
from elc_bert.evaluation.minimal_pairs import Pair, Paradigm, Sentence
from elc_bert.evaluation.pair_settings import PairSettings
from elc_bert.evaluation.pseudo_likelihood import encode, score_sentences
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write, sha256_of
from elc_bert.utils.progress import progress_bar

FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
"""Names of paradigms that are names of files as they are."""


@dataclass(frozen=True)
class EvaluationKey:
    """Hashes of everything that the scores depend on, apart from the pairs."""

    current: str
    """Hash with the fingerprint of the tokenizer."""
    early: str
    """Hash of early versions, with the checksum of the tokenizer file."""


def evaluation_key(model: ElcBertForMaskedLM, tokenizer: Path, settings: PairSettings) -> EvaluationKey:
    """Return what identifies the scores of a model and settings."""
    digests = []
    for of_tokenizer in (tokenizer_fingerprint(tokenizer), tokenizer_sha256(tokenizer)):
        start = json.dumps([of_tokenizer, settings.method, settings.limit])
        digests.append(sha256(start.encode() + model.config.model_dump_json().encode()))
    for name, parameter in model.named_parameters():
        content = name.encode() + parameter.detach().cpu().numpy().tobytes()
        for digest in digests:
            digest.update(content)
    return EvaluationKey(*(digest.hexdigest() for digest in digests))


def score_paradigms(
    model: ElcBertForMaskedLM,
    tokenizer: TextTokenizer,
    paradigms: list[Paradigm],
    folder: Path,
    key: EvaluationKey,
    settings: PairSettings,
    show_progress: bool = True,
) -> None:
    """Score paradigms and write one file for each to ``folder / "paradigms"``.

    Paradigms whose file exists and has the same key are skipped.

    Args:
        model: Model in evaluation mode, float32.
        tokenizer: The model's tokenizer.
        paradigms: Paradigms that this rank scores.
        folder: Folder of the results.
        key: Identifies the model and settings; see ``evaluation_key``.
        settings: Method, and number of pairs to score.
        show_progress: Whether to show a progress bar.

    Raises:
        UserError: The model gives a sentence a score that is not finite.
    """
    missing = [each for each in paradigms if _read(folder, each, key) is None]
    total = sum(2 * len(each.pairs[: settings.limit]) for each in missing)
    with progress_bar(total, "sentence", shown=show_progress) as bar:
        for paradigm in missing:
            bar.set_description(paradigm.name[:32])
            result = score_paradigm(model, tokenizer, paradigm, settings, bar.update)
            _write(folder, paradigm, key, result)


def score_paradigm(
    model: ElcBertForMaskedLM,
    tokenizer: TextTokenizer,
    paradigm: Paradigm,
    settings: PairSettings,
    advance: Callable[[int], object] = lambda sentences: None,
) -> ParadigmResult:
    """Return the result on the pairs of one file.

    Args:
        model: Model in evaluation mode, float32.
        tokenizer: The model's tokenizer.
        paradigm: The pairs.
        settings: Method, and number of pairs to score.
        advance: Called with the number of sentences that have been finished since the last call.

    Raises:
        UserError: The model gives a sentence a score that is not finite.
    """

    def fits(pair: Pair) -> bool:
        return all(len(encoded[each].ids) <= max_length for each in (pair.good, pair.bad))

    max_length = model.config.max_position_embeddings
    pairs = paradigm.pairs[: settings.limit]
    encoded = {each: encode(tokenizer, each) for pair in pairs for each in (pair.good, pair.bad)}
    kept = [pair for pair in pairs if fits(pair)]
    advance(2 * (len(pairs) - len(kept)))
    sentences: list[Sentence] = [each for pair in kept for each in (pair.good, pair.bad)]
    scores = score_sentences(model, [encoded[each] for each in sentences], settings.method, advance=advance)
    for sentence, score in zip(sentences, scores.tolist(), strict=True):
        if not math.isfinite(score):
            raise UserError(
                f"{paradigm.file}: the model gives the sentence {sentence.text!r} the score {score}, so its "
                "predictions mean nothing; use an earlier checkpoint"
            )
    return compare_scores(
        paradigm.name, paradigm.phenomenon, scores[::2], scores[1::2], len(pairs) - len(kept)
    )


def collect_results(paradigms: list[Paradigm], folder: Path, key: EvaluationKey) -> Results:
    """Return the results of all paradigms from the files that the ranks have written.

    Raises:
        UserError: A file is missing, because its rank wrote to a folder that this rank does not see.
    """
    results = [(each, _read(folder, each, key)) for each in paradigms]
    for paradigm, result in results:
        if result is None:
            raise UserError(
                f"{_path(folder, paradigm)}: not found, although a process has written it; use a folder "
                "that all nodes share"
            )
    return Results([result for _, result in results if result is not None])


def _path(folder: Path, paradigm: Paradigm) -> Path:
    name = paradigm.name
    if FILE_NAME.fullmatch(name) is None:
        name = f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)[:80]}-{sha256(name.encode()).hexdigest()[:12]}"
    return folder / "paradigms" / f"{name}.json"


def _key(paradigm: Paradigm, key: str) -> str:
    return f"{key} {sha256_of(paradigm.file)}"


def _read(folder: Path, paradigm: Paradigm, key: EvaluationKey) -> ParadigmResult | None:
    """Return the result in a paradigm's file, or None if it belongs to another model, setting or pairs."""
    # Early versions wrote to the folder above.
    for place, expected in ((folder, key.current), (folder.parent, key.early)):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            content: Mapping[str, Any] = json.loads(_path(place, paradigm).read_text(encoding="utf-8"))
            if content["key"] == _key(paradigm, expected):
                return ParadigmResult(**content["result"])
    return None


def _write(folder: Path, paradigm: Paradigm, key: EvaluationKey, result: ParadigmResult) -> None:
    path = _path(folder, paradigm)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        json.dump({"key": _key(paradigm, key.current), "result": vars(result)}, file, indent=2)
