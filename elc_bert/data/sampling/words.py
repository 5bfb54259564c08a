"""How many words a batch of tokens holds.

Shapes: `B` rows of `T` tokens, `V` subwords of the vocabulary.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.format.vocabulary import SPECIAL_TOKENS, UNK

SPACES = ("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", "\N{LOWER ONE EIGHTH BLOCK}")
"""How byte-level tokenizers and SentencePiece write a space in their vocabularies."""
CONTINUES = "##"
"""What a word's later subwords begin with in vocabularies that do not write spaces."""
_INSIDE, _BLANK, _STARTS, _SPECIAL = range(4)


class WordCounter:
    """Counts the words that tokens spell: stretches of text without a space.

    A word is counted at its first token, so that one which two samples share is counted once. `[UNK]`
    stands for one word; the other special tokens for none.

    Args:
        vocabulary: id of each token, `V` of them.
    """

    def __init__(self, vocabulary: Mapping[str, int]):
        self._kinds = np.full(max(vocabulary.values()) + 1, _INSIDE, dtype=np.uint8)
        marks_spaces = any(token.startswith(SPACES) for token in vocabulary)
        for token, identity in vocabulary.items():
            if identity < len(SPECIAL_TOKENS):
                self._kinds[identity] = _STARTS if identity == UNK else _SPECIAL
            elif not token.strip("".join(SPACES)):
                self._kinds[identity] = _BLANK
            elif token.startswith(SPACES) if marks_spaces else not token.startswith(CONTINUES):
                self._kinds[identity] = _STARTS

    def __call__(self, tokens: NDArray[np.integer]) -> int:
        """Words in rows of tokens, [B, T], of which each may hold several samples, each behind a `[CLS]`."""
        kinds = self._kinds[tokens]
        # What follows a lone space is a word although it does not say so itself.
        behind_blank = (kinds[:, :-1] == _BLANK) & (kinds[:, 1:] == _INSIDE)
        return int(np.count_nonzero(kinds == _STARTS)) + int(np.count_nonzero(behind_blank))
