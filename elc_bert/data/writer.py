"""Token datasets in the Megatron-LM `.bin`/`.idx` format, version 1: writing."""

import contextlib
import hashlib
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elc_bert.data.indexed import DTYPES, HEADER, MAGIC, VERSION, with_suffix
from elc_bert.data.manifest import Manifest
from elc_bert.files import atomic_write, sha256_of, sync_directory

POINTERS_AT_ONCE = 1 << 20


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

    A dataset of the same name is replaced: its manifest and segment indexes, which describe the old
    token stream, are removed first. `written` holds the counts and checksums after the block; the
    caller then saves the manifest.

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
        self._lengths = array("i")
        self._documents = array("q", [0])
        self._hash = hashlib.sha256()

    def __enter__(self) -> "IndexedDatasetWriter":
        # Closing the stack renames both files, or removes both if it is closed by an exception.
        self._files = contextlib.ExitStack()
        self._idx = self._files.enter_context(atomic_write(with_suffix(self.prefix, ".idx")))
        self._bin = self._files.enter_context(atomic_write(with_suffix(self.prefix, ".bin")))
        return self

    def __exit__(self, *exception) -> None:
        if exception[0] is None:
            try:
                self.end_document()
                idx_sha256 = self._write_index()
                self._remove_description()
            except BaseException as error:
                self._files.__exit__(type(error), error, error.__traceback__)
                raise
            self.written = Written(
                sequences=len(self._lengths),
                documents=len(self._documents) - 1,
                tokens=self._bin.tell() // self.dtype.itemsize,
                bin_sha256=self._hash.hexdigest(),
                idx_sha256=idx_sha256,
            )
        self._files.__exit__(*exception)

    def add_document(self, sentences: Sequence[ArrayLike]) -> None:
        """Adds one document, a list of sentences, each the token ids int [length]."""
        arrays = [np.asarray(sentence) for sentence in sentences]
        if arrays:
            self.add_sentences(np.concatenate(arrays), np.array([len(each) for each in arrays]))
        self.end_document()

    def add_sentences(self, tokens: NDArray[np.integer], lengths: NDArray[np.integer]) -> None:
        """Adds sentences to the current document.

        Args:
            tokens: ids of all of them on end, int [sum of lengths].
            lengths: tokens of each, int [sentences].

        Raises:
            ValueError: an id does not fit in the dtype, or the lengths do not add up.
        """
        if len(tokens) != lengths.sum():
            raise ValueError(f"{len(tokens)} tokens, but the lengths add up to {lengths.sum()}")
        if len(tokens):
            limits = np.iinfo(self.dtype)
            if tokens.min() < limits.min or tokens.max() > limits.max:
                raise ValueError(f"a token id does not fit in {self.dtype}")
        data = tokens.astype(self.dtype).tobytes()
        self._bin.write(data)
        self._hash.update(data)
        self._lengths.frombytes(lengths.astype(np.intc).tobytes())

    def end_document(self) -> None:
        """Ends the current document; one without sentences leaves no trace."""
        if len(self._lengths) > self._documents[-1]:
            self._documents.append(len(self._lengths))

    def _write_index(self) -> str:
        code = next(code for code, dtype in DTYPES.items() if dtype == self.dtype)
        lengths = np.frombuffer(self._lengths, dtype=np.intc)
        self._idx.write(HEADER.pack(MAGIC, VERSION, code, len(lengths), len(self._documents)))
        self._idx.write(lengths.astype("<i4").tobytes())
        position = 0
        for start in range(0, len(lengths), POINTERS_AT_ONCE):
            ends = (
                position
                + np.cumsum(lengths[start : start + POINTERS_AT_ONCE], dtype="<i8") * self.dtype.itemsize
            )
            self._idx.write(np.concatenate([[position], ends[:-1]]).astype("<i8").tobytes())
            position = int(ends[-1])
        self._idx.write(np.frombuffer(self._documents, dtype=np.int64).astype("<i8").tobytes())
        self._idx.flush()
        return sha256_of(self._idx.name)

    def _remove_description(self) -> None:
        Manifest.path(self.prefix).unlink(missing_ok=True)
        for path in self.prefix.parent.glob("*.segments-*.npy"):
            if path.name.startswith(f"{self.prefix.name}.segments-"):
                path.unlink()
        sync_directory(self.prefix.parent)
