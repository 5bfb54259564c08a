"""Token datasets in the `.bin`/`.idx` format, which `elc_bert.data` describes byte by byte: reading."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.mapping import MappedFile
from elc_bert.utils.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
"""Codes 6 and 7 are floats, one of each size, but not in the same order in Megatron-LM and GPT-NeoX."""

MEND = "damaged; copy or build it again"


def with_suffix(prefix: Path, suffix: str) -> Path:
    """A file of the dataset `prefix`; unlike `Path.with_suffix`, a dot in the prefix stays."""
    return prefix.with_name(prefix.name + suffix)


class IndexedDataset:
    """A token dataset on disk, read-only; opening takes the same time and memory for any size.

    Only the header and the ends of the tables are read. What a table says is checked where it is used:
    by `spans` and `documents_between`; `lengths` and `documents` are the tables as they are on disk. A
    copy sent to another process opens the files again by name.

    To sample, use `gather`. To read all, go through `spans` and slices of `tokens` part by part and call
    `release` after each, so that memory does not grow.

    Args:
        prefix: path of the dataset without `.bin`.

    Raises:
        UserError: a file is missing, truncated, of another format, or disagrees with the other.
    """

    def __init__(self, prefix: str | os.PathLike[str]):
        self.prefix = Path(prefix)
        try:
            self._idx = MappedFile(with_suffix(self.prefix, ".idx"))
            self._bin = MappedFile(with_suffix(self.prefix, ".bin"))
        except OSError as error:
            raise UserError(
                f"{error.filename}: cannot open the dataset: {error.strerror}; "
                "build it with: python -m data_tools build"
            ) from None
        self._dtype, sequences, entries = self._read_header()
        position = HEADER.size
        self._lengths = self._idx.array("<i4", position, sequences)
        self._pointers = self._idx.array("<i8", position + 4 * sequences, sequences)
        self._documents = self._idx.array("<i8", position + 12 * sequences, entries)
        self._check_ends()
        self.release()

    def __reduce__(self):
        return IndexedDataset, (self.prefix,)

    @property
    def tokens(self) -> NDArray[np.integer]:
        """The token stream, [num_tokens], of the dtype on disk; for reading in order, see `release`."""
        return self._bin.array(self._dtype, 0, self.num_tokens)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each sentence, int32 [n], unchecked."""
        return self._lengths

    @property
    def pointers(self) -> NDArray[np.int64]:
        """Position of each sentence in `.bin` in bytes, int64 [n], unchecked."""
        return self._pointers

    @property
    def documents(self) -> NDArray[np.int64]:
        """The first sentence of each document, then n: int64 [documents + 1], unchecked but for its ends."""
        return self._documents

    @property
    def num_tokens(self) -> int:
        """Tokens in the stream."""
        return self._bin.size // self._dtype.itemsize

    @property
    def manifest(self) -> Manifest:
        """`<prefix>.json` as it is on disk now; of a dataset built elsewhere, what the header says.

        Raises:
            UserError: the file is unreadable, or it does not describe this dataset.
        """
        try:
            manifest = Manifest.load(self.prefix)
        except FileNotFoundError:
            return Manifest(
                sequences=len(self.lengths), documents=len(self.documents) - 1, tokens=self.num_tokens
            )
        for contradiction in self.contradictions(manifest):
            raise UserError(contradiction)
        return manifest

    def contradictions(self, manifest: Manifest) -> Iterator[str]:
        """Messages about all that a manifest says otherwise than the header of `.idx`."""
        path, idx = Manifest.path(self.prefix), self._idx.path
        mend = "the files are of different datasets: build it again"
        for name, there in (
            ("sequences", len(self.lengths)),
            ("documents", len(self.documents) - 1),
            ("tokens", self.num_tokens),
        ):
            if getattr(manifest, name) != there:
                yield f"{path}: says {getattr(manifest, name)} {name}, but {idx} holds {there}; {mend}"
        most = int(np.iinfo(self._dtype).max) + 1
        if manifest.vocab_size is not None and manifest.vocab_size > most:
            yield (
                f"{path}: says a vocabulary of {manifest.vocab_size}, but {idx} stores tokens as "
                f"{self._dtype}, at most {most} of them; {mend}"
            )

    def gather(self, places: NDArray[np.int64]) -> NDArray[np.integer]:
        """Token ids at some places of the stream, read without keeping pages in memory; thread-safe.

        Args:
            places: int64 of any shape, [..., T]; the T are read at once where they are close together.

        Returns:
            A copy in the same shape, of the dtype on disk.

        Raises:
            UserError: a place lies outside of the stream, a token id is negative, or reading fails.
        """
        if places.size and (places.min() < 0 or places.max() >= self.num_tokens):
            raise UserError(
                f"{self._bin.path}: a token was sought at {places.min()} or {places.max()}, but there are "
                f"{self.num_tokens}; copy or build the dataset and its segments again"
            )
        tokens = self._bin.gather(self._dtype, 0, places)
        if self._dtype.kind == "i" and tokens.size and tokens.min() < 0:
            raise UserError(f"{self._bin.path}: holds the negative token id {tokens.min()}: {MEND}")
        return tokens

    def spans(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the sentences [first, last) lie in the token stream, checked.

        Returns:
            Place of the first token and number of tokens of each, both int64 [last - first].

        Raises:
            UserError: one does not lie in the stream.
        """
        pointers = self._pointers[first:last].astype(np.int64)
        lengths = self._lengths[first:last].astype(np.int64)
        offsets, rest = np.divmod(pointers, self._dtype.itemsize)
        # A sum of offset and length could overflow; a difference of numbers that are not negative cannot.
        is_bad = (pointers < 0) | (rest != 0) | (lengths < 0) | (offsets > self.num_tokens - lengths)
        if is_bad.any():
            bad = int(is_bad.argmax())
            raise UserError(
                f"{self._idx.path}: sentence {first + bad} ({lengths[bad]} tokens from byte {pointers[bad]} "
                f"on) does not lie in {self._bin.path.name}: {MEND}"
            )
        return offsets, lengths

    def documents_between(self, first: int, last: int) -> NDArray[np.int64]:
        """The first sentence of each of the documents [first, last), then the end of the last, checked.

        Documents may be empty: equal entries.

        Returns:
            Numbers of sentences, not decreasing and in [0, n]: int64 [last - first + 1].

        Raises:
            UserError: the entries are not in order.
        """
        entries = self._documents[first : last + 1].astype(np.int64)
        # The next part begins with the entry that this one ends with, so no seam goes unchecked.
        bounded = np.concatenate([[0], entries, [len(self._lengths)]])
        is_bad = bounded[1:] < bounded[:-1]
        if is_bad.any():
            bad = first + min(int(is_bad.argmax()), len(entries) - 1)
            raise UserError(
                f"{self._idx.path}: document {bad} begins with sentence {self._documents[bad]}, which is "
                f"out of order among {len(self._lengths)}: {MEND}"
            )
        return entries

    def release(self) -> None:
        """Takes what was read through views out of this process's memory; the views stay valid."""
        self._idx.release()
        self._bin.release()

    def _read_header(self) -> tuple[np.dtype, int, int]:
        """dtype, number of sequences and number of document entries, once the size of `.idx` is right."""
        path, size = self._idx.path, self._idx.size
        header = self._idx.array("u1", 0, min(size, HEADER.size)).tobytes()
        if header[: len(MAGIC)] != MAGIC:
            raise UserError(f"{path}: not an index of the Megatron-LM format: wrong magic; build it again")
        if len(header) < HEADER.size:
            raise UserError(f"{path}: truncated within its header; copy or build it again")
        _, version, code, sequences, entries = HEADER.unpack(header)
        if version != VERSION:
            raise UserError(
                f"{path}: version {version} of the format, only {VERSION} can be read; build it again"
            )
        if code not in DTYPES:
            raise UserError(f"{path}: dtype code {code} is no integer type of the format; build it again")
        expected = HEADER.size + 12 * sequences + 8 * entries
        if size != expected:
            raise UserError(
                f"{path}: {size} bytes, but its header describes {expected}: truncated or damaged; "
                "copy or build it again"
            )
        if sequences == 0 or entries < 2 or self._bin.size == 0:
            raise UserError(f"{path}: the dataset is empty; build it from some text")
        return DTYPES[code], sequences, entries

    def _check_ends(self) -> None:
        end = int(self._pointers[-1]) + int(self._lengths[-1]) * self._dtype.itemsize
        size = self._bin.size
        if end > size or size % self._dtype.itemsize:
            raise UserError(
                f"{self._bin.path}: {size} bytes, but {self._idx.path.name} describes {end}: truncated or of "
                "another dataset; copy or build it again"
            )
        self.spans(len(self._lengths) - 1, len(self._lengths))
        first, last = int(self._documents[0]), int(self._documents[-1])
        if first != 0 or last != len(self._lengths):
            raise UserError(
                f"{self._idx.path}: the document index goes from {first} to {last}, not from 0 to "
                f"{len(self._lengths)}: damaged; copy or build it again"
            )
