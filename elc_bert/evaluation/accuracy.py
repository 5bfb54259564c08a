"""Accuracy on minimal pairs, and its output as a table, JSON, CSV and a figure."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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
    def accuracy(self) -> float:
        """Fraction of the scored pairs that are right."""
        return (self.right + 0.5 * self.ties) / max(1, self.pairs)


def compare_scores(
    name: str, phenomenon: str, good: NDArray[np.float64], bad: NDArray[np.float64], skipped: int
) -> ParadigmResult:
    """Count the pairs whose good sentence has the higher score.

    Scores that differ by no more than rounding errors are ties: two sentences with the same tokens can get
    slightly different scores in different batches, and neither of them may win.

    Args:
        name: Name of the paradigm.
        phenomenon: Name of its phenomenon.
        good: Scores of the good sentences, float64 ``[pairs]``.
        bad: Scores of the bad sentences, float64 ``[pairs]``.
        skipped: Number of pairs that were not scored.
    """
    close = np.isclose(good, bad, rtol=1e-6, atol=1e-6)
    right = int(((good > bad) & ~close).sum())
    return ParadigmResult(name, phenomenon, len(good), right, int(close.sum()), skipped)


@dataclass(frozen=True)
class Results:
    """Results on all paradigms."""

    paradigms: Sequence[ParadigmResult]
    """Results of the paradigms, at least one."""

    @property
    def overall(self) -> float:
        """Mean accuracy over the paradigms."""
        return fmean(paradigm.accuracy for paradigm in self.paradigms)

    def by_phenomenon(self) -> dict[str, float]:
        """Return the mean accuracy over the paradigms of each phenomenon, by name."""
        names = sorted({paradigm.phenomenon for paradigm in self.paradigms})
        return {
            name: fmean(each.accuracy for each in self.paradigms if each.phenomenon == name) for name in names
        }

    def table(self) -> str:
        """Return the accuracy by phenomenon as text."""
        width = max(len(name) for name in ("overall", *self.by_phenomenon())) + 2
        lines = [f"{'phenomenon':<{width}}{'accuracy':>10}{'paradigms':>11}"]
        for name, accuracy in self.by_phenomenon().items():
            count = sum(each.phenomenon == name for each in self.paradigms)
            lines.append(f"{name:<{width}}{accuracy:>10.1%}{count:>11}")
        lines.append(f"{'overall':<{width}}{self.overall:>10.1%}{len(self.paradigms):>11}")
        pairs, ties, skipped = (
            sum(getattr(each, what) for each in self.paradigms) for what in ("pairs", "ties", "skipped")
        )
        lines.append(f"{pairs:,} pairs, {ties:,} ties (half a point each), {skipped:,} skipped as too long")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``results.json``."""
        return {
            "overall": self.overall,
            "phenomena": self.by_phenomenon(),
            "paradigms": [{**asdict(each), "accuracy": each.accuracy} for each in self.paradigms],
        }

    def save(self, folder: Path) -> None:
        """Write ``results.json``, ``results.csv`` and ``results.png``."""
        with atomic_write(folder / "results.json", "w") as file:
            json.dump(self.as_json(), file, indent=2)
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(["phenomenon", "paradigm", "accuracy", "pairs", "right", "ties", "skipped"])
        for each in self.paradigms:
            row = (each.accuracy, each.pairs, each.right, each.ties, each.skipped)
            table.writerow([each.phenomenon, each.name, *row])
        with atomic_write(folder / "results.csv", "w") as file:
            file.write(text.getvalue())
        with atomic_write(folder / "results.png") as file:
            self._draw().savefig(file, format="png", dpi=110)

    def _draw(self) -> "Figure":
        from matplotlib.figure import Figure

        names = list(self.by_phenomenon())
        figure = Figure(figsize=(7.5, 1.2 + 0.32 * len(names)), layout="constrained", facecolor="white")
        axes = figure.subplots()
        axes.barh(names, list(self.by_phenomenon().values()), color="#56b4e9", height=0.7)
        rows = [names.index(each.phenomenon) for each in self.paradigms]
        axes.scatter([each.accuracy for each in self.paradigms], rows, s=10, color="#222222", zorder=3)
        axes.axvline(0.5, color="#999999", linewidth=1, linestyle="--")
        axes.set_xlim(0, 1)
        axes.invert_yaxis()
        axes.set_xlabel("accuracy (bars: phenomena, dots: paradigms, dashed line: chance)")
        axes.set_title(f"minimal pairs, overall {self.overall:.1%}", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        return figure
