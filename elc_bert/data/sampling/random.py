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

BITS = 53
"""Of a random integer: as many as a float64 holds exactly."""


class Stream(IntEnum):
    """What a number is drawn for; each purpose has its own sequence."""

    SHORT = 0
    """Whether a segment is cut, and where."""
    NUMBER_TO_MASK = 1
    SPANS = 2
    REPLACEMENTS = 3


def mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Output function of SplitMix64, a bijection of uint64 in which every bit depends on every other."""
    words = words ^ (words >> np.uint64(30))
    words *= _MULTIPLIER_1
    words ^= words >> np.uint64(27)
    words *= _MULTIPLIER_2
    words ^= words >> np.uint64(31)
    return words


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

    Numbers are asked for by counters whose last axis goes along the samples, int [..., B] or [..., 1]. With
    `rows`, int [N], it goes along these samples of the batch instead: [..., N] or [..., 1].

    Args:
        seed: of the run, or of each sample, int64 [B].
        epochs: int64 [B].
        samples: int64 [B].
    """

    def __init__(self, seed: int | NDArray[np.int64], epochs: NDArray[np.int64], samples: NDArray[np.int64]):
        keys = absorb(absorb(absorb(np.zeros(1, dtype=np.uint64), seed), epochs), samples)
        self._keys = absorb(keys, np.array(Stream)[:, None])

    def bits(
        self, stream: Stream, counters: ArrayLike, rows: NDArray[np.integer] | None = None
    ) -> NDArray[np.uint64]:
        """Integers in [0, 2^53).

        Args:
            stream: what for.
            counters: which numbers of the stream.
            rows: of which samples; all by default.

        Returns:
            uint64 [..., B or N].
        """
        keys = self._keys[stream] if rows is None else self._keys[stream][rows]
        words = mix(keys + np.atleast_1d(counters).astype(np.uint64) * _GOLDEN)
        words >>= np.uint64(64 - BITS)
        return words

    def uniform(
        self, stream: Stream, counters: ArrayLike, rows: NDArray[np.integer] | None = None
    ) -> NDArray[np.float64]:
        """Numbers in [0, 1) on a grid of 2^-53, float64 [..., B or N]; see `bits`."""
        uniform = self.bits(stream, counters, rows).astype(np.float64)
        uniform *= 2.0**-BITS
        return uniform

    def integers(
        self,
        stream: Stream,
        counters: ArrayLike,
        low: ArrayLike,
        high: ArrayLike,
        rows: NDArray[np.integer] | None = None,
    ) -> NDArray[np.int64]:
        """Integers in [low, high), int64 [..., B or N]; the bias is below (high - low) / 2^53."""
        return scale(self.uniform(stream, counters, rows), low, high)


def scale(uniform: NDArray[np.float64], low: ArrayLike, high: ArrayLike) -> NDArray[np.int64]:
    """Turns numbers in [0, 1) into integers in [low, high)."""
    low = np.asarray(low)
    return low + (uniform * (np.asarray(high) - low)).astype(np.int64)
