"""Counter-based random numbers: each one is a pure function of a key and a counter.

A key is made from (seed, epoch, sample, stream), folded in one after the other with the output function of
SplitMix64. The counter then selects a number of the SplitMix64 sequence that starts at the key (Steele, Lea
and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; multipliers of Stafford's mix 13).
All arithmetic is on integers, except for a final multiplication by 2^-53, so every machine draws the same
numbers.

Shapes: ``B`` samples of a batch, ``N`` numbers to draw.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)

BITS = 53
"""Number of bits of a random integer, as many as a float64 holds exactly."""


class Stream(IntEnum):
    """Purpose that a number is drawn for; each purpose has an independent sequence."""

    SHORT = 0
    """Draw that decides whether a segment is shortened, and to which length."""
    NUMBER_TO_MASK = 1
    """Number of tokens to mask."""
    SPANS = 2
    """Length, offset and kind of each span."""
    REPLACEMENTS = 3
    """Random replacement tokens."""


def mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the output function of SplitMix64, a bijection that mixes all bits of a uint64."""
    words = words ^ (words >> np.uint64(30))
    words *= _MULTIPLIER_1
    words ^= words >> np.uint64(27)
    words *= _MULTIPLIER_2
    words ^= words >> np.uint64(31)
    return words


def fold_in(keys: NDArray[np.uint64], words: ArrayLike) -> NDArray[np.uint64]:
    """Derive new keys from uint64 keys and one integer for each, of either sign and below 2^64 in size."""
    if isinstance(words, int):
        words = np.array([words & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64)
    return mix((keys ^ np.asarray(words).astype(np.uint64)) + _GOLDEN)


def derive_seed(seed: int, *words: int) -> int:
    """Derive an independent seed below 2^63 for a part of a run, such as its second phase."""
    key = np.zeros(1, dtype=np.uint64)
    for word in (seed, *words):
        key = fold_in(key, word)
    return int(key[0] >> np.uint64(1))


class CounterRandom:
    """Random numbers for a batch; the numbers of a sample are independent of the rest of the batch.

    Counters select the numbers to draw. Their last axis corresponds to the samples of the batch, int
    ``[..., B]`` or ``[..., 1]``, or, if ``rows`` is given as int ``[N]``, to those samples only, int
    ``[..., N]`` or ``[..., 1]``.

    Args:
        seed: Seed of the run, or of each sample, int64 ``[B]``.
        epochs: Epoch of each sample, int64 ``[B]``.
        samples: Index of each sample in its dataset, int64 ``[B]``.
    """

    def __init__(
        self, seed: int | NDArray[np.int64], epochs: NDArray[np.int64], samples: NDArray[np.int64]
    ) -> None:
        keys = fold_in(fold_in(fold_in(np.zeros(1, dtype=np.uint64), seed), epochs), samples)
        self._keys = fold_in(keys, np.array(Stream)[:, None])

    def bits(
        self, stream: Stream, counters: ArrayLike, rows: NDArray[np.integer] | None = None
    ) -> NDArray[np.uint64]:
        """Draw integers from 0 to 2^53 - 1.

        Args:
            stream: Purpose of the numbers.
            counters: Counters of the numbers in the stream.
            rows: Indices of samples in the batch, all by default.

        Returns:
            Integers, uint64 ``[..., B or N]``.
        """
        keys = self._keys[stream] if rows is None else self._keys[stream][rows]
        words = mix(keys + np.atleast_1d(counters).astype(np.uint64) * _GOLDEN)
        words >>= np.uint64(64 - BITS)
        return words

    def uniform(
        self, stream: Stream, counters: ArrayLike, rows: NDArray[np.integer] | None = None
    ) -> NDArray[np.float64]:
        """Draw multiples of 2^-53 in [0, 1), float64 ``[..., B or N]``; see ``bits`` for the arguments."""
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
        """Draw integers in [low, high), int64 ``[..., B or N]``, with a bias below (high - low) / 2^53."""
        return scale(self.uniform(stream, counters, rows), low, high)


def scale(uniform: NDArray[np.float64], low: ArrayLike, high: ArrayLike) -> NDArray[np.int64]:
    """Scale numbers in [0, 1) to integers in [low, high)."""
    low = np.asarray(low)
    scaled: NDArray[np.int64] = low + (uniform * (np.asarray(high) - low)).astype(np.int64)
    return scaled
