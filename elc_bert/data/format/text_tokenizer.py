"""A tokenizer together with the ids of its special tokens."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from elc_bert.data.format.plain_text import read_as_text
from elc_bert.data.format.vocabulary import USUAL_NAMES, SpecialNames, load_tokenizer, special_tokens

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


class TextTokenizer:
    """Tokenizer that encodes names of special tokens in a text, such as ``[MASK]``, like any other text.

    Only the tools put special tokens into a dataset: ``[CLS]``, ``[SEP]``, ``[PAD]`` and ``[MASK]`` when a
    sample is made, and ``[PAR]`` and ``[TAB]`` when a text is encoded.

    Args:
        tokenizer: Tokenizer that ``load_tokenizer`` returned for these names.
        names: Names of its special tokens.
    """

    def __init__(self, tokenizer: "Tokenizer", names: SpecialNames = USUAL_NAMES) -> None:
        self.tokenizer = tokenizer
        """The same tokenizer, for which special tokens in a text are special tokens."""
        self.special = special_tokens(tokenizer, names)
        """Ids of the special tokens."""
        self.text = read_as_text(tokenizer, [name for name in asdict(names).values() if name])
        """Copy that encodes text only, without decoding: its special tokens have other names."""

    @classmethod
    def load(cls, path: str | os.PathLike[str], names: SpecialNames = USUAL_NAMES) -> "TextTokenizer":
        """Load a tokenizer from its file.

        Raises:
            UserError: See ``load_tokenizer``.
        """
        return cls(load_tokenizer(path, names), names)

    def encode(self, text: str) -> "Encoding":
        """Encode a text without adding special tokens."""
        return self.text.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some tokens, without special tokens."""
        return str(self.tokenizer.decode(ids))

    def decode_batch(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each of several lists of tokens, without special tokens."""
        return list(self.tokenizer.decode_batch(ids))

    def id_to_token(self, token: int) -> str:
        """Return a token as it is spelled in the vocabulary."""
        return str(self.tokenizer.id_to_token(token))
