"""Span masking: which tokens are to be predicted, and what stands in their place.

Shapes: `B` samples, `T` tokens of a sample, `A` samples that still need spans, `N` spans of all of these,
`C` places that the spans cover, counted again for each span.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.format.vocabulary import MASK
from elc_bert.data.sampling.random import BITS, CounterRandom, Stream, scale
from elc_bert.utils.errors import UserError

NUM_SPECIAL = 6
"""Ids below are never masked. The tokenizers have 7 special tokens: the reference masks `[TAB]`."""
FIRST_REPLACEMENT_ID = 5
"""Lowest id of a random replacement. The reference draws `[PAR]` and `[TAB]` too."""
MAX_TRIES = 100
MAX_SPAN = 9
CONTINUE_SPAN = 2 / 3
"""Probability that a span goes on after a token, before its length is taken modulo `MAX_SPAN` + 1."""

# P(length < k) for k = 1..MAX_SPAN of a geometric length, from 1 up, modulo MAX_SPAN + 1: comparing
# with a table, unlike taking a logarithm, gives the same length on every machine.
_WRAPS = 1 - CONTINUE_SPAN ** (MAX_SPAN + 1)
_ZERO = (1 - CONTINUE_SPAN) * CONTINUE_SPAN**MAX_SPAN / _WRAPS
_SPAN_THRESHOLDS = np.array([_ZERO + (1 - CONTINUE_SPAN**k) / _WRAPS for k in range(MAX_SPAN)])

BLOCK = 64
"""Tokens whose number to mask is one draw from a binomial; a sample of more adds up several of them."""


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
    tokens: NDArray[np.int32],
    lengths: NDArray[np.integer],
    vocab_size: int,
    masking: Masking,
    random: CounterRandom,
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Masks a batch; `mask_spans_plainly` is the definition, which this equals exactly.

    All spans that a sample may need are drawn at once, and those after the one that reached the number to
    mask are dropped. A sample for which they were too few gets more of them in another round.

    Args:
        tokens: ids, special tokens included, int32 [B, T].
        lengths: tokens of each sample before the padding, int [B].
        vocab_size: random replacements are drawn below it.
        masking: the probabilities.
        random: the generator of the batch's samples.

    Returns:
        What the model reads, int32 [B, T], and where it is to predict the token, bool [B, T].
    """
    width = tokens.shape[1]
    inputs, maskable = tokens.copy(), tokens >= NUM_SPECIAL
    free = maskable.copy()
    missing = _numbers_to_mask(maskable.sum(axis=1), width, masking.mask_p, random)
    tried = np.zeros_like(missing)
    first_span = np.empty(tokens.size, dtype=np.int32)
    active = np.flatnonzero(missing > 0)
    while active.size:
        tries = np.minimum(missing[active] * 2 // 3 + 4, MAX_TRIES - tried[active])
        begins = np.cumsum(tries) - tries
        rows = np.repeat(active, tries)
        attempts = np.arange(len(rows)) - np.repeat(begins - tried[active], tries)
        length, offset, kind = random.uniform(Stream.SPANS, 3 * attempts + np.arange(3)[:, None], rows)
        sizes = np.searchsorted(_SPAN_THRESHOLDS, length, side="right")
        firsts = scale(offset, 1 - sizes, lengths[rows] + sizes)
        cells, spans = _covered(rows, firsts, sizes, lengths, width)

        # Of several values for one index numpy keeps the last, so that backwards the first span remains.
        first_span[cells[::-1]] = spans[::-1]
        is_new = free.ravel()[cells] & (first_span[cells] == spans)
        new = np.bincount(spans[is_new], minlength=len(rows))
        before = np.cumsum(new) - new
        needed = before - np.repeat(before[begins], tries) < missing[rows]

        hit = np.flatnonzero(needed[spans] & maskable.ravel()[cells])
        cells, spans = cells[hit], spans[hit]
        is_kept = (kind >= masking.random_p) & (kind < masking.random_p + masking.keep_p)
        values = np.where(is_kept[spans], tokens.ravel()[cells], MASK)
        is_random = np.flatnonzero((kind < masking.random_p)[spans])
        span, cell = spans[is_random], cells[is_random]
        counters = MAX_SPAN * attempts[span] + cell - (rows * width + firsts)[span]
        values[is_random] = random.integers(
            Stream.REPLACEMENTS, counters, FIRST_REPLACEMENT_ID, vocab_size, rows[span]
        )
        inputs.ravel()[cells] = values  # again the last span wins
        free.ravel()[cells] = False
        missing[active] -= np.add.reduceat(np.where(needed, new, 0), begins)
        tried[active] += tries
        active = active[(missing[active] > 0) & (tried[active] < MAX_TRIES)]
    return inputs, maskable & ~free


def _covered(
    rows: NDArray[np.int64],
    firsts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    lengths: NDArray[np.integer],
    width: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places that spans cover within their samples, span by span.

    Args:
        rows: sample of each span, int64 [N].
        firsts: place of its first token, which may lie outside of the sample, int64 [N].
        sizes: number of its tokens, int64 [N].
        lengths: of the samples, int [B].
        width: `T`.

    Returns:
        Places b * T + t, and the number of the span that each belongs to, both int64 [C].
    """
    inside = np.maximum(firsts, 0)
    counts = np.maximum(np.minimum(firsts + sizes, lengths[rows]) - inside, 0)
    spans = np.repeat(np.arange(len(rows)), counts)
    starts = rows * width + inside - (np.cumsum(counts) - counts)
    return starts[spans] + np.arange(len(spans)), spans


def _numbers_to_mask(
    maskable: NDArray[np.int64], width: int, probability: float, random: CounterRandom
) -> NDArray[np.int64]:
    """Draws from the binomials of some numbers of tokens, each up to `width`, int64 [B]."""
    blocks = np.arange(-(-width // BLOCK))[:, None]
    sizes = (maskable - BLOCK * blocks).clip(0, BLOCK)
    draws = random.bits(Stream.NUMBER_TO_MASK, blocks)
    # Row n of the table begins at n (n - 1) / 2; its number in the high bits sorts all rows into one.
    keys = (sizes.astype(np.uint64) << np.uint64(BITS)) | draws
    found = np.searchsorted(_binomial_table(probability), keys, side="right")
    return (found - sizes * (sizes - 1) // 2).sum(axis=0)


@functools.cache
def _binomial_table(probability: float) -> NDArray[np.uint64]:
    """`n * 2^BITS` plus `binomial_thresholds(probability)[n]`, for all n on end: ascending uint64."""
    rows = binomial_thresholds(probability)
    return np.concatenate([row + (np.uint64(n) << np.uint64(BITS)) for n, row in enumerate(rows)])


def binomial_thresholds(probability: float) -> list[NDArray[np.uint64]]:
    """How to draw from a binomial: as many of row n as a random integer of `BITS` bits reaches.

    Returns:
        For each number of tokens n up to `BLOCK`, P(at most k of them) * 2^BITS, rounded down, for
        k = 0..n-1, uint64 [n]. The arithmetic is that of IEEE, so the same on every machine.
    """
    rows = [np.zeros(0)]
    for _ in range(BLOCK):
        # P(at most k of n + 1) = P(the last is not) P(at most k of n) + P(it is) P(at most k - 1 of n).
        row = np.append(rows[-1], 1.0)
        rows.append((1.0 - probability) * row + probability * np.append(0.0, row[:-1]))
    return [(row * 2.0**BITS).astype(np.uint64) for row in rows]


def mask_spans_plainly(
    tokens: NDArray[np.int32],
    lengths: NDArray[np.integer],
    vocab_size: int,
    masking: Masking,
    random: CounterRandom,
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The definition of `mask_spans`, one sample and one token at a time."""
    inputs, masked = tokens.copy(), np.zeros(tokens.shape, dtype=bool)
    thresholds = binomial_thresholds(masking.mask_p)
    for b, row in enumerate(tokens.tolist()):
        sample = np.array([b])
        maskable = [t for t, token in enumerate(row) if token >= NUM_SPECIAL]
        number_to_mask = 0
        for block, begin in enumerate(range(0, len(maskable), BLOCK)):
            draw = random.bits(Stream.NUMBER_TO_MASK, block, sample)[0]
            size = len(maskable[begin : begin + BLOCK])
            number_to_mask += sum(bool(threshold <= draw) for threshold in thresholds[size])
        for attempt in range(MAX_TRIES):
            if masked[b].sum() >= number_to_mask:
                break
            counters = 3 * attempt + np.arange(3)[:, None]
            length, offset, kind = random.uniform(Stream.SPANS, counters, sample)[:, 0]
            size = sum(bool(threshold <= length) for threshold in _SPAN_THRESHOLDS)
            # A span may stick out on the left, and out or fall wholly beyond on the right: edges are
            # covered as often as the middle, and long spans are slightly rarer in short samples.
            low, high = 1 - size, int(lengths[b]) + size
            first = low + int(offset * (high - low))
            for step in range(size):
                t = first + step
                if t not in maskable:
                    continue
                if kind < masking.random_p:
                    inputs[b, t] = random.integers(
                        Stream.REPLACEMENTS,
                        MAX_SPAN * attempt + step,
                        FIRST_REPLACEMENT_ID,
                        vocab_size,
                        sample,
                    )[0]
                elif kind < masking.random_p + masking.keep_p:
                    inputs[b, t] = row[t]
                else:
                    inputs[b, t] = MASK
                masked[b, t] = True
    return inputs, masked
