"""Segment indexes: the slices of the token stream that samples are made of, by sequence length and policy.

Shapes: ``B`` samples.
"""

import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.format.coverage import Coverage
from elc_bert.data.format.indexed import IndexedDataset, with_suffix
from elc_bert.data.format.manifest import SegmentsEntry, manifest_lock
from elc_bert.data.format.mapped_file import MappedFile
from elc_bert.data.format.policies import CHUNK_SIZE, POLICIES, SEGMENT
from elc_bert.utils.errors import UserError, limit_advice
from elc_bert.utils.files import atomic_write, sha256_of
from elc_bert.utils.text import printable

POLICY = "reference"
"""Default segment policy."""
MIN_SEQUENCE_LENGTH = 8
MAX_SEQUENCE_LENGTH = 1 << 31

_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_MAX_HEADER = 4096
"""Maximum size of a header in bytes; NumPy writes 128."""
_NPY_HEADER = re.compile(
    rb"{'descr':\[\('offset','<i8'\),\('length','<i4'\)\],'fortran_order':False,'shape':\((\d{1,19}),\),?}"
)


def check_sequence_length(sequence_length: int) -> None:
    """Check that segments can be built for a sequence length.

    Raises:
        UserError: The sequence length is out of range.
    """
    if not MIN_SEQUENCE_LENGTH <= sequence_length <= MAX_SEQUENCE_LENGTH:
        word = "short" if sequence_length < MIN_SEQUENCE_LENGTH else "long"
        raise UserError(
            f"sequence length {sequence_length} is too {word}; use {MIN_SEQUENCE_LENGTH} to "
            f"{MAX_SEQUENCE_LENGTH}"
        )


def segment_files(prefix: Path) -> list[Path]:
    """Return the files named like segment indexes of a dataset, listed in its manifest or not."""
    start = f"{prefix.name}.segments-"
    if not prefix.parent.is_dir():
        return []
    return [each for each in prefix.parent.iterdir() if each.name.startswith(start) and each.suffix == ".npy"]


def iter_segments(
    dataset: IndexedDataset, sequence_length: int, policy: str = POLICY
) -> Iterator[NDArray[np.void]]:
    """Return an iterator over the segments of a dataset, in order, as ``SEGMENT`` arrays of any size.

    Raises:
        UserError: The sequence length is out of range, the policy is unknown, or the dataset is damaged.
    """
    check_sequence_length(sequence_length)
    if policy not in POLICIES:
        known = ", ".join(POLICIES)
        raise UserError(f"{dataset.prefix}: unknown segment policy {policy}; use one of: {known}")
    return POLICIES[policy](dataset, sequence_length - 2)


def build_segments(
    dataset: IndexedDataset,
    sequence_length: int,
    policy: str = POLICY,
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> SegmentsEntry:
    """Write the segment index for a sequence length and add it to the manifest.

    A valid existing index is kept unless ``overwrite`` is set. Several processes may add indexes to the same
    dataset at the same time.

    Args:
        dataset: Dataset to cut into segments.
        sequence_length: Sequence length T; a segment has at most T - 2 tokens.
        policy: Segment policy, a key of ``POLICIES``.
        overwrite: Write the index even if a valid one exists.
        progress: Callback that receives the number of tokens processed since its last call.

    Returns:
        The entry of the index in the manifest, with the number of unread tokens.

    Raises:
        UserError: The sequence length is out of range, the policy is unknown, the dataset is damaged, or its
            sentences are not contiguous in ``.bin``, as ``reference`` requires, or its name is not UTF-8.
    """
    chunks = iter_segments(dataset, sequence_length, policy)
    path = _index_path(dataset, sequence_length, policy)
    if printable(path.name) != path.name:
        raise UserError(
            f"{printable(dataset.prefix)}: the name is not valid UTF-8, so a manifest cannot hold it; rename "
            "the files of the dataset"
        )
    known = dataset.manifest.find_segments(sequence_length, policy)
    if known is not None and not overwrite and path.is_file() and sha256_of(path) == known.sha256:
        return with_unread(dataset, known)
    coverage = Coverage()
    count = tokens = processed = 0
    with atomic_write(path) as file:
        # The header is padded for any count, so it can be overwritten once the count is known.
        _write_npy_header(file, 0)
        for segments in chunks:
            file.write(segments.tobytes())
            count += len(segments)
            tokens += int(segments["length"].sum(dtype=np.int64))
            coverage.add(segments["offset"], segments["length"])
            if progress is not None and len(segments):
                before, processed = processed, int(segments["offset"][-1]) + int(segments["length"][-1])
                progress(processed - before)
        file.seek(0)
        _write_npy_header(file, count)
    entry = SegmentsEntry(
        sequence_length=sequence_length,
        policy=policy,
        file=path.name,
        count=count,
        tokens=tokens,
        sha256=sha256_of(path),
        unread=dataset.num_tokens - coverage.covered,
    )
    with manifest_lock(dataset.prefix):
        dataset.manifest.with_segments(entry).save(dataset.prefix)
    return entry


class SegmentIndex:
    """Segment index on disk: ``index(samples)`` returns slices of the token stream.

    Opening an index takes constant time. Threads and forked processes may share it; when pickled, it is
    reopened by its path.

    Args:
        path: Path of the ``.npy`` file.
        num_tokens: Length of the token stream that the slices must lie within.
        count: Number of segments that the manifest lists, or None.
        command: Command that builds the file again, for error messages.

    Raises:
        UserError: The file is missing, truncated, not a segment index, or has another number of segments.
    """

    def __init__(
        self, path: str | os.PathLike[str], num_tokens: int, count: int | None, command: str
    ) -> None:
        self.path = Path(path)
        self.num_tokens = num_tokens
        self._command = command
        try:
            self._file = MappedFile(self.path)
        except OSError as error:
            if advice := limit_advice(error):
                raise UserError(f"{self.path}: {error.strerror}; {advice}") from None
            raise self._error(f"cannot open the segment index: {error.strerror}") from None
        self._start, self._count = self._read_header()
        if count is not None and self._count != count:
            raise self._error(f"{self._count} segments, but the manifest lists {count}")

    def __reduce__(self) -> tuple[type["SegmentIndex"], tuple[Path, int, int, str]]:
        return SegmentIndex, (self.path, self.num_tokens, len(self), self._command)

    def __len__(self) -> int:
        return self._count

    def __call__(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the offsets and lengths of some segments.

        Args:
            samples: Indices of segments, int64 ``[B]``.

        Returns:
            Position of the first token in the stream and number of tokens, both int64 ``[B]``.

        Raises:
            UserError: A slice lies outside of the token stream, or reading fails.
            IndexError: An index is out of range.
        """
        if samples.size and (samples.min() < 0 or samples.max() >= len(self)):
            raise IndexError(f"segments {samples.min()} to {samples.max()} of {len(self)}")
        segments = self._file.gather(SEGMENT, self._start, samples)
        offsets, lengths = segments["offset"].astype(np.int64), segments["length"].astype(np.int64)
        outside = (offsets < 0) | (lengths < 1) | (lengths > self.num_tokens - offsets)
        if outside.any():
            raise self._error(f"segment {samples[outside][0]} lies outside of the token stream")
        return offsets, lengths

    def _read_header(self) -> tuple[int, int]:
        """Return the offset of the first record in the file, in bytes, and the number of records."""
        size, fixed = self._file.size, len(_NPY_MAGIC) + 2
        header = self._file.gather(np.uint8, 0, np.arange(min(size, _NPY_MAX_HEADER))).tobytes()
        start = fixed + int.from_bytes(header[fixed - 2 : fixed], "little")
        # NumPy evaluates the header as a Python literal; matching a pattern is safe for any content.
        found = _NPY_HEADER.fullmatch(b"".join(header[fixed:start].split()))
        if not header.startswith(_NPY_MAGIC) or not found or start > len(header):
            raise self._error("not a segment index")
        count = int(found[1])
        expected = start + count * SEGMENT.itemsize
        if size != expected:
            raise self._error(
                f"the segment index is truncated or damaged (expected {expected} bytes, found {size})"
            )
        if count == 0:
            raise self._error("the segment index is empty")
        return start, count

    def _error(self, message: str) -> UserError:
        return UserError(f"{self.path}: {message}; build it again with: {self._command}")


def open_segments(dataset: IndexedDataset, sequence_length: int, policy: str = POLICY) -> SegmentIndex:
    """Open the segment index of a dataset for a sequence length and policy.

    Raises:
        UserError: There is no such index, or it is damaged.
    """
    check_segments([(dataset, [sequence_length])], policy)
    entry = dataset.manifest.find_segments(sequence_length, policy)
    assert entry is not None
    command = segments_command(dataset.prefix, sequence_length, policy)
    path = dataset.prefix.with_name(entry.file)
    return SegmentIndex(path, dataset.num_tokens, entry.count, f"{command} --overwrite")


def with_unread(dataset: IndexedDataset, entry: SegmentsEntry) -> SegmentsEntry:
    """Return a manifest entry with the number of unread tokens, which early versions did not record.

    Raises:
        UserError: The segment index has to be read for it, and is missing or damaged.
    """
    if entry.unread is not None:
        return entry
    index = open_segments(dataset, entry.sequence_length, entry.policy)
    coverage = Coverage()
    for first in range(0, len(index), CHUNK_SIZE):
        coverage.add(*index(np.arange(first, min(first + CHUNK_SIZE, len(index)))))
    return entry.model_copy(update={"unread": dataset.num_tokens - coverage.covered})


def check_segments(wanted: Iterable[tuple[IndexedDataset, Iterable[int]]], policy: str = POLICY) -> None:
    """Check that datasets list all segment indexes that a run needs.

    Args:
        wanted: Datasets, each with the sequence lengths that are needed of it.
        policy: Segment policy.

    Raises:
        UserError: Some are missing. The message names all of them, and one command that adds them.
    """
    missing: dict[Path, set[int]] = {}
    for dataset, lengths in wanted:
        for length in lengths:
            if dataset.manifest.find_segments(length, policy) is None:
                missing.setdefault(dataset.prefix, set()).add(length)
    if not missing:
        return
    kind = "" if policy == POLICY else f"{policy} "
    parts = [
        f"{prefix}: no {kind}segment index for sequence length{'s' * (len(lengths) > 1)} "
        f"{' and '.join(map(str, sorted(lengths)))}"
        for prefix, lengths in missing.items()
    ]
    command = segments_command(list(missing), sorted(set.union(*missing.values())), policy)
    raise UserError(f"{'; '.join(parts)}; run: {command}")


def segments_command(prefixes: Path | Sequence[Path], lengths: int | Sequence[int], policy: str) -> str:
    """Return the command that adds segment indexes to datasets, as for a shell."""
    prefixes = [prefixes] if isinstance(prefixes, Path) else prefixes
    lengths = [lengths] if isinstance(lengths, int) else lengths
    option = [] if policy == POLICY else ["--policy", policy]
    words = ["segments", *map(str, prefixes), "--lengths", *map(str, lengths), *option]
    return f"python -m data_tools {shlex.join(words)}"


def _index_path(dataset: IndexedDataset, sequence_length: int, policy: str) -> Path:
    suffix = "" if policy == POLICY else f"-{policy}"
    return with_suffix(dataset.prefix, f".segments-{sequence_length}{suffix}.npy")


def _write_npy_header(file: IO[bytes], count: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(SEGMENT), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)
