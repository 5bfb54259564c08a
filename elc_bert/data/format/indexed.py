"""Reader of token datasets in the ``.bin``/``.idx`` format; ``docs/data-format.md`` describes the bytes.

Shapes: ``n`` sentences, ``T`` tokens.
"""

import os
import shlex
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.mapped_file import MappedFile
from elc_bert.utils.errors import UserError, limit_advice

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype[np.integer]] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
"""Integer types by their code in ``.idx``. Codes 6 and 7 are float32 and float64, in opposite order in
Megatron-LM and GPT-NeoX."""

DAMAGED = "the dataset is damaged; copy or build it again"


def with_suffix(prefix: Path, suffix: str) -> Path:
    """Append a suffix to the prefix of a dataset; unlike ``Path.with_suffix``, keep a dot in the prefix."""
    return prefix.with_name(prefix.name + suffix)


class IndexedDataset:
    """Read-only token dataset on disk.

    Opening takes constant time and memory, because it reads only the header and the ends of the tables.
    ``spans`` and ``documents_between`` check the entries that they return; ``lengths``, ``pointers`` and
    ``documents`` are the unchecked tables. When pickled, a dataset is reopened by its path. A dataset that is
    not read holds no open files if the process has too many (``descriptors``).

    To sample, use ``gather``. To read a whole dataset, iterate over ``spans`` and slices of ``tokens`` in
    chunks and call ``release`` after each chunk, so that memory use does not grow.

    Args:
        prefix: Path of the dataset without ``.bin``.

    Raises:
        UserError: A file is missing, truncated or of another format, or the two files do not match.
    """

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        self.prefix = Path(prefix)
        try:
            self._idx = MappedFile(with_suffix(self.prefix, ".idx"))
            self._bin = MappedFile(with_suffix(self.prefix, ".bin"))
        except OSError as error:
            is_missing = isinstance(error, FileNotFoundError)
            command = f"python -m data_tools build --output {shlex.quote(str(self.prefix))}"
            build = f"build it with: {command} --input TEXT --tokenizer FILE"
            advice = build if is_missing else limit_advice(error)
            raise UserError(
                f"{error.filename}: cannot open the dataset: {error.strerror}; "
                f"{advice or 'check the file and its permissions'}"
            ) from None
        self._dtype, self._sequences, self._entries = self._read_header()
        self._check_ends()

    def __reduce__(self) -> tuple[type["IndexedDataset"], tuple[Path]]:
        return IndexedDataset, (self.prefix,)

    @property
    def tokens(self) -> NDArray[np.integer]:
        """Token stream as a memory-mapped view, ``[num_tokens]``, in the dtype on disk; see ``release``.

        The file is mapped at each access while no other view exists, so keep the view to read many slices.
        """
        return self._bin.array(self._dtype, 0, self.num_tokens)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Number of tokens of each sentence, unchecked, int32 ``[n]``."""
        return self._idx.array("<i4", HEADER.size, self._sequences)

    @property
    def pointers(self) -> NDArray[np.int64]:
        """Offset of each sentence in ``.bin`` in bytes, unchecked, int64 ``[n]``."""
        return self._idx.array("<i8", HEADER.size + 4 * self._sequences, self._sequences)

    @property
    def documents(self) -> NDArray[np.int64]:
        """Index of the first sentence of each document, followed by n, int64 ``[documents + 1]``.

        Only the first and the last entry have been checked.
        """
        return self._idx.array("<i8", HEADER.size + 12 * self._sequences, self._entries)

    @property
    def num_sentences(self) -> int:
        """Number of sentences n."""
        return self._sequences

    @property
    def num_documents(self) -> int:
        """Number of documents."""
        return self._entries - 1

    @property
    def num_tokens(self) -> int:
        """Number of tokens in the stream."""
        return self._bin.size // self._dtype.itemsize

    @property
    def manifest(self) -> Manifest:
        """Manifest, read from ``<prefix>.json`` at each access.

        If there is no such file, because another program built the dataset, a manifest with the counts of
        the header is returned.

        Raises:
            UserError: The file is unreadable, or it does not describe this dataset.
        """
        try:
            manifest = Manifest.load(self.prefix)
        except FileNotFoundError:
            return Manifest(sequences=self._sequences, documents=self.num_documents, tokens=self.num_tokens)
        for mismatch in self.manifest_mismatches(manifest):
            raise UserError(mismatch)
        return manifest

    def manifest_mismatches(self, manifest: Manifest) -> Iterator[str]:
        """Yield a message for every value of a manifest that does not match the header of ``.idx``."""
        path, idx = Manifest.path(self.prefix), self._idx.path
        fix = "the files belong to different datasets; build the dataset again"
        for name, actual in (
            ("sequences", self._sequences),
            ("documents", self.num_documents),
            ("tokens", self.num_tokens),
        ):
            if getattr(manifest, name) != actual:
                yield f"{path}: lists {getattr(manifest, name)} {name}, but {idx} holds {actual}; {fix}"
        limit = int(np.iinfo(self._dtype).max) + 1
        if manifest.vocab_size is not None and manifest.vocab_size > limit:
            yield (
                f"{path}: lists a vocabulary of {manifest.vocab_size}, but {idx} stores token ids as "
                f"{self._dtype}, which allows at most {limit}; {fix}"
            )

    def gather(self, positions: NDArray[np.int64]) -> NDArray[np.integer]:
        """Return the token ids at some positions of the stream.

        This is thread-safe and keeps no pages in memory.

        Args:
            positions: Positions in the stream, int64 ``[..., T]``. Along the last axis they are read in one
                call if they are close together.

        Returns:
            A copy in the same shape, in the dtype on disk.

        Raises:
            UserError: A position is out of range, a token id is negative, or reading fails.
        """
        if positions.size and (positions.min() < 0 or positions.max() >= self.num_tokens):
            raise UserError(
                f"{self._bin.path}: positions {positions.min()} to {positions.max()} requested, but it has "
                f"{self.num_tokens} tokens; copy or build the dataset and its segments again"
            )
        tokens = self._bin.gather(self._dtype, 0, positions)
        if self._dtype.kind == "i" and tokens.size and tokens.min() < 0:
            raise UserError(f"{self._bin.path}: holds the negative token id {tokens.min()}: {DAMAGED}")
        return tokens

    def spans(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the checked slices of the token stream that sentences ``first`` to ``last - 1`` occupy.

        Returns:
            Position of the first token and number of tokens of each, both int64 ``[last - first]``.

        Raises:
            UserError: A sentence does not lie within the stream.
        """
        last = min(last, self._sequences)
        lengths_begin, pointers_begin = HEADER.size, HEADER.size + 4 * self._sequences
        pointers = self._idx.read_array("<i8", pointers_begin + 8 * first, last - first).astype(np.int64)
        lengths = self._idx.read_array("<i4", lengths_begin + 4 * first, last - first).astype(np.int64)
        offsets, rest = np.divmod(pointers, self._dtype.itemsize)
        # offset + length could overflow; the difference of two non-negative numbers cannot.
        is_bad = (pointers < 0) | (rest != 0) | (lengths < 0) | (offsets > self.num_tokens - lengths)
        if is_bad.any():
            bad = int(is_bad.argmax())
            raise UserError(
                f"{self._idx.path}: sentence {first + bad} ({lengths[bad]} tokens at byte {pointers[bad]}) "
                f"does not lie within {self._bin.path.name}: {DAMAGED}"
            )
        return offsets, lengths

    def documents_between(self, first: int, last: int) -> NDArray[np.int64]:
        """Return the checked sentence boundaries of documents ``first`` to ``last - 1``.

        Returns:
            Index of the first sentence of each document, followed by the end of the last one: non-decreasing
            and from 0 to n, int64 ``[last - first + 1]``. Equal entries mean an empty document.

        Raises:
            UserError: The entries are not in order.
        """
        last = min(last, self.num_documents)
        begin = HEADER.size + 12 * self._sequences + 8 * first
        entries = self._idx.read_array("<i8", begin, last + 1 - first).astype(np.int64)
        # The next chunk starts with the last entry of this one, so the boundary between them is checked too.
        bounded = np.concatenate([[0], entries, [self._sequences]])
        is_bad = bounded[1:] < bounded[:-1]
        if is_bad.any():
            bad = first + min(int(is_bad.argmax()), len(entries) - 1)
            raise UserError(
                f"{self._idx.path}: document {bad} starts with sentence {self.documents[bad]} of "
                f"{self._sequences}, which is out of order: {DAMAGED}"
            )
        return entries

    def release(self) -> None:
        """Drop the pages read through views from this process's memory; the views stay valid."""
        self._idx.release()
        self._bin.release()

    def _read_header(self) -> tuple[np.dtype[np.integer], int, int]:
        """Check the header and size of ``.idx``; return the dtype and the lengths of the two tables."""
        path, size = self._idx.path, self._idx.size
        header = self._idx.read(0, HEADER.size)
        if header[: len(MAGIC)] != MAGIC:
            raise UserError(
                f"{path}: not an index in the Megatron-LM format (wrong magic bytes); build the dataset again"
            )
        if len(header) < HEADER.size:
            raise UserError(f"{path}: truncated within its header; copy or build the dataset again")
        _, version, code, sequences, entries = HEADER.unpack(header)
        if version != VERSION:
            raise UserError(
                f"{path}: unsupported version {version} of the format (supported: {VERSION}); build the "
                "dataset again"
            )
        if code not in DTYPES:
            raise UserError(f"{path}: dtype code {code} is not an integer type; build the dataset again")
        expected = HEADER.size + 12 * sequences + 8 * entries
        if size != expected:
            raise UserError(
                f"{path}: truncated or damaged (expected {expected} bytes, found {size}); copy or build the "
                "dataset again"
            )
        if sequences == 0 or entries < 2 or self._bin.size == 0:
            raise UserError(f"{path}: the dataset is empty; build it from a text that is not")
        return DTYPES[code], sequences, entries

    def _check_ends(self) -> None:
        """Check that the two files belong together, from the last sentence and the document index."""
        last_sentence = self._idx.read(HEADER.size + 4 * (self._sequences - 1), 4)
        last_pointer = self._idx.read(HEADER.size + 12 * self._sequences - 8, 8)
        length, pointer = struct.unpack("<iq", last_sentence + last_pointer)
        end = pointer + length * self._dtype.itemsize
        size = self._bin.size
        if end > size or size % self._dtype.itemsize:
            raise UserError(
                f"{self._bin.path}: truncated or from another dataset ({self._idx.path.name} expects {end} "
                f"bytes, found {size}); copy or build the dataset again"
            )
        self.spans(self._sequences - 1, self._sequences)
        begin = HEADER.size + 12 * self._sequences
        documents = self._idx.read(begin, 8) + self._idx.read(begin + 8 * self.num_documents, 8)
        first, last = struct.unpack("<qq", documents)
        if first != 0 or last != self._sequences:
            raise UserError(
                f"{self._idx.path}: the document index runs from {first} to {last} instead of from 0 to "
                f"{self._sequences}: {DAMAGED}"
            )
