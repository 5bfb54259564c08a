"""Token datasets in the Megatron-LM `.bin`/`.idx` format, version 1: writing."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elc_bert.data.format.indexed import DTYPES, HEADER, MAGIC, VERSION, with_suffix
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write

ENTRIES_AT_ONCE = 1 << 20
TOKENS_AT_ONCE = 1 << 22
BLOCK_BYTES = 4096
"""File systems keep no smaller hole."""


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 where every id below `vocab_size` fits in it, else int32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<i4")


@dataclass(frozen=True)
class Written:
    """What a writer put on disk."""

    sequences: int
    documents: int
    tokens: int
    bin_sha256: str
    idx_sha256: str


class IndexedDatasetWriter:
    """Streams a dataset to disk; the files get their names only when the `with` block succeeds.

    Nothing grows in memory: the tables of `.idx` wait in unnamed files beside it. `written` holds the
    counts and checksums after the block; the caller then saves the manifest.

        with IndexedDatasetWriter("corpus", token_dtype(6144)) as writer:
            writer.add_document([[334, 2540, 20], [541, 281, 20, 5]])

    Args:
        prefix: path of the dataset without `.bin`; its directory must exist.
        dtype: of the tokens on disk, one of `DTYPES`.
    """

    written: Written

    def __init__(self, prefix: str | os.PathLike[str], dtype: np.dtype):
        self.prefix = Path(prefix)
        self.dtype = np.dtype(dtype)
        self._sequences = self._documents = self._tokens = self._last_end = 0

    def __enter__(self) -> "IndexedDatasetWriter":
        # Closing the stack renames both files, or removes both if it is closed by an exception.
        self._files = contextlib.ExitStack()
        self._idx = _Hashed(self._files.enter_context(atomic_write(with_suffix(self.prefix, ".idx"))))
        self._bin = _Hashed(self._files.enter_context(atomic_write(with_suffix(self.prefix, ".bin"))))
        folder = self.prefix.parent
        self._lengths = self._files.enter_context(tempfile.TemporaryFile(dir=folder))
        self._ends = self._files.enter_context(tempfile.TemporaryFile(dir=folder))
        return self

    def __exit__(self, *exception) -> None:
        if exception[0] is None:
            try:
                self.end_document()
                self._write_index()
            except BaseException as error:
                self._files.__exit__(type(error), error, error.__traceback__)
                raise
            self.written = Written(
                sequences=self._sequences,
                documents=self._documents,
                tokens=self._tokens,
                bin_sha256=self._bin.sha256(),
                idx_sha256=self._idx.sha256(),
            )
        self._files.__exit__(*exception)

    def add_document(self, sentences: Sequence[ArrayLike]) -> None:
        """Adds one document, a list of sentences, each the token ids int [length]."""
        arrays = [np.asarray(sentence) for sentence in sentences]
        if arrays:
            self.add(np.concatenate(arrays), [len(each) for each in arrays])
        self.end_document()

    def add(self, tokens: NDArray[np.integer], lengths: ArrayLike, document_ends: ArrayLike = ()) -> None:
        """Adds sentences; the first of them continue the current document.

        Args:
            tokens: ids of all of them on end, int [sum of lengths]; may be a memory map of any size.
            lengths: tokens of each, int [sentences].
            document_ends: numbers of these sentences after which a document ends, increasing, int
                [documents]; a document without sentences leaves no trace.

        Raises:
            UserError: an id does not fit in the dtype.
            ValueError: the lengths do not add up.
        """
        lengths = np.asarray(lengths, dtype=np.int64)
        if len(tokens) != lengths.sum():
            raise ValueError(f"{len(tokens)} tokens, but the lengths add up to {lengths.sum()}")
        if tokens.dtype != self.dtype and len(tokens):
            limits = np.iinfo(self.dtype)
            if tokens.min() < limits.min or tokens.max() > limits.max:
                raise UserError(
                    f"{self.prefix}.bin: token ids from {tokens.min()} to {tokens.max()} do not fit in "
                    f"{self.dtype.name}; choose a wider dtype for this vocabulary"
                )
        for start in range(0, len(tokens), TOKENS_AT_ONCE):
            part = tokens[start : start + TOKENS_AT_ONCE]
            self._bin.write(np.ascontiguousarray(part, dtype=self.dtype).data)
        self._lengths.write(lengths.astype("<i4").data)
        ends = np.asarray(document_ends, dtype=np.int64) + self._sequences
        ends = ends[np.diff(ends, prepend=self._last_end) > 0]
        self._ends.write(ends.astype("<i8").data)
        self._tokens += len(tokens)
        self._sequences += len(lengths)
        self._documents += len(ends)
        self._last_end = int(ends[-1]) if len(ends) else self._last_end

    def end_document(self) -> None:
        """Ends the current document."""
        self.add(np.empty(0, dtype=self.dtype), [], [0])

    def _write_index(self) -> None:
        code = next(code for code, dtype in DTYPES.items() if dtype == self.dtype)
        self._idx.write(HEADER.pack(MAGIC, VERSION, code, self._sequences, self._documents + 1))
        for lengths in _parts(self._lengths, "<i4"):
            self._idx.write(lengths.data)
        position = 0
        for lengths in _parts(self._lengths, "<i4"):
            ends = position + np.cumsum(lengths, dtype="<i8") * self.dtype.itemsize
            self._idx.write(np.concatenate([[position], ends[:-1]]).astype("<i8").data)
            position = int(ends[-1])
        self._idx.write(bytes(8))  # the first document begins with sentence 0
        for document_ends in _parts(self._ends, "<i8"):
            self._idx.write(document_ends.data)


class _Hashed:
    """A file that keeps the SHA-256 of what is written to it, and takes no space for zeros alone."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        self._hash.update(view)
        if len(view) < BLOCK_BYTES or np.frombuffer(view, dtype=np.bool_).any():
            self._file.write(view)
        else:
            self._file.truncate(self._file.seek(len(view), os.SEEK_CUR))

    def sha256(self) -> str:
        return self._hash.hexdigest()


def _parts(file: IO[bytes], dtype: str) -> Iterator[NDArray]:
    """What was written to a file, some entries at a time."""
    file.seek(0)
    while data := file.read(ENTRIES_AT_ONCE * np.dtype(dtype).itemsize):
        yield np.frombuffer(data, dtype=dtype)
