"""Reduction of the number of points of a curve, and smoothing."""

import itertools

import numpy as np
from numpy.typing import NDArray

from elc_bert.utils.event_files import Series


def thin(series: Series, most: int) -> Series:
    """Reduce a series to at most ``most`` entries while preserving its range everywhere.

    The first and the last entry are kept, and the minimum and maximum of each of equally large groups.

    Args:
        series: The series.
        most: Maximum number of entries, at least 4.
    """
    count = len(series.steps)
    if count <= most:
        return series
    bounds = np.linspace(0, count, (most - 2) // 2 + 1).astype(int)
    groups = [series.values[begin:end] for begin, end in itertools.pairwise(bounds)]
    lowest, highest = (
        bounds[:-1] + [int(np.argmin(group)) for group in groups],
        bounds[:-1] + [int(np.argmax(group)) for group in groups],
    )
    kept = np.unique(np.concatenate([[0], lowest, highest, [count - 1]]))
    return Series(series.steps[kept], series.values[kept])


def subsample(series: Series, most: int) -> Series:
    """Return at most ``most`` (at least 2) evenly spaced entries, including the first and the last."""
    kept = np.unique(np.linspace(0, len(series.steps) - 1, most).round().astype(int))
    return Series(series.steps[kept], series.values[kept])


def smooth(series: Series, width: int) -> Series:
    """Return the centered moving average over ``width`` entries, ignoring values that are not finite.

    At the beginning, where losses fall steeply, the window is narrower but still centered, so that the smooth
    curve begins at the first value. At the end only the right half of the window shrinks.

    Args:
        series: The series.
        width: Number of entries in the window.
    """
    count = len(series.values)
    index = np.arange(count)
    before = np.minimum(index, width // 2)
    after = np.minimum(before, count - 1 - index)
    is_finite = np.isfinite(series.values)
    sums, counts = (
        _range_sums(values, index - before, index + after + 1)
        for values in (np.where(is_finite, series.values, 0.0), is_finite.astype(np.float64))
    )
    return Series(series.steps, np.divide(sums, counts, out=np.full(count, np.nan), where=counts > 0))


def _range_sums(
    values: NDArray[np.float64], begin: NDArray[np.int64], end: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the sums of ``values[begin:end]`` for each begin and end."""
    sums: NDArray[np.float64] = np.concatenate([[0.0], np.cumsum(values)])
    result: NDArray[np.float64] = sums[end] - sums[begin]
    return result
