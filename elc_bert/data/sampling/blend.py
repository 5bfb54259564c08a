"""Blend of several sample streams, in exact proportions.

Shapes: ``N`` positions, ``k`` datasets, ``M`` positions of the repeated cycle.
"""

import heapq
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from elc_bert.utils.errors import UserError

MAX_CYCLE = 1 << 16
"""Maximum length of the repeated cycle."""


@dataclass(frozen=True)
class Portion:
    """Dataset and its share of a blend."""

    prefix: str | os.PathLike[str]
    """Path of the dataset without ``.bin``."""
    weight: Fraction = Fraction(1)
    """Relative share of the samples; ignored if ``epochs`` is given."""
    epochs: Fraction | None = None
    """Relative number of passes over its segments, compared with the other datasets."""

    def weight_of(self, segments: int) -> Fraction:
        """Return the weight of this dataset if it has the given number of segments."""
        return self.weight if self.epochs is None else self.epochs * segments


class Blend:
    """Infinite stream that interleaves several others by their weights, with random access.

    For every p, the number of samples taken from a dataset among the first p differs from its exact share by
    less than one. Each dataset's own samples keep their order, without gaps. The proportions are exact if the
    ratio of the weights can be written in integers with a sum of at most 65,536; otherwise they are rounded
    to multiples of 1/65,536.

    The stream repeats a cycle of M positions, in which dataset i occurs n_i times. The cycle is arranged by
    the algorithm of R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980). Dataset i
    may be taken for the j-th time once its share reaches j - 1 + c, and must be taken before its share
    exceeds j - c. Among the datasets that may be taken, the one with the earliest deadline is taken. With
    c = 1 / (2 k - 2) no deadline is ever missed, so no count is off by more than 1 - c.

    Args:
        weights: Relative weight of each dataset, above 0.

    Raises:
        UserError: A weight is too small compared with the others.
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        self.weights = list(weights)
        self.cycle = _cycle(self.weights)
        """Number of times n_i that each dataset occurs in a cycle, ``[k]``."""
        self._table, self._ranks = _arrange(self.cycle)
        self._cycle = np.array(self.cycle, dtype=np.int64)

    def __reduce__(self) -> tuple[type["Blend"], tuple[list[Fraction]]]:
        return Blend, (self.weights,)

    def __call__(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the dataset at each position and the position in its own stream, int64 ``[N]`` each."""
        cycles, rest = np.divmod(positions, len(self._table))
        which = self._table[rest].astype(np.int64)
        return which, cycles * self._cycle[which] + self._ranks[rest]

    def counts(self, positions: int) -> list[int]:
        """Return how many of the first ``positions`` samples come from each dataset, ``[k]``."""
        cycles, rest = divmod(positions, len(self._table))
        begun = np.bincount(self._table[:rest], minlength=len(self.cycle)).tolist()
        return [cycles * whole + part for whole, part in zip(self.cycle, begun, strict=True)]


def _cycle(weights: list[Fraction]) -> list[int]:
    """Return integers in the ratio of the weights, with a sum of at most ``MAX_CYCLE``."""
    denominator = math.lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * denominator) for weight in weights]
    divisor = math.gcd(*whole)
    whole = [number // divisor for number in whole]
    total = sum(whole)
    if total <= MAX_CYCLE:
        return whole
    # Round by the method of largest remainders.
    numbers = [number * MAX_CYCLE // total for number in whole]
    by_remainder = sorted(range(len(whole)), key=lambda i: (-(whole[i] * MAX_CYCLE % total), i))
    for i in by_remainder[: MAX_CYCLE - sum(numbers)]:
        numbers[i] += 1
    if 0 in numbers:
        raise UserError(
            f"elc_bert.data.train[{numbers.index(0)}]: its share is below 1/{MAX_CYCLE} of the blend; "
            "raise its weight or epochs, or merge small datasets with: python -m data_tools merge "
            "--input PREFIX PREFIX --output NEW"
        )
    return numbers


def _arrange(cycle: list[int]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Arrange one cycle of a blend.

    Returns:
        The dataset at each position, and how often it occurs earlier in the cycle, uint16 ``[M]`` each.
    """
    total, unit = sum(cycle), 2 * len(cycle) - 2
    table = np.zeros(total, dtype=np.uint16)
    ranks = np.arange(total, dtype=np.uint16)
    if len(cycle) == 1:
        return table, ranks
    # Positions are counted from 1. The share of dataset i at position p is p n_i / M. Its occurrence number
    # r may be placed once that is at least r + 1 / unit, and must be once it exceeds r + 1 - 1 / unit.
    waiting = [(-(-total // (unit * number)), i, 0) for i, number in enumerate(cycle)]
    heapq.heapify(waiting)
    due: list[tuple[int, int, int]] = []
    for position in range(1, total + 1):
        while waiting and waiting[0][0] <= position:
            _, i, rank = heapq.heappop(waiting)
            last = ((rank + 1) * unit - 1) * total // (unit * cycle[i]) + 1
            heapq.heappush(due, (last, i, rank))
        last, i, rank = heapq.heappop(due)
        assert position <= last, "guaranteed by Tijdeman's theorem"
        table[position - 1], ranks[position - 1] = i, rank
        first = -(-((rank + 1) * unit + 1) * total // (unit * cycle[i]))
        heapq.heappush(waiting, (first, i, rank + 1))
    return table, ranks
