"""Histograms of lengths: counted exactly, and shown as text or drawn as a picture."""

import math
import sys
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR_WIDTH = 40
"""Width of the longest bar in characters."""
EIGHTHS = " ▏▎▍▌▋▊▉"
"""Characters that fill 0 to 7 eighths of their width."""
LINEAR_BINS = 16
"""Maximum number of bins of equal width."""


class LengthCounts:
    """Counts of each distinct length.

    They take little memory, because n distinct lengths need at least about n²/2 tokens.
    """

    def __init__(self) -> None:
        self.values = np.empty(0, dtype=np.int64)
        """Distinct lengths, in increasing order, int64 ``[n]``."""
        self.counts = np.empty(0, dtype=np.int64)
        """Number of occurrences of each, int64 ``[n]``."""

    def add(self, lengths: NDArray[np.int64]) -> None:
        """Count more lengths, int64 of any number."""
        values, counts = np.unique(lengths, return_counts=True)
        self.values, index = np.unique(np.concatenate([self.values, values]), return_inverse=True)
        sums = np.zeros(len(self.values), dtype=np.int64)
        np.add.at(sums, index, np.concatenate([self.counts, counts]))
        self.counts = sums

    def quantiles(self, percents: list[int]) -> list[int]:
        """Return for each percentage p the smallest length that at least p % of lengths do not exceed."""
        up_to = np.cumsum(self.counts)
        needed = [-(-percent * int(up_to[-1]) // 100) for percent in percents]
        found: list[int] = self.values[np.searchsorted(up_to, needed)].tolist()
        return found

    def mean(self) -> float:
        """Return the mean length."""
        return float(self.values @ self.counts / self.counts.sum())


class Bin(NamedTuple):
    """One bin of a histogram."""

    low: int
    """Smallest length in the bin."""
    high: int
    """Largest length in the bin."""
    number: int
    """Number of lengths in the bin."""


def make_bins(lengths: LengthCounts, starts: NDArray[np.int64]) -> list[Bin]:
    """Return bins that begin at ``starts``. The last one ends at the largest length."""
    ends = np.append(starts[1:] - 1, lengths.values[-1])
    up_to = np.concatenate([[0], np.cumsum(lengths.counts)])
    edges = np.searchsorted(lengths.values, np.append(starts, lengths.values[-1] + 1))
    counts = np.diff(up_to[edges])
    return [Bin(*each) for each in zip(starts.tolist(), ends.tolist(), counts.tolist(), strict=True)]


def doubling_bin_starts(lengths: LengthCounts) -> NDArray[np.int64]:
    """Return the starts of bins that double in width. Length 0 has a bin for itself."""
    starts = np.concatenate([[0], 1 << np.arange(int(lengths.values[-1]).bit_length())])
    first = int(np.searchsorted(starts, lengths.values[0], side="right")) - 1
    return starts[first:]


def linear_bin_starts(lengths: LengthCounts) -> NDArray[np.int64]:
    """Return the starts of bins of equal width, the last of which begins near the 99 % quantile."""
    first, last = int(lengths.values[0]), lengths.quantiles([99])[0]
    step = max(1, -(-(last - first) // (LINEAR_BINS - 1)))
    end = min(max(last, first + 1) + step, int(lengths.values[-1]) + 1)
    return np.arange(first, end, step)[:LINEAR_BINS]


def text_histogram(title: str, bins: list[Bin]) -> list[str]:
    """Return the lines of a histogram with horizontal bars, 80 columns wide at most for counts < 10^12."""
    ranges = [f"{each.low:,}" if each.low == each.high else f"{each.low:,} - {each.high:,}" for each in bins]
    counts = [f"{each.number:,}" for each in bins]
    width, count_width = max(map(len, ranges)), max(map(len, counts))
    most = max(each.number for each in bins)
    return [title] + [
        f"{name:>{width}}  {count:>{count_width}}  {_bar(each.number / most)}".rstrip()
        for name, count, each in zip(ranges, counts, bins, strict=True)
    ]


def _bar(share: float) -> str:
    try:
        ("█" + EIGHTHS).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#" * math.ceil(share * BAR_WIDTH)
    full, rest = divmod(math.ceil(share * BAR_WIDTH * 8), 8)
    return "█" * full + EIGHTHS[rest].strip()


def draw_histogram(axes: "Axes", lengths: LengthCounts, title: str, is_logarithmic: bool) -> None:
    """Draw a histogram and its median with matplotlib.

    Args:
        axes: Axes to draw on.
        lengths: Counted lengths.
        title: Title of the picture.
        is_logarithmic: Use a logarithmic axis, with bins of equal width on it.
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
    axes.set(title=title, xlabel="tokens" if is_logarithmic else "tokens (without the longest 1 %)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
