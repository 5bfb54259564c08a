"""The order of samples: a permutation per epoch, evaluated where it is needed, without a table."""

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.random import absorb, mix

_DOMAIN = 0x6F72646572
"""Keeps the keys of orders apart from those of other draws with the same seed."""
_ROUNDS = 12


class Order:
    """Endless stream of samples in which each epoch is another permutation of all of them.

    The sample at a position is a function of (seed, stream, position) alone. The permutation is a
    Feistel network on the bits of the sample number, with cycle walking: numbers of `count` or more
    are permuted again until one below `count` comes out (fewer than two evaluations on average).

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
        bits = (count - 1).bit_length()
        self._low_bits = np.uint64(bits // 2)
        self._low_mask = np.uint64((1 << bits // 2) - 1)
        self._high_mask = np.uint64((1 << bits - bits // 2) - 1)

    def __call__(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epoch and sample number at each position of the stream, int64 [N] each, for int64 [N]."""
        wide = np.asarray(positions, dtype=np.int64).astype(np.uint64)
        count = np.uint64(self.count)
        epochs, numbers = wide // count, wide % count
        keys = absorb(self._key, epochs)
        numbers = self._permute(numbers, keys)
        outside = np.flatnonzero(numbers >= count)
        while outside.size:
            numbers[outside] = self._permute(numbers[outside], keys[outside])
            outside = outside[numbers[outside] >= count]
        return epochs.astype(np.int64), numbers.astype(np.int64)

    def _permute(self, numbers: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """A keyed bijection of the integers of this many bits."""
        low, high = numbers & self._low_mask, numbers >> self._low_bits
        for i in range(0, _ROUNDS, 2):
            # Each half is changed by a function of the other half only, so each round can be undone.
            high = high ^ (mix(absorb(keys, i) ^ low) & self._high_mask)
            low = low ^ (mix(absorb(keys, i + 1) ^ high) & self._low_mask)
        return (high << self._low_bits) | low
