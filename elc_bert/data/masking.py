"""Span masking: which tokens are to be predicted, and what stands in their place.

Shapes: `B` samples, `T` tokens of a sample, `A` samples that still need spans, `S` longest span.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.random import CounterRandom, Stream, scale
from elc_bert.data.vocabulary import MASK
from elc_bert.errors import UserError

NUM_SPECIAL = 6
"""Ids below are never masked. The tokenizers have 7 special tokens: the reference masks `[TAB]`."""
FIRST_REPLACEMENT_ID = 5
"""Lowest id of a random replacement. The reference draws `[PAR]` and `[TAB]` too."""
NOT_PREDICTED = -100
MAX_TRIES = 100
MAX_SPAN = 9
CONTINUE_SPAN = 2 / 3
"""Probability that a span goes on after a token, before its length is taken modulo `MAX_SPAN` + 1."""

# P(length < k) for k = 1..MAX_SPAN of a geometric length, from 1 up, modulo MAX_SPAN + 1: comparing
# with a table, unlike taking a logarithm, gives the same length on every machine.
_WRAPS = 1 - CONTINUE_SPAN ** (MAX_SPAN + 1)
_ZERO = (1 - CONTINUE_SPAN) * CONTINUE_SPAN**MAX_SPAN / _WRAPS
_SPAN_THRESHOLDS = np.array([_ZERO + (1 - CONTINUE_SPAN**k) / _WRAPS for k in range(MAX_SPAN)])


@dataclass(frozen=True, kw_only=True)
class Masking:
    """How samples are masked and shortened.

    Raises:
        UserError: a probability is outside of [0, 1], or `random_p` + `keep_p` is over 1.
    """

    mask_p: float = 0.15
    """Expected share of the non-special tokens to mask, before the last span's overshoot."""
    random_p: float = 0.1
    """Share of the spans that get random tokens."""
    keep_p: float = 0.1
    """Share of the spans that stay as they are; the rest becomes `[MASK]`."""
    short_p: float = 0.1
    """Share of the segments that are cut to a uniform random length."""

    def __post_init__(self) -> None:
        for name in ("mask_p", "random_p", "keep_p", "short_p"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"{name} is {value}, but a probability lies between 0 and 1")
        if self.random_p + self.keep_p > 1:
            raise UserError(
                f"random_p + keep_p is {self.random_p + self.keep_p}, more than 1; lower one of them"
            )


def mask_spans(
    tokens: NDArray[np.int64],
    lengths: NDArray[np.int64],
    vocab_size: int,
    masking: Masking,
    random: CounterRandom,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Masks a batch; `mask_spans_plainly` is the definition, which this equals exactly.

    Args:
        tokens: ids, special tokens included, int64 [B, T].
        lengths: tokens of each sample before the padding, int64 [B].
        vocab_size: random replacements are drawn below it.
        masking: the probabilities.
        random: the generator of the batch's samples.

    Returns:
        What the model reads, int64 [B, T], and what it is to predict, int64 [B, T] with
        `NOT_PREDICTED` where it predicts nothing.
    """
    inputs, width = tokens.copy(), tokens.shape[1]
    masked = np.zeros(tokens.shape, dtype=bool)
    maskable = tokens >= NUM_SPECIAL
    chosen = random.uniform(Stream.NUMBER_TO_MASK, np.arange(width)) < masking.mask_p
    missing = (chosen & maskable).sum(axis=1)
    active = np.flatnonzero(missing > 0)
    steps = np.arange(MAX_SPAN)
    for attempt in range(MAX_TRIES):
        if active.size == 0:
            break
        draws = random.rows(active)
        span, offset, kind = draws.uniform(Stream.SPANS, 3 * attempt + np.arange(3)).T
        size = np.searchsorted(_SPAN_THRESHOLDS, span, side="right")
        first = scale(offset, 1 - size, lengths[active] + size)
        places = first[:, None] + steps  # [A, S]
        inside = (steps < size[:, None]) & (places >= 0) & (places < width)
        cells = active[:, None] * width + places.clip(0, width - 1)
        hit = inside & maskable.ravel()[cells]
        is_random = (kind < masking.random_p)[:, None] & hit
        is_kept = (kind >= masking.random_p) & (kind < masking.random_p + masking.keep_p)
        new = tokens.ravel()[cells]
        new[~is_kept] = MASK
        rows = np.flatnonzero(is_random.any(axis=1))
        replacements = draws.rows(rows).integers(
            Stream.REPLACEMENTS, MAX_SPAN * attempt + steps, FIRST_REPLACEMENT_ID, vocab_size
        )
        new[rows] = replacements
        missing[active] -= (hit & ~masked.ravel()[cells]).sum(axis=1)
        inputs.ravel()[cells[hit]] = new[hit]
        masked.ravel()[cells[hit]] = True
        active = active[missing[active] > 0]
    return inputs, np.where(masked, tokens, NOT_PREDICTED)


def mask_spans_plainly(
    tokens: NDArray[np.int64],
    lengths: NDArray[np.int64],
    vocab_size: int,
    masking: Masking,
    random: CounterRandom,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The definition of `mask_spans`, one sample and one token at a time."""
    inputs, labels = tokens.copy(), np.full_like(tokens, NOT_PREDICTED)
    for b, row in enumerate(tokens.tolist()):
        draws = random.rows(np.array([b]))
        maskable = [t for t, token in enumerate(row) if token >= NUM_SPECIAL]
        chosen = draws.uniform(Stream.NUMBER_TO_MASK, np.arange(len(row)))[0] < masking.mask_p
        number_to_mask = sum(bool(chosen[t]) for t in maskable)
        done: set[int] = set()
        for attempt in range(MAX_TRIES):
            if len(done) >= number_to_mask:
                break
            span, offset, kind = draws.uniform(Stream.SPANS, 3 * attempt + np.arange(3))[0]
            size = sum(bool(threshold <= span) for threshold in _SPAN_THRESHOLDS)
            # A span may stick out on the left, and out or fall wholly beyond on the right: edges are
            # covered as often as the middle, and long spans are slightly rarer in short samples.
            low, high = 1 - size, int(lengths[b]) + size
            first = low + int(offset * (high - low))
            for step in range(size):
                t = first + step
                if t not in maskable:
                    continue
                if kind < masking.random_p:
                    inputs[b, t] = draws.integers(
                        Stream.REPLACEMENTS, [MAX_SPAN * attempt + step], FIRST_REPLACEMENT_ID, vocab_size
                    )[0, 0]
                elif kind < masking.random_p + masking.keep_p:
                    inputs[b, t] = row[t]
                else:
                    inputs[b, t] = MASK
                labels[b, t] = row[t]
                done.add(t)
    return inputs, labels
