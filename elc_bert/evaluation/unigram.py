"""The best loss and accuracy without context, a baseline that a trained model has to beat."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.format.vocabulary import USUAL_TOKENS, SpecialTokens

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


def unigram_baseline(tokens: NDArray[np.integer], special: SpecialTokens = USUAL_TOKENS) -> UnigramBaseline:
    """Return the baseline for a token stream, without special tokens, which are never masked.

    Args:
        tokens: Token ids ``[N]``, at least one of them not special; may be memory-mapped.
        special: Ids of the special tokens.
    """
    counts = np.zeros(0, dtype=np.int64)
    for begin in range(0, len(tokens), CHUNK_TOKENS):
        part = np.bincount(tokens[begin : begin + CHUNK_TOKENS], minlength=len(counts))
        part[: len(counts)] += counts
        counts = part
    counts[[each for each in special.never_masked if each < len(counts)]] = 0
    shares = counts[counts > 0] / counts.sum()
    top = int(counts.argmax())
    return UnigramBaseline(
        entropy=float(-(shares * np.log(shares)).sum()),
        top_token=top,
        top_share=float(counts[top] / counts.sum()),
    )
