"""Sample order: a pseudo-random permutation per epoch, evaluated on demand without a shuffle table.

Shapes: ``N`` positions.
"""

import math

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.sampling.random import fold_in, mix

_DOMAIN = 0x6F72646572
"""Constant that makes the keys of orders differ from those of other draws with the same seed."""
_ROUNDS = 12
"""Number of rounds of the Feistel network."""


class Order:
    """Infinite stream of samples in which each epoch is a different permutation of all samples.

    The sample at a position depends only on (seed, stream, position). The permutation is a Feistel network on
    the row and column of the sample's index in an almost square grid of ``rows`` x ``columns`` cells, which
    has fewer than ``rows`` cells more than there are samples. If the result is not below ``count``, it is
    permuted again until it is (cycle walking), which is rarely needed.

    Args:
        count: Number of samples in an epoch, 1 to 2^63.
        seed: Seed of the sample order.
        stream: Number of an independent order under the same seed, such as the phase of a run.
    """

    def __init__(self, count: int, seed: int, stream: int = 0) -> None:
        if not 1 <= count <= 1 << 63:
            raise ValueError(f"an order needs 1 to 2^63 samples, not {count}")
        self.count = count
        self._key = fold_in(fold_in(fold_in(np.zeros(1, dtype=np.uint64), _DOMAIN), seed), stream)
        rows = math.isqrt(count - 1) + 1
        self._rows = np.uint64(rows)
        self._columns = np.uint64(-(-count // rows))

    def __call__(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the epoch and the sample index at each position of the stream, int64 ``[N]`` each."""
        wide = np.asarray(positions, dtype=np.int64).astype(np.uint64)
        count = np.uint64(self.count)
        epochs, numbers = wide // count, wide % count
        keys = fold_in(fold_in(self._key, epochs), np.arange(_ROUNDS)[:, None])
        numbers = self._permute(numbers, keys)
        outside = np.flatnonzero(numbers >= count)
        while outside.size:
            numbers[outside] = self._permute(numbers[outside], keys[:, outside])
            outside = outside[numbers[outside] >= count]
        return epochs.astype(np.int64), numbers.astype(np.int64)

    def _permute(self, numbers: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Permute cell indices, uint64 ``[N]``, with one key for each round, ``[_ROUNDS, N]``."""
        row, column = numbers // self._columns, numbers % self._columns
        for i in range(0, _ROUNDS, 2):
            # Each round adds a function of the other coordinate only, so it is invertible. The shift prevents
            # an overflow of the sum.
            row = (row + (mix(keys[i] ^ column) >> np.uint64(1))) % self._rows
            column = (column + (mix(keys[i + 1] ^ row) >> np.uint64(1))) % self._columns
        return row * self._columns + column
