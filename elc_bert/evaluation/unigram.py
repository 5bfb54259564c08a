"""How well one can guess tokens without any context: what a model has to beat."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.sampling.masking import NUM_SPECIAL

TOKENS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Unigram:
    """The distribution of the tokens of a text, whatever surrounds them."""

    entropy: float
    """In nats: the lowest loss that one and the same guess everywhere can have on this text."""
    top_token: int
    """The most frequent token."""
    top_share: float
    """Its share: the highest accuracy that one and the same guess everywhere can have."""


def unigram(tokens: NDArray[np.integer]) -> Unigram:
    """Measures a token stream, special tokens left out: they are never masked.

    Args:
        tokens: ids, [N], with at least one that is not special; may be memory-mapped.
    """
    counts = np.zeros(0, dtype=np.int64)
    for begin in range(0, len(tokens), TOKENS_AT_ONCE):
        part = np.bincount(tokens[begin : begin + TOKENS_AT_ONCE], minlength=len(counts))
        part[: len(counts)] += counts
        counts = part
    counts[:NUM_SPECIAL] = 0
    shares = counts[counts > 0] / counts.sum()
    top = int(counts.argmax())
    return Unigram(
        entropy=float(-(shares * np.log(shares)).sum()),
        top_token=top,
        top_share=float(counts[top] / counts.sum()),
    )
