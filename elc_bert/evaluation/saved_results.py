"""Results on minimal pairs that are saved in the directory of a run.

The results of ``launch/evaluate.py pairs`` are in ``minimal_pairs/NAME-STEP/SETTINGS``, where NAME is that of
the pairs, STEP that of the checkpoint, and SETTINGS that of ``PairSettings``. Early versions wrote them to
``minimal_pairs/NAME-STEP``.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elc_bert.evaluation.accuracy import mean_accuracy
from elc_bert.evaluation.pair_settings import PairSettings, describe

FOLDER = "minimal_pairs"
"""Folder in the directory of a run."""
RESULTS, SETTINGS = "results.json", "settings.json"
_NAME_AND_STEP = re.compile(r"(?P<name>.+)-step-(?P<step>\d{6,})")


@dataclass(frozen=True)
class ParadigmAccuracy:
    """Accuracy on one paradigm of which a pair was scored."""

    name: str
    """Name of the paradigm."""
    phenomenon: str
    """Name of its phenomenon."""
    accuracy: float
    """Fraction of the pairs that are right."""


@dataclass(frozen=True)
class PairScores:
    """Accuracy of a model on a set of minimal pairs."""

    name: str
    """Name of the set, such as ``blimp``."""
    step: int | None
    """Step of the checkpoint, or None if unknown."""
    settings: PairSettings | None
    """Settings of the evaluation, or None if unknown."""
    pairs: int | None
    """Number of pairs that were scored, or None if unknown."""
    overall: float
    """Mean accuracy over the paradigms."""
    phenomena: dict[str, float]
    """Mean accuracy over the paradigms of each phenomenon, by name."""
    paradigms: tuple[ParadigmAccuracy, ...]
    """Accuracy on the single paradigms; empty if unknown."""

    @property
    def how(self) -> str:
        """Number of pairs, method and limit, for display."""
        return describe(self.settings, self.pairs)

    @property
    def label(self) -> str:
        """Name of the set and the settings, which is unique within a checkpoint."""
        return f"{self.name}, {'unknown settings' if self.settings is None else self.settings.name}"


def default_results_folder(checkpoint: Path, pairs: Path) -> Path:
    """Return the folder in a run where the results of one of its checkpoints are saved by default.

    Args:
        checkpoint: Directory of the checkpoint.
        pairs: Folder of minimal pairs. The results folder is named after it, or after its parent if it is
            called ``data`` as in ``blimp/data``.
    """
    path = pairs.resolve()
    name = path.parent.name if path.name == "data" else path.stem
    return checkpoint.resolve().parent.parent / FOLDER / f"{name}-{checkpoint.resolve().name}"


def read_results(run: Path) -> tuple[list[PairScores], list[Path]]:
    """Return all saved results of a run, and the files that cannot be read.

    Results of several checkpoints or settings are all returned; those in the folder of an early version are
    left out where newer ones have the same checkpoint and settings.
    """
    found: dict[tuple[str, int | None, PairSettings | None], PairScores] = {}
    unreadable = []
    for pattern in (f"{FOLDER}/*/{RESULTS}", f"{FOLDER}/*/*/{RESULTS}"):
        for file in sorted(run.glob(pattern)):
            try:
                scores = _read(file, file.parent if pattern.count("*") == 1 else file.parent.parent)
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                unreadable.append(file)
            else:
                found[scores.name, scores.step, scores.settings] = scores
    return list(found.values()), unreadable


def results_of_checkpoint(checkpoint: Path) -> list[PairScores]:
    """Return the saved results of a checkpoint of a run, as far as they can be read."""
    checkpoint = checkpoint.resolve()
    results, _ = read_results(checkpoint.parent.parent)
    return [each for each in results if each.step is not None and checkpoint.name == f"step-{each.step:06d}"]


def _read(file: Path, folder: Path) -> PairScores:
    content = json.loads(file.read_text(encoding="utf-8"))
    match = _NAME_AND_STEP.fullmatch(folder.name)
    # Early versions saved an accuracy of 0 for a paradigm of which no pair was scored, and counted it.
    scored = [each for each in content["paradigms"] if each.get("pairs") != 0]
    paradigms = tuple(
        ParadigmAccuracy(each["name"], each["phenomenon"], float(each["accuracy"])) for each in scored
    )
    overall, phenomena = _accuracies(paradigms)
    return PairScores(
        match["name"] if match else folder.name,
        int(match["step"]) if match else None,
        _read_settings(file.with_name(SETTINGS)),
        sum(int(each["pairs"]) for each in scored) if all("pairs" in each for each in scored) else None,
        overall,
        phenomena,
        paradigms,
    )


def _accuracies(paradigms: Sequence[ParadigmAccuracy]) -> tuple[float, dict[str, float]]:
    """Return the accuracy on all paradigms and on those of each phenomenon.

    Raises:
        ValueError: There are no paradigms.
    """
    overall = mean_accuracy(each.accuracy for each in paradigms)
    if overall is None:
        raise ValueError("no paradigm was scored")
    phenomena: dict[str, Any] = {
        name: mean_accuracy(each.accuracy for each in paradigms if each.phenomenon == name)
        for name in sorted({each.phenomenon for each in paradigms})
    }
    return overall, phenomena


def _read_settings(file: Path) -> PairSettings | None:
    try:
        return PairSettings.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError):
        return PairSettings.from_name(file.parent.name)
