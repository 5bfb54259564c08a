"""Segment policies: rules that cut a token stream into segments, the slices that samples are made of."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.utils.errors import UserError

SEGMENT = np.dtype([("offset", "<i8"), ("length", "<i4")])
"""Record of a segment: position of its first token in the stream, and its number of tokens."""

CHUNK_SIZE = 1 << 18
"""Number of sentences, documents or segments in memory at a time."""

Policy = Callable[[IndexedDataset, int], Iterator[NDArray[np.void]]]
"""Function of a dataset and the maximum number of tokens of a segment, T - 2, below 2^31. It yields the
segments in the order of the stream, as ``SEGMENT`` arrays of any size, and raises UserError on a damaged
index."""


def reference_segments(
    dataset: IndexedDataset, limit: int, chunk_size: int = CHUNK_SIZE
) -> Iterator[NDArray[np.void]]:
    """Yield segments of whole sentences of one document, as many as fit into the limit.

    A segment is filled up with the start of the sentence that exceeds the limit, and the next segment starts
    with the same sentence again, in full. If the first sentence of a document exceeds the limit by itself,
    the segment that it fills occurs twice. The rest at the end of a document is a segment too. Empty
    segments are left out.

    The sentences must be contiguous in the stream. Memory use is independent of the size of the dataset and
    of its documents; it is proportional to ``chunk_size``, or to the number of sentences of a segment if
    that is larger.
    """
    sentences, documents = dataset.num_sentences, dataset.num_documents
    # The next segment starts with `sentence`, which starts at `position` in the stream and is in `document`
    # or a later one. Each iteration reads a window of the tables that starts there.
    sentence = document = position = 0
    size = chunk_size
    while sentence < sentences:
        bounds = dataset.documents_between(document, min(document + size, documents))
        end = min(sentence + size, int(bounds[-1]))
        if end == sentence:  # All of these documents are empty.
            document += len(bounds) - 1
            continue
        starts = _sentence_starts(dataset, sentence, end, position)
        segments, consumed = _cut_window(
            starts, bounds[(bounds >= sentence) & (bounds <= end)] - sentence, limit
        )
        yield segments
        dataset.release()
        sentence, position = sentence + consumed, int(starts[consumed])
        document += int(np.searchsorted(bounds, sentence, side="right")) - 1
        size = chunk_size if consumed else 2 * size
    if position != dataset.num_tokens:
        raise _not_contiguous(dataset)


def packed_segments(
    dataset: IndexedDataset, limit: int, chunk_size: int = CHUNK_SIZE
) -> Iterator[NDArray[np.void]]:
    """Yield consecutive slices of the stream of ``limit`` tokens, across sentence and document boundaries.

    Only the last one may be shorter.
    """
    for first in range(0, dataset.num_tokens, limit * chunk_size):
        offsets = np.arange(first, min(first + limit * chunk_size, dataset.num_tokens), limit)
        segments = np.empty(len(offsets), dtype=SEGMENT)
        segments["offset"] = offsets
        segments["length"] = np.minimum(limit, dataset.num_tokens - offsets)
        yield segments


POLICIES: dict[str, Policy] = {"reference": reference_segments, "packed": packed_segments}
"""Segment policies by name."""


def _sentence_starts(dataset: IndexedDataset, first: int, last: int, position: int) -> NDArray[np.int64]:
    """Return the position of sentences ``first`` to ``last - 1``, and the end of the last one.

    Raises:
        UserError: The first one does not start at ``position``, or there are gaps between them.
    """
    offsets, lengths = dataset.spans(first, last)
    starts = np.append(offsets, offsets[-1] + lengths[-1])
    if starts[0] != position or not np.array_equal(starts[1:], offsets + lengths):
        raise _not_contiguous(dataset)
    return starts


def _not_contiguous(dataset: IndexedDataset) -> UserError:
    return UserError(
        f"{dataset.prefix}.idx: the sentences are not contiguous in .bin, as the segment policy requires; "
        "build the dataset again"
    )


def _cut_window(
    starts: NDArray[np.int64], bounds: NDArray[np.int64], limit: int
) -> tuple[NDArray[np.void], int]:
    """Return the segments that a window of ``W`` sentences determines.

    Args:
        starts: Position of each sentence in the stream, and the end of the last one, int64 ``[W + 1]``.
        bounds: Document boundaries within the window, as sentence indices from 0 to ``W``; equal entries mean
            empty documents. If ``W`` is missing, the last document continues beyond the window.
        limit: Maximum number of tokens of a segment.

    Returns:
        The segments, and the sentence, from 0 to ``W``, with which the next segment starts.
    """
    window = len(starts) - 1
    ends = np.append(bounds[bounds > 0], window)
    end_of = np.repeat(ends, np.diff(ends, prepend=0))  # end of each sentence's document, [W]
    # following[i] is the sentence in which a segment that starts with sentence i exceeds the limit. The
    # next segment starts with it, so the segments are found by following these links.
    following = np.searchsorted(starts, starts[:-1] + limit, side="right") - 1
    following = np.clip(following, np.arange(1, window + 1), end_of).tolist()
    stop = window
    if window not in bounds:
        # For the last sentences it is only known that the next segment starts beyond the window.
        stop = max(int(np.searchsorted(starts[:-1], starts[-1] - limit)), *ends[-2:-1].tolist(), 0)
    first_sentences, sentence = [], 0
    while sentence < stop:
        first_sentences.append(sentence)
        sentence = following[sentence]
    is_twice = np.zeros(window + 1, dtype=bool)
    is_twice[bounds] = True
    is_twice[:-1] &= np.diff(starts) > limit
    chosen = np.array(first_sentences, dtype=np.int64)
    chosen = np.repeat(chosen, 1 + is_twice[chosen])
    segments = np.empty(len(chosen), dtype=SEGMENT)
    segments["offset"] = starts[chosen]
    segments["length"] = np.minimum(limit, starts[end_of[chosen]] - starts[chosen])
    return segments[segments["length"] > 0], sentence
