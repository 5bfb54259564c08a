"""Texts cut and grouped so that the memory of the tokenizer library is bounded.

The library needs hundreds of bytes for each subword of a call, so a line of 15 MB would take gigabytes.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHARACTERS_AT_ONCE = 1 << 18
"""Maximum number of characters in a call of the library."""
LONGEST_TEXT = 1 << 16
"""Maximum number of characters of a text; a longer one is encoded in parts."""


def cut_text(text: str) -> list[str]:
    """Cut a text in parts of at most ``LONGEST_TEXT`` characters that give the same subwords as the whole.

    A part begins with a single space between two words if there is one, because no subword contains a space
    elsewhere than at its beginning. Words that are longer than a part are cut anywhere.
    """
    parts: list[str] = []
    start = 0
    while len(text) - start > LONGEST_TEXT:
        end = start + LONGEST_TEXT
        space = text.rfind(" ", start + 1, end)
        while space > start and (text[space - 1].isspace() or not text[space + 1].isalnum()):
            space = text.rfind(" ", start + 1, space)
        end = space if space > start else end
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


def cut_texts(texts: Iterable[str]) -> Iterator[str]:
    """Yield the parts of some texts."""
    return itertools.chain.from_iterable(map(cut_text, texts))


def in_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield texts in lists of at most ``CHARACTERS_AT_ONCE`` characters, or single texts that are longer."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > CHARACTERS_AT_ONCE:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def encode(
    tokenizer: "Tokenizer", texts: list[str], dtype: str
) -> tuple[NDArray[np.integer], NDArray[np.int32]]:
    """Encode texts without adding special tokens.

    Returns:
        The ids of all texts, concatenated, in the given dtype, and the number of ids of each, int32.
    """
    parts = [cut_text(text) for text in texts]
    ids: list[NDArray[np.integer]] = [np.empty(0, dtype)]
    sizes: list[int] = []
    for batch in in_batches(itertools.chain.from_iterable(parts)):
        found = [each.ids for each in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        sizes += map(len, found)
        ids.append(np.fromiter(itertools.chain.from_iterable(found), dtype, count=sum(map(len, found))))
    counts = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
    ends = np.concatenate([[0], np.cumsum(sizes)])[np.cumsum(counts)] if len(parts) else np.empty(0, np.int64)
    return np.concatenate(ids), np.diff(ends, prepend=0).astype("<i4")
