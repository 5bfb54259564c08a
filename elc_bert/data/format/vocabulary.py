"""Special tokens, and loading and checking of the tokenizer file."""

import os
from typing import TYPE_CHECKING

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import sha256_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNK, CLS, SEP, PAD, MASK, PAR, TAB = range(7)
"""Ids of the special tokens."""
SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[PAR]", "[TAB]")
"""Special tokens, in the order of their ids."""


def load_tokenizer(path: str | os.PathLike[str]) -> "Tokenizer":
    """Load a tokenizer in the JSON format of the ``tokenizers`` library.

    Raises:
        UserError: The file is missing, unreadable or of another format, or the special tokens do not have
            the ids 0 to 6.
    """
    from tokenizers import Tokenizer

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
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
    for token_id, token in enumerate(SPECIAL_TOKENS):
        found = tokenizer.token_to_id(token)
        if found != token_id:
            raise UserError(
                f"{path}: special token {token} must have id {token_id}, found {found}; "
                "train one with: python -m data_tools tokenizer"
            )
    size, highest = tokenizer.get_vocab_size(), max(tokenizer.get_vocab().values())
    if highest >= size:
        raise UserError(
            f"{path}: {size} subwords, but ids up to {highest}, so some ids are missing; "
            "train one with: python -m data_tools tokenizer"
        )
    # The file may enable truncation and padding, but this project cuts and pads sequences itself.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenizer_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 checksum of the tokenizer file, in hexadecimal.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the tokenizer: {error.strerror}; give a tokenizer.json"
        ) from None


def check_tokenizer(dataset: IndexedDataset, tokenizer_path: str | os.PathLike[str]) -> None:
    """Check that a dataset was built with the given tokenizer.

    A dataset built elsewhere, which has no manifest, passes.

    Raises:
        UserError: The vocabulary size or the checksum of the file differs from the dataset's manifest.
    """
    manifest = dataset.manifest
    size = load_tokenizer(tokenizer_path).get_vocab_size()
    if manifest.vocab_size is not None and manifest.vocab_size != size:
        raise UserError(
            f"{tokenizer_path}: {size} subwords, but {dataset.prefix} was built with a vocabulary of "
            f"{manifest.vocab_size}; give the dataset's tokenizer or build the dataset again"
        )
    found = tokenizer_sha256(tokenizer_path)
    if manifest.tokenizer_sha256 is not None and manifest.tokenizer_sha256 != found:
        raise UserError(
            f"{tokenizer_path}: not the tokenizer that {dataset.prefix} was built with (sha256 "
            f"{found[:12]}, expected {manifest.tokenizer_sha256[:12]}); give that one or build the dataset "
            "again"
        )
