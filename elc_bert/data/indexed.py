"""Token datasets in the Megatron-LM `.bin`/`.idx` format, version 1: reading.

`.bin` is the token stream. `.idx` is little-endian: 9 bytes of magic, version u64, dtype code u8,
number of sequences n u64, number of document entries d u64; then the sequences' lengths in tokens
(int32 [n]) and positions in bytes (int64 [n]) and the document index (int64 [d]): the first sequence
of every document, and n. A sequence is a sentence here.
"""

import os
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.manifest import Manifest
from elc_bert.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    6: np.dtype("<f8"),
    7: np.dtype("<f4"),
    8: np.dtype("<u2"),
}


def with_suffix(prefix: Path, suffix: str) -> Path:
    """A file of the dataset `prefix`; unlike `Path.with_suffix`, a dot in the prefix stays."""
    return prefix.with_name(prefix.name + suffix)


class IndexedDataset:
    """A token dataset on disk, memory-mapped read-only; opening takes the same time for any size.

    Only the header and the ends of the tables are read. A copy sent to another process opens the
    files again by name.

    Args:
        prefix: path of the dataset without `.bin`.

    Raises:
        UserError: a file is missing, truncated, of another format, or disagrees with the other.
    """

    def __init__(self, prefix: str | os.PathLike[str]):
        self.prefix = Path(prefix)
        self._idx = with_suffix(self.prefix, ".idx")
        self._bin = with_suffix(self.prefix, ".bin")
        dtype, sequences, entries = self._read_header()
        position = HEADER.size
        self._lengths = self._map(self._idx, "<i4", position, sequences)
        self._pointers = self._map(self._idx, "<i8", position + 4 * sequences, sequences)
        self._documents = self._map(self._idx, "<i8", position + 12 * sequences, entries)
        self._check_ends(dtype.itemsize)
        self._tokens = self._map(self._bin, dtype, 0, self._bin.stat().st_size // dtype.itemsize)

    def __reduce__(self):
        return IndexedDataset, (self.prefix,)

    @property
    def tokens(self) -> NDArray[np.integer]:
        """The token stream, [num_tokens], of the dtype on disk."""
        return self._tokens

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each sentence, int32 [n]."""
        return self._lengths

    @property
    def pointers(self) -> NDArray[np.int64]:
        """Position of each sentence in `.bin` in bytes, int64 [n]."""
        return self._pointers

    @property
    def documents(self) -> NDArray[np.int64]:
        """The first sentence of each document, then n: int64 [documents + 1]."""
        return self._documents

    @property
    def num_tokens(self) -> int:
        """Tokens in the stream."""
        return len(self._tokens)

    @property
    def manifest(self) -> Manifest:
        """`<prefix>.json` as it is on disk now; of a dataset built elsewhere, what the header says.

        Raises:
            UserError: the file is unreadable, or its counts are not those of the dataset.
        """
        header = Manifest(
            sequences=len(self.lengths), documents=len(self.documents) - 1, tokens=self.num_tokens
        )
        try:
            manifest = Manifest.load(self.prefix)
        except FileNotFoundError:
            return header
        for name in ("sequences", "documents", "tokens"):
            said, is_there = getattr(manifest, name), getattr(header, name)
            if said != is_there:
                raise UserError(
                    f"{Manifest.path(self.prefix)}: says {said} {name}, but {self._idx} holds {is_there}; "
                    "the files are of different datasets: build it again"
                )
        return manifest

    def _read_header(self) -> tuple[np.dtype, int, int]:
        """dtype, number of sequences and number of document entries, once the size of `.idx` is right."""
        try:
            with open(self._idx, "rb") as file:
                header = file.read(HEADER.size)
            size = self._idx.stat().st_size
            bin_size = self._bin.stat().st_size
        except OSError as error:
            raise UserError(
                f"{error.filename}: cannot open the dataset: {error.strerror}; "
                "build it with: python -m data_tools build"
            ) from None
        if header[: len(MAGIC)] != MAGIC:
            raise UserError(
                f"{self._idx}: not an index of the Megatron-LM format: wrong magic; build it again"
            )
        if len(header) < HEADER.size:
            raise UserError(f"{self._idx}: truncated within its header; copy or build it again")
        _, version, code, sequences, entries = HEADER.unpack(header)
        if version != VERSION:
            raise UserError(
                f"{self._idx}: version {version} of the format, only {VERSION} can be read; build it again"
            )
        dtype = DTYPES.get(code)
        if dtype is None or dtype.kind == "f":
            raise UserError(
                f"{self._idx}: dtype code {code} is no integer type of the format; build it again"
            )
        expected = HEADER.size + 12 * sequences + 8 * entries
        if size != expected:
            raise UserError(
                f"{self._idx}: {size} bytes, but its header describes {expected}: truncated or damaged; "
                "copy or build it again"
            )
        if sequences == 0 or entries < 2 or bin_size == 0:
            raise UserError(f"{self._idx}: the dataset is empty; build it from some text")
        return dtype, sequences, entries

    def _check_ends(self, itemsize: int) -> None:
        end = int(self._pointers[-1]) + int(self._lengths[-1]) * itemsize
        size = self._bin.stat().st_size
        if end != size:
            raise UserError(
                f"{self._bin}: {size} bytes, but {self._idx.name} describes {end}: truncated or of another "
                "dataset; copy or build it again"
            )
        first, last = int(self._documents[0]), int(self._documents[-1])
        if first != 0 or last != len(self._lengths):
            raise UserError(
                f"{self._idx}: the document index goes from {first} to {last}, not from 0 to "
                f"{len(self._lengths)}: damaged; copy or build it again"
            )

    @staticmethod
    def _map(path: Path, dtype: str | np.dtype, offset: int, count: int) -> NDArray:
        # A view as plain ndarray: indexing np.memmap itself is several times slower.
        return np.asarray(np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,)))
