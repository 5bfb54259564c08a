"""The best loss and accuracy without context, a baseline that a trained model has to beat."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.sampling.masking import NUM_SPECIAL

CHUNK_TOKENS = 1 << 24
"""Number of tokens that are counted at a time."""


@dataclass(frozen=True)
class UnigramBaseline:
    """Statistics of the token frequencies of a text."""

    entropy: float
    """Unigram entropy in nats: the lowest loss of a model that predicts the same distribution everywhere."""
    top_token: int
    """The most frequent token."""
    top_share: float
    """Relative frequency of ``top_token``: the highest accuracy of a model that always predicts one token."""


def unigram_baseline(tokens: NDArray[np.integer]) -> UnigramBaseline:
    """Return the baseline for a token stream, without special tokens, which are never masked.

    Args:
        tokens: Token ids ``[N]``, at least one of them not special; may be memory-mapped.
    """
    counts = np.zeros(0, dtype=np.int64)
    for begin in range(0, len(tokens), CHUNK_TOKENS):
        part = np.bincount(tokens[begin : begin + CHUNK_TOKENS], minlength=len(counts))
        part[: len(counts)] += counts
        counts = part
    counts[:NUM_SPECIAL] = 0
    shares = counts[counts > 0] / counts.sum()
    top = int(counts.argmax())
    return UnigramBaseline(
        entropy=float(-(shares * np.log(shares)).sum()),
        top_token=top,
        top_share=float(counts[top] / counts.sum()),
    )
