"""Accuracy on minimal pairs, and its output as a table, JSON, CSV and a figure."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from elc_bert.evaluation.pair_settings import PairSettings, describe
from elc_bert.utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ParadigmResult:
    """Result of a model on the pairs of one file."""

    name: str
    """Name of the paradigm."""
    phenomenon: str
    """Name of the phenomenon that the paradigm belongs to."""
    pairs: int
    """Number of pairs that were scored."""
    right: int
    """Number of pairs in which the good sentence has the higher score."""
    ties: int
    """Number of pairs with equal scores; each counts half."""
    skipped: int
    """Number of pairs left out because a sentence exceeds the model's ``max_position_embeddings``."""

    @property
    def accuracy(self) -> float | None:
        """Fraction of the scored pairs that are right; None if all pairs were left out."""
        return (self.right + 0.5 * self.ties) / self.pairs if self.pairs else None


def compare_scores(
    name: str, phenomenon: str, good: NDArray[np.float64], bad: NDArray[np.float64], skipped: int
) -> ParadigmResult:
    """Count the pairs whose good sentence has the higher score.

    Scores that differ by no more than rounding errors are ties: two sentences with the same tokens can get
    slightly different scores in different batches, and neither of them may win.

    Args:
        name: Name of the paradigm.
        phenomenon: Name of its phenomenon.
        good: Scores of the good sentences, finite, float64 ``[pairs]``.
        bad: Scores of the bad sentences, finite, float64 ``[pairs]``.
        skipped: Number of pairs that were not scored.
    """
    assert np.isfinite(good).all()
    assert np.isfinite(bad).all()
    close = np.isclose(good, bad, rtol=1e-6, atol=1e-6)
    right = int(((good > bad) & ~close).sum())
    return ParadigmResult(name, phenomenon, len(good), right, int(close.sum()), skipped)


def mean_accuracy(accuracies: Iterable[float | None]) -> float | None:
    """Return the mean of the accuracies that are not None, or None if there is none."""
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return fmean(known) if known else None


def as_percentage(accuracy: float | None) -> str:
    """Return an accuracy for display; a dash if there is none."""
    return "–" if accuracy is None else f"{accuracy:.1%}"


@dataclass(frozen=True)
class Results:
    """Results on all paradigms."""

    paradigms: Sequence[ParadigmResult]
    """Results of the paradigms, at least one."""

    @property
    def overall(self) -> float | None:
        """Mean accuracy over the paradigms of which a pair was scored; None if there is none."""
        return mean_accuracy(each.accuracy for each in self.paradigms)

    def by_phenomenon(self) -> dict[str, float | None]:
        """Return the mean accuracy over the paradigms of each phenomenon, by name; see ``overall``."""
        names = sorted({paradigm.phenomenon for paradigm in self.paradigms})
        return {
            name: mean_accuracy(each.accuracy for each in self.paradigms if each.phenomenon == name)
            for name in names
        }

    def total(self, count: str) -> int:
        """Return the sum of a count of ``ParadigmResult``, such as ``pairs``, over the paradigms."""
        return sum(getattr(each, count) for each in self.paradigms)

    def table(self, settings: PairSettings) -> str:
        """Return the accuracy by phenomenon as text, with the settings of the evaluation."""
        width = max(len(name) for name in ("overall", *self.by_phenomenon())) + 2
        lines = [f"{'phenomenon':<{width}}{'accuracy':>10}{'paradigms':>11}"]
        for name, accuracy in self.by_phenomenon().items():
            count = sum(each.phenomenon == name for each in self.paradigms)
            lines.append(f"{name:<{width}}{as_percentage(accuracy):>10}{count:>11}")
        lines.append(f"{'overall':<{width}}{as_percentage(self.overall):>10}{len(self.paradigms):>11}")
        lines.append(
            f"{describe(settings, self.total('pairs'))}; {self.total('ties'):,} ties (half a point each), "
            f"{self.total('skipped'):,} skipped as too long"
        )
        if unscored := [each.name for each in self.paradigms if each.accuracy is None]:
            lines.append(f"not scored, because every pair is too long: {', '.join(unscored)}")
        return "\n".join(lines)

    def as_json(self, settings: PairSettings) -> dict[str, Any]:
        """Return the content of ``results.json``."""
        return {
            **asdict(settings),
            **{count: self.total(count) for count in ("pairs", "ties", "skipped")},
            "overall": self.overall,
            "phenomena": self.by_phenomenon(),
            "paradigms": [{**asdict(each), "accuracy": each.accuracy} for each in self.paradigms],
        }

    def save(self, folder: Path, settings: PairSettings) -> None:
        """Write ``results.json``, ``results.csv`` and ``results.png``."""
        with atomic_write(folder / "results.json", "w") as file:
            json.dump(self.as_json(settings), file, indent=2)
        text = io.StringIO()
        table = csv.writer(text)
        counts = ["pairs", "right", "ties", "skipped"]
        table.writerow(["phenomenon", "paradigm", "accuracy", *counts, "method", "limit"])
        for each in self.paradigms:
            row = [each.accuracy, *(getattr(each, count) for count in counts), *asdict(settings).values()]
            table.writerow([each.phenomenon, each.name, *row])
        with atomic_write(folder / "results.csv", "w") as file:
            file.write(text.getvalue())
        with atomic_write(folder / "results.png") as file:
            self._draw(settings).savefig(file, format="png", dpi=110)

    def _draw(self, settings: PairSettings) -> "Figure":
        """Draw the accuracies; a pair must have been scored."""
        from matplotlib.figure import Figure

        accuracies = {name: value for name, value in self.by_phenomenon().items() if value is not None}
        names = list(accuracies)
        dots = [
            (each.accuracy, names.index(each.phenomenon))
            for each in self.paradigms
            if each.accuracy is not None
        ]
        figure = Figure(figsize=(7.5, 1.2 + 0.32 * len(names)), layout="constrained", facecolor="white")
        axes = figure.subplots()
        axes.barh(names, list(accuracies.values()), color="#56b4e9", height=0.7)
        across, rows = zip(*dots, strict=True)
        axes.scatter(across, rows, s=10, color="#222222", zorder=3)
        axes.axvline(0.5, color="#999999", linewidth=1, linestyle="--")
        axes.set_xlim(0, 1)
        axes.invert_yaxis()
        axes.set_xlabel("accuracy (bars: phenomena, dots: paradigms, dashed line: chance)")
        how = describe(settings, self.total("pairs"))
        axes.set_title(f"minimal pairs, overall {as_percentage(self.overall)}\n{how}", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        return figure
