"""Fewer points for a picture, and smoother ones. ``n`` entries of a series."""

import itertools

import numpy as np
from numpy.typing import NDArray

from elc_bert.utils.event_files import Series


def thin(series: Series, most: int) -> Series:
    """At most ``most`` (4 or more) entries: the first, the last, and of equal groups the lowest and highest.

    What a picture shows of the range of the values stays as it is.
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


def stride(series: Series, most: int) -> Series:
    """At most ``most`` (2 or more) entries, evenly spread, the first and the last among them."""
    kept = np.unique(np.linspace(0, len(series.steps) - 1, most).round().astype(int))
    return Series(series.steps[kept], series.values[kept])


def smooth(series: Series, width: int) -> Series:
    """The mean of ``width`` entries around each one; what is not finite does not count.

    At the beginning, where losses fall steeply, of fewer entries, but as many on both sides: so the curve
    begins where it does. At the end those on the right run out, and the mean is of those before.
    """
    count = len(series.values)
    places = np.arange(count)
    before = np.minimum(places, width // 2)
    behind = np.minimum(before, count - 1 - places)
    is_finite = np.isfinite(series.values)
    sums, counts = (
        _within(values, places - before, places + behind + 1)
        for values in (np.where(is_finite, series.values, 0.0), is_finite.astype(np.float64))
    )
    return Series(series.steps, np.divide(sums, counts, out=np.full(count, np.nan), where=counts > 0))


def _within(
    values: NDArray[np.float64], begin: NDArray[np.int64], end: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Sums from each begin up to each end."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return sums[end] - sums[begin]
