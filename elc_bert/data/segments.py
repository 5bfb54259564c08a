"""Segments: which slice of the token stream a sample is, for each sequence length.

The reference policy fills a segment with whole sentences of one document until it would exceed
T - 2 tokens (two are for `[CLS]` and `[SEP]`), cuts it there, and starts the next segment with the
last sentence again, in full. What is left at the end of the document is a segment too, cut likewise.
"""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.indexed import IndexedDataset, with_suffix
from elc_bert.data.manifest import SegmentsEntry
from elc_bert.errors import UserError
from elc_bert.files import atomic_write, sha256_of

SEGMENT = np.dtype([("offset", "<i8"), ("length", "<i4")])
"""One segment: its first token's place in the stream, and its number of tokens."""

POLICY = "reference"
MIN_SEQUENCE_LENGTH = 8
SENTENCES_AT_ONCE = 1 << 20


def reference_segments(
    starts: NDArray[np.int64], documents: NDArray[np.int64], limit: int
) -> NDArray[np.void]:
    """The segments of some documents under the reference policy.

    Args:
        starts: place of each sentence in the token stream, and the end of the last one, int64 [n + 1].
        documents: first sentence of each document, and n, int64 [documents + 1].
        limit: most tokens in a segment, T - 2.

    Returns:
        Segments in the order of the stream, `SEGMENT` [count].
    """
    # A segment that starts with sentence i is cut in the sentence in which it exceeds the limit, and
    # that is the sentence that the next one starts with. Hence segments are a walk along `following`.
    too_long_with = np.searchsorted(starts, starts[:-1] + limit, side="right") - 1
    following = np.maximum(too_long_with, np.arange(1, len(starts))).tolist()
    too_long_alone = (np.diff(starts) > limit).tolist()
    first_sentences: list[int] = []
    segments_so_far = [0]
    for first, end in pairwise(documents.tolist()):
        if first < end and too_long_alone[first]:
            # Nothing came before it, so it is cut as a segment of its own and then starts the next one.
            first_sentences.append(first)
        sentence = first
        while sentence < end:
            first_sentences.append(sentence)
            sentence = following[sentence]
        segments_so_far.append(len(first_sentences))
    segments = np.empty(len(first_sentences), dtype=SEGMENT)
    segments["offset"] = starts[first_sentences]
    document_ends = np.repeat(starts[documents[1:]], np.diff(segments_so_far))
    segments["length"] = np.minimum(limit, document_ends - segments["offset"])
    return segments[segments["length"] > 0]


def build_segments(dataset: IndexedDataset, sequence_length: int, overwrite: bool = False) -> SegmentsEntry:
    """Writes the segment index of one sequence length and enters it in the manifest.

    A valid index that is there already stays as it is, unless `overwrite`.

    Raises:
        UserError: the sequence length is too short, or the sentences do not lie on end in `.bin`.
    """
    if sequence_length < MIN_SEQUENCE_LENGTH:
        raise UserError(f"sequence length {sequence_length} is too short; use {MIN_SEQUENCE_LENGTH} or more")
    manifest = dataset.manifest
    path = _path(dataset, sequence_length)
    known = manifest.find_segments(sequence_length, POLICY)
    if known is not None and not overwrite and path.is_file() and sha256_of(path) == known.sha256:
        return known
    count = tokens = 0
    with atomic_write(path) as file:
        # The header leaves room for any count, so that it can be written again when that is known.
        _write_npy_header(file, 0)
        for segments in _segments_in_parts(dataset, sequence_length - 2):
            file.write(segments.tobytes())
            count += len(segments)
            tokens += int(segments["length"].sum(dtype=np.int64))
        file.seek(0)
        _write_npy_header(file, count)
    entry = SegmentsEntry(
        sequence_length=sequence_length,
        policy=POLICY,
        file=path.name,
        count=count,
        tokens=tokens,
        sha256=sha256_of(path),
    )
    manifest.with_segments(entry).save(dataset.prefix)
    return entry


class SegmentIndex:
    """A memory-mapped segment index: `index(samples)` gives the slices of the token stream.

    Args:
        path: of the `.npy` file.
        num_tokens: length of the token stream that the slices must lie in.
        count: segments that the manifest promises, or None.

    Raises:
        UserError: the file is missing, truncated, no segment index, or has another count.
    """

    def __init__(self, path: str | os.PathLike[str], num_tokens: int, count: int | None = None):
        self.path = Path(path)
        self.num_tokens = num_tokens
        try:
            segments = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UserError(f"{self.path}: cannot open the segment index: {reason}; {self._mend}") from None
        if segments.dtype != SEGMENT or segments.ndim != 1 or len(segments) == 0:
            raise UserError(f"{self.path}: not a segment index; {self._mend}")
        if count is not None and len(segments) != count:
            raise UserError(
                f"{self.path}: {len(segments)} segments, but the manifest says {count}; {self._mend}"
            )
        self._segments = np.asarray(segments)

    _mend = "build it again with: python -m data_tools segments --overwrite"

    def __reduce__(self):
        return SegmentIndex, (self.path, self.num_tokens, len(self))

    def __len__(self) -> int:
        return len(self._segments)

    def __call__(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Offsets and lengths of some segments.

        Args:
            samples: numbers of segments, int64 [B].

        Returns:
            Place of the first token in the stream and number of tokens, both int64 [B].

        Raises:
            UserError: a slice lies outside of the token stream.
        """
        segments = self._segments[samples]
        offsets, lengths = segments["offset"].astype(np.int64), segments["length"].astype(np.int64)
        outside = (offsets < 0) | (lengths < 1) | (lengths > self.num_tokens - offsets)
        if outside.any():
            bad = int(np.asarray(samples)[outside][0])
            raise UserError(f"{self.path}: segment {bad} lies outside of the token stream; {self._mend}")
        return offsets, lengths


def open_segments(dataset: IndexedDataset, sequence_length: int) -> SegmentIndex:
    """Opens the segment index of a dataset for one sequence length.

    Raises:
        UserError: there is none, or it is damaged.
    """
    entry = dataset.manifest.find_segments(sequence_length, POLICY)
    if entry is None:
        raise UserError(
            f"{dataset.prefix}: no segment index for sequence length {sequence_length}; "
            f"run: python -m data_tools segments {dataset.prefix} --lengths {sequence_length}"
        )
    return SegmentIndex(dataset.prefix.with_name(entry.file), dataset.num_tokens, entry.count)


def _path(dataset: IndexedDataset, sequence_length: int) -> Path:
    return with_suffix(dataset.prefix, f".segments-{sequence_length}.npy")


def _write_npy_header(file, count: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(SEGMENT), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


def _segments_in_parts(dataset: IndexedDataset, limit: int):
    """Segments of a few whole documents at a time, so that memory does not grow with the dataset."""
    documents, itemsize = dataset.documents, dataset.tokens.dtype.itemsize
    begin = 0
    while begin < len(documents) - 1:
        end = int(np.searchsorted(documents, documents[begin] + SENTENCES_AT_ONCE, side="right")) - 1
        end = max(end, begin + 1)
        first, last = int(documents[begin]), int(documents[end])
        lengths, pointers = dataset.lengths[first:last], dataset.pointers[first:last]
        if last > first:
            starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]) + pointers[0] // itemsize
            if not np.array_equal(starts[:-1] * itemsize, pointers):
                raise UserError(
                    f"{dataset.prefix}.idx: sentences do not lie on end in .bin, which segments need; "
                    "build the dataset again"
                )
            yield reference_segments(starts, documents[begin : end + 1] - first, limit)
        begin = end
