"""The order of samples: a permutation per epoch, evaluated where it is needed, without a table."""

import math

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.sampling.random import absorb, mix

_DOMAIN = 0x6F72646572
"""Keeps the keys of orders apart from those of other draws with the same seed."""
_ROUNDS = 12


class Order:
    """Endless stream of samples in which each epoch is another permutation of all of them.

    The sample at a position is a function of (seed, stream, position) alone. The permutation is a
    Feistel network on the row and the column of the sample number in a grid of `rows` x `columns`, about
    as wide as high, of `count` cells and fewer than `rows` more. Cycle walking: a number of `count` or
    more is permuted again until one below `count` comes out, which is rarely needed.

    Args:
        count: samples in an epoch, 1 to 2^63.
        seed: of the run.
        stream: number of an independent order under the same seed, such as the phase of a run.
    """

    def __init__(self, count: int, seed: int, stream: int = 0):
        if not 1 <= count <= 1 << 63:
            raise ValueError(f"an order needs 1 to 2^63 samples, not {count}")
        self.count = count
        self._key = absorb(absorb(absorb(np.zeros(1, dtype=np.uint64), _DOMAIN), seed), stream)
        rows = math.isqrt(count - 1) + 1
        self._rows = np.uint64(rows)
        self._columns = np.uint64(-(-count // rows))

    def __call__(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epoch and sample number at each position of the stream, int64 [N] each, for int64 [N]."""
        wide = np.asarray(positions, dtype=np.int64).astype(np.uint64)
        count = np.uint64(self.count)
        epochs, numbers = wide // count, wide % count
        keys = absorb(absorb(self._key, epochs), np.arange(_ROUNDS)[:, None])
        numbers = self._permute(numbers, keys)
        outside = np.flatnonzero(numbers >= count)
        while outside.size:
            numbers[outside] = self._permute(numbers[outside], keys[:, outside])
            outside = outside[numbers[outside] >= count]
        return epochs.astype(np.int64), numbers.astype(np.int64)

    def _permute(self, numbers: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """A keyed bijection of the cells' numbers, uint64 [N], with a key for each round, [_ROUNDS, N]."""
        row, column = numbers // self._columns, numbers % self._columns
        for i in range(0, _ROUNDS, 2):
            # Each is moved on by a function of the other one only, so each round can be undone. The shift
            # makes room for the sum.
            row = (row + (mix(keys[i] ^ column) >> np.uint64(1))) % self._rows
            column = (column + (mix(keys[i + 1] ^ row) >> np.uint64(1))) % self._columns
        return row * self._columns + column
