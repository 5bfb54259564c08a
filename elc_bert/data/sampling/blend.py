"""Blends: several streams of samples merged into one, in exact proportions.

Shapes: `N` positions, `k` datasets, `M` positions of the cycle that repeats.
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


@dataclass(frozen=True)
class Portion:
    """A dataset, and how large a part of a blend it is."""

    prefix: str | os.PathLike[str]
    """Path of the dataset without `.bin`."""
    weight: Fraction = Fraction(1)
    """Its share of the samples, relative to the other weights; not used if `epochs` is given."""
    epochs: Fraction | None = None
    """How often its segments are read, relative to the other datasets' numbers."""

    def weight_of(self, segments: int) -> Fraction:
        """Its weight, given how many segments it has."""
        return self.weight if self.epochs is None else self.epochs * segments


class Blend:
    """Endless stream that takes from several others by their weights, with random access.

    Of the first p samples, for every p, each dataset has given its weight's share to within one sample,
    and its own samples come in their order without gaps. Weights are met exactly if they have a common
    denominator of at most 65,536, else to 1/65,536 of all samples.

    The stream repeats a cycle of M positions, in which dataset i is taken n_i times. They are arranged as
    by R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980): dataset i may be taken
    for the j-th time when its share has come to j - 1 + c, must be before its share exceeds j - c, and
    where several may, the one that must first is; with c = 1 / (2 k - 2) that never fails, so that no
    number is ever off by more than 1 - c.

    Args:
        weights: relative, above 0, one for each dataset.

    Raises:
        UserError: a weight is too small beside the others to be met.
    """

    def __init__(self, weights: Sequence[Fraction]):
        self.weights = list(weights)
        self.cycle = _cycle(self.weights)
        """How often each dataset is taken in a cycle, n_i: [k]."""
        self._table, self._ranks = _arranged(self.cycle)
        self._cycle = np.array(self.cycle, dtype=np.int64)

    def __reduce__(self):
        return Blend, (self.weights,)

    def __call__(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which dataset is taken at each position, and which place in its own stream: int64 [N] each."""
        cycles, rest = np.divmod(positions, len(self._table))
        which = self._table[rest].astype(np.int64)
        return which, cycles * self._cycle[which] + self._ranks[rest]

    def counts(self, positions: int) -> list[int]:
        """How many of the first `positions` samples are taken from each dataset, [k]."""
        cycles, rest = divmod(positions, len(self._table))
        begun = np.bincount(self._table[:rest], minlength=len(self.cycle)).tolist()
        return [cycles * whole + part for whole, part in zip(self.cycle, begun, strict=True)]


def _cycle(weights: list[Fraction]) -> list[int]:
    """Whole numbers in the ratio of some weights, with a sum of at most `MAX_CYCLE`."""
    denominator = math.lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * denominator) for weight in weights]
    divisor = math.gcd(*whole)
    whole = [number // divisor for number in whole]
    total = sum(whole)
    if total <= MAX_CYCLE:
        return whole
    # The method of largest remainders.
    numbers = [number * MAX_CYCLE // total for number in whole]
    by_remainder = sorted(range(len(whole)), key=lambda i: (-(whole[i] * MAX_CYCLE % total), i))
    for i in by_remainder[: MAX_CYCLE - sum(numbers)]:
        numbers[i] += 1
    if 0 in numbers:
        raise UserError(
            f"elc_bert.data.train[{numbers.index(0)}]: its share is below 1/{MAX_CYCLE} of the blend, too "
            "little to be met; raise its weight or epochs, or leave it out"
        )
    return numbers


def _arranged(cycle: list[int]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """One cycle of a blend: which dataset is taken at each position, and for which time, uint16 [M] each."""
    total, unit = sum(cycle), 2 * len(cycle) - 2
    table = np.zeros(total, dtype=np.uint16)
    ranks = np.arange(total, dtype=np.uint16)
    if len(cycle) == 1:
        return table, ranks
    # Positions are counted from 1. The share of dataset i at position p is p n_i / M. It may be taken for
    # rank r as soon as that is r + 1 / unit or more, and must be as soon as it exceeds r + 1 - 1 / unit.
    waiting = [(-(-total // (unit * number)), i, 0) for i, number in enumerate(cycle)]
    heapq.heapify(waiting)
    due: list[tuple[int, int, int]] = []
    for position in range(1, total + 1):
        while waiting and waiting[0][0] <= position:
            _, i, rank = heapq.heappop(waiting)
            last = ((rank + 1) * unit - 1) * total // (unit * cycle[i]) + 1
            heapq.heappush(due, (last, i, rank))
        last, i, rank = heapq.heappop(due)
        assert position <= last, "a theorem says so"
        table[position - 1], ranks[position - 1] = i, rank
        first = -(-((rank + 1) * unit + 1) * total // (unit * cycle[i]))
        heapq.heappush(waiting, (first, i, rank + 1))
    return table, ranks
