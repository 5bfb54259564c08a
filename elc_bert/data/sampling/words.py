"""Counting of the words that a batch of tokens spells.

Shapes: ``B`` rows of ``T`` tokens.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.format.vocabulary import USUAL_TOKENS, SpecialTokens

SPACES = ("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", "\N{LOWER ONE EIGHTH BLOCK}")
"""Characters for a space in the vocabularies of byte-level tokenizers and of SentencePiece."""
CONTINUATION_PREFIX = "##"
"""Prefix of a word's later subwords in vocabularies that do not contain spaces."""
_INSIDE, _BLANK, _STARTS, _SPECIAL = range(4)


class WordCounter:
    """Counter of words, which are separated by white space.

    A word is counted at its first token, so a word that is split between two samples counts once. ``[UNK]``
    counts as one word, the other special tokens as none.

    Args:
        vocabulary: Token ids by token.
        special: Ids of the special tokens.
    """

    def __init__(self, vocabulary: Mapping[str, int], special: SpecialTokens = USUAL_TOKENS) -> None:
        self._kinds = np.full(max(vocabulary.values()) + 1, _INSIDE, dtype=np.uint8)
        marks_spaces = any(token.startswith(SPACES) for token in vocabulary)
        for token, token_id in vocabulary.items():
            if token_id in special.all:
                self._kinds[token_id] = _STARTS if token_id == special.unk else _SPECIAL
            elif not token.strip("".join(SPACES)):
                self._kinds[token_id] = _BLANK
            elif token.startswith(SPACES) if marks_spaces else not token.startswith(CONTINUATION_PREFIX):
                self._kinds[token_id] = _STARTS

    def __call__(self, tokens: NDArray[np.integer]) -> int:
        """Return the number of words in rows of tokens, ``[B, T]``; each sample starts with ``[CLS]``."""
        kinds = self._kinds[tokens]
        # A subword after a lone space starts a word although it is not marked as such.
        after_blank = (kinds[:, :-1] == _BLANK) & (kinds[:, 1:] == _INSIDE)
        return int(np.count_nonzero(kinds == _STARTS)) + int(np.count_nonzero(after_blank))
