"""How many there are of each length: counted exactly, and shown as text or as a picture."""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR_WIDTH = 40
EIGHTHS = " ▏▎▍▌▋▊▉"
LINEAR_BINS = 16


class Lengths:
    """Lengths by how often each occurs; few of them differ, since n different ones sum to n²/2 tokens."""

    def __init__(self) -> None:
        self.values = np.empty(0, dtype=np.int64)
        """Those that occur, increasing."""
        self.counts = np.empty(0, dtype=np.int64)
        """How often each does."""

    def add(self, lengths: NDArray[np.int64]) -> None:
        """Counts some more, int64 [any]."""
        values, counts = np.unique(lengths, return_counts=True)
        self.values, place = np.unique(np.concatenate([self.values, values]), return_inverse=True)
        sums = np.zeros(len(self.values), dtype=np.int64)
        np.add.at(sums, place, np.concatenate([self.counts, counts]))
        self.counts = sums

    def quantiles(self, percents: list[int]) -> list[int]:
        """For each percentage, the smallest length that at least so many do not exceed."""
        up_to = np.cumsum(self.counts)
        needed = [-(-percent * int(up_to[-1]) // 100) for percent in percents]
        return self.values[np.searchsorted(up_to, needed)].tolist()

    def mean(self) -> float:
        """Mean length."""
        return float(self.values @ self.counts / self.counts.sum())


class Bin(NamedTuple):
    """Lengths from `low` to `high`, and how many have them."""

    low: int
    high: int
    number: int


def binned(lengths: Lengths, starts: NDArray[np.int64]) -> list[Bin]:
    """Bins that begin at `starts`, the last of which reaches up to the greatest length."""
    ends = np.append(starts[1:] - 1, lengths.values[-1])
    up_to = np.concatenate([[0], np.cumsum(lengths.counts)])
    places = np.searchsorted(lengths.values, np.append(starts, lengths.values[-1] + 1))
    counts = np.diff(up_to[places])
    return [Bin(*each) for each in zip(starts.tolist(), ends.tolist(), counts.tolist(), strict=True)]


def powers_of_two(lengths: Lengths) -> NDArray[np.int64]:
    """Where bins begin that double in width, from the shortest to the longest; 0 is on its own."""
    starts = np.concatenate([[0], 1 << np.arange(int(lengths.values[-1]).bit_length())])
    first = int(np.searchsorted(starts, lengths.values[0], side="right")) - 1
    return starts[first:]


def even_steps(lengths: Lengths) -> NDArray[np.int64]:
    """Where bins of one width begin; the last begins at the 99 % quantile and takes all that is longer."""
    first, usual = int(lengths.values[0]), lengths.quantiles([99])[0]
    step = max(1, -(-(usual - first) // (LINEAR_BINS - 1)))
    return np.arange(first, max(usual, first + 1) + step, step)[:LINEAR_BINS]


def as_text(title: str, bins: list[Bin]) -> list[str]:
    """Lines of a histogram that lies on its side, at most 80 columns wide for counts below 10^12."""
    ranges = [f"{each.low:,}" if each.low == each.high else f"{each.low:,} - {each.high:,}" for each in bins]
    counts = [f"{each.number:,}" for each in bins]
    width, count_width = max(map(len, ranges)), max(map(len, counts))
    most = max(each.number for each in bins)
    return [title] + [
        f"{name:>{width}}  {count:>{count_width}}  {_bar(each.number / most)}".rstrip()
        for name, count, each in zip(ranges, counts, bins, strict=True)
    ]


def _bar(share: float) -> str:
    full, rest = divmod(math.ceil(share * BAR_WIDTH * 8), 8)
    return "█" * full + EIGHTHS[rest].strip()


def draw(axes: "Axes", lengths: Lengths, title: str, is_logarithmic: bool) -> None:
    """Draws a histogram with its median on the axes of a picture.

    Args:
        is_logarithmic: bins of even width in the logarithm of the length, not in the length.
    """
    low, high = int(lengths.values[0]), int(lengths.values[-1])
    if is_logarithmic:
        edges = np.unique(np.geomspace(max(low, 1), high + 1, 60).round()).tolist()
        axes.set_xscale("log")
    else:
        high = lengths.quantiles([99])[0]
        edges = (np.arange(low, high + 2, max(1, (high - low) // 60)) - 0.5).tolist()
    axes.hist(lengths.values, bins=edges, weights=lengths.counts, color="#4477aa")
    median = lengths.quantiles([50])[0]
    axes.axvline(median, color="#cc3311", linewidth=1.5, label=f"median {median:,}")
    axes.set(title=title, xlabel="tokens" if is_logarithmic else "tokens (the longest 1 % are left out)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
