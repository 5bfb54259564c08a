"""Special tokens, and loading and checking of the tokenizer file."""

import os
from typing import TYPE_CHECKING

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.plain_text import read_as_text
from elc_bert.data.format.tokenizer_identity import is_tokenizer_of, tokenizer_sha256
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import read_regular

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNK, CLS, SEP, PAD, MASK, PAR, TAB = range(7)
"""Ids of the special tokens."""
SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[PAR]", "[TAB]")
"""Special tokens, in the order of their ids."""

TRAIN = "python -m data_tools tokenizer --input TEXT --output tokenizer.json"
"""Command that trains a tokenizer."""


def load_tokenizer(path: str | os.PathLike[str]) -> "Tokenizer":
    """Load a tokenizer in the JSON format of the ``tokenizers`` library.

    A special token that is in the vocabulary, but is not declared as special in the file, is declared here.

    Raises:
        UserError: The file is missing, unreadable or of another format, or the special tokens do not have
            the ids 0 to 6, or are not encoded as these ids.
    """
    from tokenizers import Tokenizer

    try:
        text = read_regular(path).decode("utf-8-sig")  # some editors add a byte-order mark
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the tokenizer: {error.strerror}; give a tokenizer.json"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a tokenizer: not UTF-8 text; give a tokenizer.json") from None
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers 0.23 raises plain Exception
        raise UserError(
            f"{path}: not a tokenizer of the tokenizers library: {error}; give a tokenizer.json"
        ) from None
    # The file may enable truncation and padding, but this project cuts and pads sequences itself.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _check_special_tokens(tokenizer, path)
    size, highest = tokenizer.get_vocab_size(), max(tokenizer.get_vocab().values())
    if highest >= size:
        raise UserError(
            f"{path}: {size} subwords, but ids up to {highest}, so some ids are missing; "
            f"train one with: {TRAIN}"
        )
    return tokenizer


def _check_special_tokens(tokenizer: "Tokenizer", path: str | os.PathLike[str]) -> None:
    """Check the names and ids of the special tokens, and that each name is encoded as its id."""
    declared = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    for token_id, token in enumerate(SPECIAL_TOKENS):
        found = tokenizer.token_to_id(token)
        if found != token_id:
            raise UserError(
                f"{path}: special token {token} must have id {token_id}, found {found} (special tokens of "
                f"the file: {' '.join(declared[:10]) or 'none'}); tokenizers with other names or ids cannot "
                f"be used; train one with: {TRAIN}"
            )
    tokenizer.add_special_tokens([token for token in SPECIAL_TOKENS if token not in declared])
    for token_id, token in enumerate(SPECIAL_TOKENS):
        text = f"a {token} a"
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if token_id not in ids:
            raise UserError(
                f"{path}: encodes {text!r} as the ids {ids}, without id {token_id}; declare {token} "
                "in added_tokens with special: true and normalized: false"
            )


def load_text_tokenizer(path: str | os.PathLike[str]) -> "Tokenizer":
    """Load a tokenizer that encodes text only: ``[MASK]`` in a text is six characters, not a special token.

    It encodes without decoding: its special tokens have other names.

    Raises:
        UserError: See ``load_tokenizer``.
    """
    return read_as_text(load_tokenizer(path), SPECIAL_TOKENS)


def check_tokenizer(dataset: IndexedDataset, tokenizer_path: str | os.PathLike[str]) -> None:
    """Check that a dataset was built with the given tokenizer, or with one that encodes text in the same way.

    A dataset built elsewhere, which has no manifest, passes.

    Raises:
        UserError: The vocabulary or the way in which text is cut differs from that of the dataset.
    """
    manifest = dataset.manifest
    size = load_tokenizer(tokenizer_path).get_vocab_size()
    if manifest.vocab_size is not None and manifest.vocab_size != size:
        raise UserError(
            f"{tokenizer_path}: {size} subwords, but {dataset.prefix} was built with a vocabulary of "
            f"{manifest.vocab_size}; give the dataset's tokenizer or build the dataset again"
        )
    if not is_tokenizer_of(manifest, tokenizer_path):
        found, expected = tokenizer_sha256(tokenizer_path), manifest.tokenizer_sha256 or ""
        how = "the dataset does not say whether they encode text alike"
        if manifest.tokenizer_fingerprint is not None:
            how = "they encode text differently"
        raise UserError(
            f"{tokenizer_path}: not the tokenizer that {dataset.prefix} was built with (sha256 {found[:12]}, "
            f"expected {expected[:12]}; {how}); give that one or build the dataset again"
        )
