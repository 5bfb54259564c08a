"""Random numbers without a state: each is a function of a key and a counter.

A key absorbs (seed, epoch, sample, stream) word by word through the output function of SplitMix64;
the counter then selects a number of the SplitMix64 sequence that starts at the key (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; multipliers of Stafford's mix
13). Integer arithmetic only up to the last multiplication by 2^-53: every machine draws the same.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


class Stream(IntEnum):
    """What a number is drawn for; each purpose has its own sequence."""

    SHORT = 0
    """Whether a segment is cut, and where."""
    NUMBER_TO_MASK = 1
    SPANS = 2
    REPLACEMENTS = 3


def mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Output function of SplitMix64, a bijection of uint64 in which every bit depends on every other."""
    words = (words ^ (words >> np.uint64(30))) * _MULTIPLIER_1
    words = (words ^ (words >> np.uint64(27))) * _MULTIPLIER_2
    return words ^ (words >> np.uint64(31))


def absorb(keys: NDArray[np.uint64], words: ArrayLike) -> NDArray[np.uint64]:
    """New keys from keys uint64 [...] and one more integer each, of any sign below 2^64 in size."""
    if isinstance(words, int):
        words = np.array([words & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64)
    return mix((keys ^ np.asarray(words).astype(np.uint64)) + _GOLDEN)


def derive_seed(seed: int, *words: int) -> int:
    """An independent seed for a part of a run, such as its second phase; below 2^63."""
    key = np.zeros(1, dtype=np.uint64)
    for word in (seed, *words):
        key = absorb(key, word)
    return int(key[0] >> np.uint64(1))


class CounterRandom:
    """Random numbers for a batch, in which those of a sample depend on that sample only.

    Args:
        seed: of the run.
        epochs: int64 [B].
        samples: int64 [B].
    """

    def __init__(self, seed: int, epochs: NDArray[np.int64], samples: NDArray[np.int64]):
        self._keys = absorb(absorb(absorb(np.zeros(1, dtype=np.uint64), seed), epochs), samples)

    def __len__(self) -> int:
        return len(self._keys)

    def rows(self, rows: NDArray[np.integer]) -> "CounterRandom":
        """The generator of some samples of the batch only."""
        part = object.__new__(CounterRandom)
        part._keys = self._keys[rows]
        return part

    def uniform(self, stream: Stream, counters: ArrayLike) -> NDArray[np.float64]:
        """Numbers in [0, 1) on a grid of 2^-53.

        Args:
            stream: what for.
            counters: which numbers of the stream, int [K] for all samples or [B, K].

        Returns:
            float64 [B, K].
        """
        keys = absorb(self._keys, int(stream))[:, None]
        bits = mix(keys + np.asarray(counters).astype(np.uint64) * _GOLDEN)
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(
        self, stream: Stream, counters: ArrayLike, low: ArrayLike, high: ArrayLike
    ) -> NDArray[np.int64]:
        """Integers in [low, high), int64 [B, K]; the bias is below (high - low) / 2^53."""
        return scale(self.uniform(stream, counters), low, high)


def scale(uniform: NDArray[np.float64], low: ArrayLike, high: ArrayLike) -> NDArray[np.int64]:
    """Turns numbers in [0, 1) into integers in [low, high)."""
    low = np.asarray(low)
    return low + (uniform * (np.asarray(high) - low)).astype(np.int64)
