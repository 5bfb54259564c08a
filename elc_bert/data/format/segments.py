"""Segment indexes: which slice of the token stream a sample is, for each sequence length and policy."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.format.indexed import IndexedDataset, with_suffix
from elc_bert.data.format.manifest import SegmentsEntry, locked
from elc_bert.data.format.mapping import MappedFile
from elc_bert.data.format.policies import POLICIES, SEGMENT
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write, sha256_of

POLICY = "reference"
"""The policy where none is named."""
MIN_SEQUENCE_LENGTH = 8
MAX_SEQUENCE_LENGTH = 1 << 31

_NPY_START = b"\x93NUMPY\x01\x00"
_NPY_AT_MOST = 4096
"""Bytes of a header, which takes 128 as NumPy writes it."""
_NPY_HEADER = re.compile(
    rb"{'descr':\[\('offset','<i8'\),\('length','<i4'\)\],'fortran_order':False,'shape':\((\d{1,19}),\),?}"
)


def check_sequence_length(sequence_length: int) -> None:
    """Makes sure that segments can be cut for a sequence length.

    Raises:
        UserError: it is out of range.
    """
    if not MIN_SEQUENCE_LENGTH <= sequence_length <= MAX_SEQUENCE_LENGTH:
        word = "short" if sequence_length < MIN_SEQUENCE_LENGTH else "long"
        raise UserError(
            f"sequence length {sequence_length} is too {word}; use {MIN_SEQUENCE_LENGTH} or more, up to "
            f"{MAX_SEQUENCE_LENGTH}"
        )


def segment_files(prefix: Path) -> list[Path]:
    """The files beside a dataset that are named as its segment indexes, whatever the manifest says."""
    start = f"{prefix.name}.segments-"
    if not prefix.parent.is_dir():
        return []
    return [each for each in prefix.parent.iterdir() if each.name.startswith(start) and each.suffix == ".npy"]


def segments_of(
    dataset: IndexedDataset, sequence_length: int, policy: str = POLICY
) -> Iterator[NDArray[np.void]]:
    """The segments of a dataset, in order, in parts of any size, `SEGMENT` [some].

    Raises:
        UserError: the sequence length is out of range, there is no such policy, or the dataset is damaged.
    """
    check_sequence_length(sequence_length)
    if policy not in POLICIES:
        known = ", ".join(POLICIES)
        raise UserError(f"{dataset.prefix}: segments of policy {policy} are unknown; use one of: {known}")
    return POLICIES[policy](dataset, sequence_length - 2)


def build_segments(
    dataset: IndexedDataset,
    sequence_length: int,
    policy: str = POLICY,
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> SegmentsEntry:
    """Writes the segment index of one sequence length and enters it in the manifest.

    A valid index that is there already stays as it is, unless `overwrite`. Several processes may add
    indexes to one dataset at a time.

    Args:
        dataset: whose segments they are.
        sequence_length: `T`.
        policy: a key of `POLICIES`.
        overwrite: write the index even if it is there.
        progress: called with the number of tokens that were passed since it was called before.

    Raises:
        UserError: the sequence length is out of range, there is no such policy, the dataset is damaged,
            or its sentences do not lie on end in `.bin`, which `reference` needs.
    """
    parts = segments_of(dataset, sequence_length, policy)
    path = _path(dataset, sequence_length, policy)
    known = dataset.manifest.find_segments(sequence_length, policy)
    if known is not None and not overwrite and path.is_file() and sha256_of(path) == known.sha256:
        return known
    count = tokens = passed = 0
    with atomic_write(path) as file:
        # The header leaves room for any count, so that it can be written again when that is known.
        _write_npy_header(file, 0)
        for segments in parts:
            file.write(segments.tobytes())
            count += len(segments)
            tokens += int(segments["length"].sum(dtype=np.int64))
            if progress is not None and len(segments):
                before, passed = passed, int(segments["offset"][-1]) + int(segments["length"][-1])
                progress(passed - before)
        file.seek(0)
        _write_npy_header(file, count)
    entry = SegmentsEntry(
        sequence_length=sequence_length,
        policy=policy,
        file=path.name,
        count=count,
        tokens=tokens,
        sha256=sha256_of(path),
    )
    with locked(dataset.prefix):
        dataset.manifest.with_segments(entry).save(dataset.prefix)
    return entry


class SegmentIndex:
    """A segment index on disk: `index(samples)` gives the slices of the token stream.

    Opening it takes the same time for any size. Threads and forked processes may share it; a copy sent
    to another process opens the file again by name.

    Args:
        path: of the `.npy` file.
        num_tokens: length of the token stream that the slices must lie in.
        count: segments that the manifest promises, or None.
        command: what to run to have the file built again.

    Raises:
        UserError: the file is missing, truncated, no segment index, or has another count.
    """

    def __init__(self, path: str | os.PathLike[str], num_tokens: int, count: int | None, command: str):
        self.path = Path(path)
        self.num_tokens = num_tokens
        self._command = command
        try:
            self._file = MappedFile(self.path)
        except OSError as error:
            raise self._error(f"cannot open the segment index: {error.strerror}") from None
        self._start, self._count = self._read_header()
        if count is not None and self._count != count:
            raise self._error(f"{self._count} segments, but the manifest says {count}")

    def __reduce__(self):
        return SegmentIndex, (self.path, self.num_tokens, len(self), self._command)

    def __len__(self) -> int:
        return self._count

    def __call__(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Offsets and lengths of some segments.

        Args:
            samples: numbers of segments in [0, len(self)), int64 [B].

        Returns:
            Place of the first token in the stream and number of tokens, both int64 [B].

        Raises:
            UserError: a slice lies outside of the token stream, or reading fails.
            IndexError: there is no segment of a number.
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
        """Where the first segment stands in the file, in bytes, and how many there are."""
        size, fixed = self._file.size, len(_NPY_START) + 2
        header = self._file.gather(np.uint8, 0, np.arange(min(size, _NPY_AT_MOST))).tobytes()
        start = fixed + int.from_bytes(header[fixed - 2 : fixed], "little")
        # Compared and not evaluated, as NumPy does: whatever else stands there does no harm.
        found = _NPY_HEADER.fullmatch(b"".join(header[fixed:start].split()))
        if not header.startswith(_NPY_START) or not found or start > len(header):
            raise self._error("not a segment index")
        count = int(found[1])
        expected = start + count * SEGMENT.itemsize
        if size != expected:
            raise self._error(
                f"cannot open the segment index: {size} bytes, but its header describes {expected}: "
                "truncated or damaged"
            )
        if count == 0:
            raise self._error("the segment index is empty")
        return start, count

    def _error(self, message: str) -> UserError:
        return UserError(f"{self.path}: {message}; build it again with: {self._command}")


def open_segments(dataset: IndexedDataset, sequence_length: int, policy: str = POLICY) -> SegmentIndex:
    """Opens the segment index of a dataset for one sequence length.

    Raises:
        UserError: there is none, or it is damaged.
    """
    entry = dataset.manifest.find_segments(sequence_length, policy)
    command = segments_command(dataset.prefix, sequence_length, policy)
    if entry is None:
        kind = "" if policy == POLICY else f"{policy} "
        raise UserError(
            f"{dataset.prefix}: no {kind}segment index for sequence length {sequence_length}; run: {command}"
        )
    path = dataset.prefix.with_name(entry.file)
    return SegmentIndex(path, dataset.num_tokens, entry.count, f"{command} --overwrite")


def segments_command(prefix: Path, sequence_length: int, policy: str) -> str:
    """What a user runs to add a segment index to a dataset."""
    option = "" if policy == POLICY else f" --policy {policy}"
    return f"python -m data_tools segments {prefix} --lengths {sequence_length}{option}"


def _path(dataset: IndexedDataset, sequence_length: int, policy: str) -> Path:
    suffix = "" if policy == POLICY else f"-{policy}"
    return with_suffix(dataset.prefix, f".segments-{sequence_length}{suffix}.npy")


def _write_npy_header(file, count: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(SEGMENT), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)
