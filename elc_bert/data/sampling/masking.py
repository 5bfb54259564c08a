"""Span masking: choice of the tokens to predict and of their replacements.

Shapes: ``B`` samples of ``T`` tokens, ``N`` spans of all samples, ``C`` positions that the spans cover (a
position covered by two spans counts twice).
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.format.vocabulary import USUAL_TOKENS, SpecialTokens
from elc_bert.data.sampling.random import BITS, CounterRandom, Stream, scale
from elc_bert.utils.errors import UserError

MAX_TRIES = 100
"""Maximum number of spans tried for a sample."""
MAX_SPAN = 9
"""Maximum length of a span."""
CONTINUE_SPAN = 2 / 3
"""Probability that a span continues after a token, before its length is taken modulo ``MAX_SPAN`` + 1."""

# P(length < k) for k = 1..MAX_SPAN, where length is geometric (from 1 up) modulo MAX_SPAN + 1. Unlike a
# logarithm, a comparison with a table gives the same length on every machine.
_WRAPS = 1 - CONTINUE_SPAN ** (MAX_SPAN + 1)
_ZERO = (1 - CONTINUE_SPAN) * CONTINUE_SPAN**MAX_SPAN / _WRAPS
_SPAN_THRESHOLDS = np.array([_ZERO + (1 - CONTINUE_SPAN**k) / _WRAPS for k in range(MAX_SPAN)])

BLOCK = 64
"""Number of tokens for which one binomial number is drawn; longer samples add up several draws."""


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Probabilities and special tokens with which samples are masked and shortened.

    Raises:
        UserError: A probability is not between 0 and 1, or ``random_p`` + ``keep_p`` exceeds 1.
    """

    mask_p: float = 0.15
    """Expected share of the non-special tokens to mask; the last span may exceed it."""
    random_p: float = 0.1
    """Share of the spans that are replaced by random tokens."""
    keep_p: float = 0.1
    """Share of the spans that are left unchanged; the rest is replaced by ``[MASK]``."""
    short_p: float = 0.1
    """Share of the segments that are shortened to a uniform random length."""
    special: SpecialTokens = USUAL_TOKENS
    """Ids of the special tokens, some of which are never masked and never drawn as replacements."""

    def __post_init__(self) -> None:
        for name in ("mask_p", "random_p", "keep_p", "short_p"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"{name} is {value}, but a probability must be between 0 and 1; change it")
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
    """Mask a batch; bit-identical to ``mask_spans_reference``, which is the definition.

    As many spans as a sample probably needs are drawn at once, and the spans after the one that reaches the
    number of tokens to mask are dropped. Samples for which these spans were too few get more of them in
    another round.

    Args:
        tokens: Token ids with special tokens and padding, int32 ``[B, T]``.
        lengths: Number of tokens of each sample, without padding, int ``[B]``.
        vocab_size: Vocabulary size; random replacements are drawn below it.
        masking: Masking probabilities and special tokens.
        random: Random numbers of the batch's samples.

    Returns:
        Token ids after masking, int32 ``[B, T]``, and a mask of the positions to predict, bool ``[B, T]``.
    """
    width = tokens.shape[1]
    inputs, maskable = tokens.copy(), _is_maskable(tokens, masking.special)
    replacements = replacement_ids(masking.special, vocab_size)
    free = maskable.copy()
    missing = _numbers_to_mask(maskable.sum(axis=1), width, masking.mask_p, random)
    tried = np.zeros_like(missing)
    first_span = np.empty(tokens.size, dtype=np.int32)
    active = np.flatnonzero(missing > 0)
    while active.size:
        tries = np.minimum(missing[active] * 2 // 3 + 4, MAX_TRIES - tried[active])
        starts = np.cumsum(tries) - tries
        rows = np.repeat(active, tries)
        attempts = np.arange(len(rows)) - np.repeat(starts - tried[active], tries)
        length, offset, kind = random.uniform(Stream.SPANS, 3 * attempts + np.arange(3)[:, None], rows)
        sizes = np.searchsorted(_SPAN_THRESHOLDS, length, side="right")
        firsts = scale(offset, 1 - sizes, lengths[rows] + sizes)
        cells, spans = _covered_positions(rows, firsts, sizes, lengths, width)

        # NumPy keeps the last of several values assigned to an index; reversed, that is the first span.
        first_span[cells[::-1]] = spans[::-1]
        is_new = free.ravel()[cells] & (first_span[cells] == spans)
        new = np.bincount(spans[is_new], minlength=len(rows))
        before = np.cumsum(new) - new
        needed = before - np.repeat(before[starts], tries) < missing[rows]

        hit = np.flatnonzero(needed[spans] & maskable.ravel()[cells])
        cells, spans = cells[hit], spans[hit]
        is_kept = (kind >= masking.random_p) & (kind < masking.random_p + masking.keep_p)
        values = np.where(is_kept[spans], tokens.ravel()[cells], masking.special.mask)
        is_random = np.flatnonzero((kind < masking.random_p)[spans])
        span, cell = spans[is_random], cells[is_random]
        counters = MAX_SPAN * attempts[span] + cell - (rows * width + firsts)[span]
        drawn = random.integers(Stream.REPLACEMENTS, counters, 0, len(replacements), rows[span])
        values[is_random] = replacements[drawn]
        inputs.ravel()[cells] = values  # Here the last span wins.
        free.ravel()[cells] = False
        missing[active] -= np.add.reduceat(np.where(needed, new, 0), starts)
        tried[active] += tries
        active = active[(missing[active] > 0) & (tried[active] < MAX_TRIES)]
    return inputs, maskable & ~free


def _is_maskable(tokens: NDArray[np.int32], special: SpecialTokens) -> NDArray[np.bool_]:
    """Return where tokens may be masked, bool ``[B, T]``."""
    count = len(special.never_masked)
    if special.never_masked == frozenset(range(count)):  # the usual ids, with one comparison
        return tokens >= count
    maskable = np.ones(tokens.shape, dtype=np.bool_)
    for token in special.never_masked:
        maskable &= tokens != token
    return maskable


@functools.cache
def replacement_ids(special: SpecialTokens, vocab_size: int) -> NDArray[np.int32]:
    """Return the ids that can be random replacements, in increasing order, int32."""
    return np.setdiff1d(np.arange(vocab_size, dtype=np.int32), sorted(special.never_drawn))


def _covered_positions(
    rows: NDArray[np.int64],
    firsts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    lengths: NDArray[np.integer],
    width: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions that spans cover within their samples, span by span.

    Args:
        rows: Sample of each span, int64 ``[N]``.
        firsts: Position of the span's first token, which may lie outside of the sample, int64 ``[N]``.
        sizes: Number of the span's tokens, int64 ``[N]``.
        lengths: Number of tokens of each sample, int ``[B]``.
        width: Row length ``T``.

    Returns:
        Flat positions b * T + t, and the index of the span that each belongs to, both int64 ``[C]``.
    """
    inside = np.maximum(firsts, 0)
    counts = np.maximum(np.minimum(firsts + sizes, lengths[rows]) - inside, 0)
    spans = np.repeat(np.arange(len(rows)), counts)
    starts = rows * width + inside - (np.cumsum(counts) - counts)
    return starts[spans] + np.arange(len(spans)), spans


def _numbers_to_mask(
    maskable: NDArray[np.int64], width: int, probability: float, random: CounterRandom
) -> NDArray[np.int64]:
    """Draw the number of tokens to mask from a binomial distribution, int64 ``[B]``.

    Args:
        maskable: Number of maskable tokens of each sample, at most ``width``, int64 ``[B]``.
        width: Row length ``T``.
        probability: Probability of masking a token.
        random: Random numbers of the batch's samples.
    """
    blocks = np.arange(-(-width // BLOCK))[:, None]
    sizes = (maskable - BLOCK * blocks).clip(0, BLOCK)
    draws = random.bits(Stream.NUMBER_TO_MASK, blocks)
    # Row n of the table starts at n (n - 1) / 2. With n in the high bits, all rows form one sorted array.
    keys = (sizes.astype(np.uint64) << np.uint64(BITS)) | draws
    found = np.searchsorted(_binomial_table(probability), keys, side="right")
    numbers: NDArray[np.int64] = (found - sizes * (sizes - 1) // 2).sum(axis=0)
    return numbers


@functools.cache
def _binomial_table(probability: float) -> NDArray[np.uint64]:
    """Concatenate ``n * 2^BITS + binomial_thresholds(probability)[n]`` for all n: ascending uint64."""
    rows = binomial_thresholds(probability)
    return np.concatenate([row + (np.uint64(n) << np.uint64(BITS)) for n, row in enumerate(rows)])


def binomial_thresholds(probability: float) -> list[NDArray[np.uint64]]:
    """Return tables to draw from binomial distributions.

    A draw for n tokens is the number of entries of row n that do not exceed a random ``BITS``-bit integer.

    Returns:
        For each number of tokens n up to ``BLOCK``, P(at most k tokens) * 2^BITS, rounded down, for
        k = 0..n-1, uint64 ``[n]``. Only IEEE additions and multiplications are used, so the tables are the
        same on every machine.
    """
    rows = [np.zeros(0)]
    for _ in range(BLOCK):
        # P(at most k of n + 1) = (1 - p) P(at most k of n) + p P(at most k - 1 of n).
        row = np.append(rows[-1], 1.0)
        rows.append((1.0 - probability) * row + probability * np.append(0.0, row[:-1]))
    return [(row * 2.0**BITS).astype(np.uint64) for row in rows]


def mask_spans_reference(
    tokens: NDArray[np.int32],
    lengths: NDArray[np.integer],
    vocab_size: int,
    masking: Masking,
    random: CounterRandom,
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Mask a batch, one sample and one token at a time; this is the definition of ``mask_spans``.

    The arguments are those of ``mask_spans``.
    """
    inputs, masked = tokens.copy(), np.zeros(tokens.shape, dtype=bool)
    replacements = [token for token in range(vocab_size) if token not in masking.special.never_drawn]
    thresholds = binomial_thresholds(masking.mask_p)
    for b, row in enumerate(tokens.tolist()):
        sample = np.array([b])
        maskable = [t for t, token in enumerate(row) if token not in masking.special.never_masked]
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
            # A span may extend beyond the left end, and may extend beyond the right end or lie wholly
            # outside of it. So the ends are covered as often as the middle, and long spans are slightly
            # rarer in short samples.
            low, high = 1 - size, int(lengths[b]) + size
            first = low + int(offset * (high - low))
            for step in range(size):
                t = first + step
                if t not in maskable:
                    continue
                if kind < masking.random_p:
                    counter = MAX_SPAN * attempt + step
                    drawn = random.integers(Stream.REPLACEMENTS, counter, 0, len(replacements), sample)[0]
                    inputs[b, t] = replacements[drawn]
                elif kind < masking.random_p + masking.keep_p:
                    inputs[b, t] = row[t]
                else:
                    inputs[b, t] = masking.special.mask
                masked[b, t] = True
    return inputs, masked
