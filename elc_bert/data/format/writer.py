"""Writer of token datasets in the ``.bin``/``.idx`` format; ``docs/data-format.md`` describes the bytes."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elc_bert.data.format.indexed import DTYPES, HEADER, MAGIC, VERSION, with_suffix
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write

ENTRIES_PER_READ = 1 << 20
"""Number of table entries in memory at a time."""
TOKENS_PER_WRITE = 1 << 22
"""Number of tokens converted to the dtype on disk at a time."""
BLOCK_BYTES = 4096
"""Smallest hole that file systems store in a sparse file."""


def token_dtype(vocab_size: int) -> np.dtype[np.integer]:
    """Return uint16 if every id below ``vocab_size`` fits into it, otherwise int32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<i4")


@dataclass(frozen=True)
class Written:
    """Counts and checksums of a finished dataset."""

    sequences: int
    """Number of sentences."""
    documents: int
    """Number of documents."""
    tokens: int
    """Number of tokens."""
    bin_sha256: str
    """Checksum of ``.bin``, in hexadecimal."""
    idx_sha256: str
    """Checksum of ``.idx``, in hexadecimal."""


class IndexedDatasetWriter:
    """Context manager that streams a dataset to disk.

    The files get their final names only if the ``with`` block succeeds. Memory use is constant: the tables of
    ``.idx`` are collected in unnamed temporary files in the same directory. After the block, ``written``
    holds the counts and checksums, from which the caller writes the manifest.

    Example::

        with IndexedDatasetWriter("corpus", token_dtype(6144)) as writer:
            writer.add_document([[334, 2540, 20], [541, 281, 20, 5]])

    Args:
        prefix: Path of the dataset without ``.bin``; its directory must exist.
        dtype: Type of the token ids on disk, one of ``DTYPES``.
    """

    written: Written
    """Counts and checksums; set when the ``with`` block ends without an exception."""

    def __init__(self, prefix: str | os.PathLike[str], dtype: np.dtype[np.integer]) -> None:
        self.prefix = Path(prefix)
        self.dtype: np.dtype[np.integer] = np.dtype(dtype)
        self._sequences = self._documents = self._tokens = self._last_end = 0

    def __enter__(self) -> "IndexedDatasetWriter":
        # Closing the stack renames both files, or deletes both if an exception is passing.
        self._files = contextlib.ExitStack()
        self._idx = _HashingFile(self._files.enter_context(atomic_write(with_suffix(self.prefix, ".idx"))))
        self._bin = _HashingFile(self._files.enter_context(atomic_write(with_suffix(self.prefix, ".bin"))))
        folder = self.prefix.parent
        self._lengths = self._files.enter_context(tempfile.TemporaryFile(dir=folder))
        self._ends = self._files.enter_context(tempfile.TemporaryFile(dir=folder))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            try:
                self.end_document()
                self._write_index()
            except BaseException as failure:
                self._files.__exit__(type(failure), failure, failure.__traceback__)
                raise
            self.written = Written(
                sequences=self._sequences,
                documents=self._documents,
                tokens=self._tokens,
                bin_sha256=self._bin.sha256(),
                idx_sha256=self._idx.sha256(),
            )
        self._files.__exit__(kind, error, traceback)

    def add_document(self, sentences: Sequence[ArrayLike]) -> None:
        """Add a document, given as a list of sentences, each an int array of token ids."""
        arrays = [np.asarray(sentence) for sentence in sentences]
        if arrays:
            self.add(np.concatenate(arrays), [len(each) for each in arrays])
        self.end_document()

    def add(self, tokens: NDArray[np.integer], lengths: ArrayLike, document_ends: ArrayLike = ()) -> None:
        """Add sentences, which continue the current document up to the first document end.

        Args:
            tokens: Concatenated token ids of the sentences, int ``[sum of lengths]``; may be a memory map of
                any size.
            lengths: Number of tokens of each sentence, int ``[sentences]``.
            document_ends: Number of these sentences before each end of a document, increasing, int
                ``[documents]``. Documents without sentences are not recorded.

        Raises:
            UserError: A token id does not fit into the dtype.
            ValueError: The lengths do not add up to the number of tokens.
        """
        lengths = np.asarray(lengths, dtype=np.int64)
        if len(tokens) != lengths.sum():
            raise ValueError(f"{len(tokens)} tokens, but the lengths add up to {lengths.sum()}")
        if tokens.dtype != self.dtype and len(tokens):
            limits = np.iinfo(self.dtype)
            if tokens.min() < limits.min or tokens.max() > limits.max:
                raise UserError(
                    f"{self.prefix}.bin: token ids from {tokens.min()} to {tokens.max()} do not fit into "
                    f"{self.dtype.name}; choose a wider dtype for this vocabulary"
                )
        for start in range(0, len(tokens), TOKENS_PER_WRITE):
            chunk = tokens[start : start + TOKENS_PER_WRITE]
            self._bin.write(np.ascontiguousarray(chunk, dtype=self.dtype).data)
        self._lengths.write(lengths.astype("<i4").data)
        ends = np.asarray(document_ends, dtype=np.int64) + self._sequences
        ends = ends[np.diff(ends, prepend=self._last_end) > 0]
        self._ends.write(ends.astype("<i8").data)
        self._tokens += len(tokens)
        self._sequences += len(lengths)
        self._documents += len(ends)
        self._last_end = int(ends[-1]) if len(ends) else self._last_end

    def end_document(self) -> None:
        """End the current document."""
        self.add(np.empty(0, dtype=self.dtype), [], [0])

    def _write_index(self) -> None:
        """Write ``.idx`` from the collected lengths and document ends."""
        code = next(code for code, dtype in DTYPES.items() if dtype == self.dtype)
        self._idx.write(HEADER.pack(MAGIC, VERSION, code, self._sequences, self._documents + 1))
        for lengths in _chunks(self._lengths, "<i4"):
            self._idx.write(lengths.data)
        position = 0
        for lengths in _chunks(self._lengths, "<i4"):
            ends = position + np.cumsum(lengths, dtype="<i8") * self.dtype.itemsize
            self._idx.write(np.concatenate([[position], ends[:-1]]).astype("<i8").data)
            position = int(ends[-1])
        self._idx.write(bytes(8))  # The first document starts with sentence 0.
        for document_ends in _chunks(self._ends, "<i8"):
            self._idx.write(document_ends.data)


class _HashingFile:
    """File that computes the SHA-256 of what is written to it, and writes blocks of zeros as holes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes to the file."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        self._hash.update(view)
        if len(view) < BLOCK_BYTES or np.frombuffer(view, dtype=np.bool_).any():
            self._file.write(view)
        else:
            self._file.truncate(self._file.seek(len(view), os.SEEK_CUR))

    def sha256(self) -> str:
        """Return the checksum of everything written so far, in hexadecimal."""
        return self._hash.hexdigest()


def _chunks(file: IO[bytes], dtype: str) -> Iterator[NDArray[Any]]:
    """Yield the contents of a file as arrays of at most ``ENTRIES_PER_READ`` entries."""
    file.seek(0)
    while data := file.read(ENTRIES_PER_READ * np.dtype(dtype).itemsize):
        yield np.frombuffer(data, dtype=dtype)
