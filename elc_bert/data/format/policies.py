"""Policies: how a token stream is cut into segments, the slices that samples are made of."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.utils.errors import UserError

SEGMENT = np.dtype([("offset", "<i8"), ("length", "<i4")])
"""One segment: its first token's place in the stream, and its number of tokens."""

AT_ONCE = 1 << 18
"""Sentences, documents or segments that are in memory at a time."""

Policy = Callable[[IndexedDataset, int], Iterator[NDArray[np.void]]]
"""Takes a dataset and the most tokens of a segment, T - 2, which is below 2^31; yields the segments in the
order of the stream in parts of any size, `SEGMENT` [some]. Raises UserError on a damaged index."""


def reference_segments(
    dataset: IndexedDataset, limit: int, at_once: int = AT_ONCE
) -> Iterator[NDArray[np.void]]:
    """Whole sentences of one document, until the next one would exceed the limit.

    The segment is filled up with what still fits of that sentence, and the next segment starts with the
    same sentence again, in full. A document's first sentence that exceeds the limit by itself is a
    segment of its own and then starts the next one. What is left at the end of the document is a segment
    too. Empty ones are left out.

    The sentences must lie on end in the stream. Memory does not grow with the dataset, nor with a
    document, but with `at_once`, or with the sentences of one segment if those are more.
    """
    sentences, documents = len(dataset.lengths), len(dataset.documents) - 1
    # The walk stands on `sentence`, which begins at `place` of the stream and is in `document` or in
    # one that follows it. It looks at a window of the tables that begins there.
    sentence = document = place = 0
    size = at_once
    while sentence < sentences:
        bounds = dataset.documents_between(document, min(document + size, documents))
        end = min(sentence + size, int(bounds[-1]))
        if end == sentence:  # These documents are empty.
            document += len(bounds) - 1
            continue
        starts = _starts(dataset, sentence, end, place)
        segments, steps = _cut(starts, bounds[(bounds >= sentence) & (bounds <= end)] - sentence, limit)
        yield segments
        dataset.release()
        sentence, place = sentence + steps, int(starts[steps])
        document += int(np.searchsorted(bounds, sentence, side="right")) - 1
        size = at_once if steps else 2 * size
    if place != dataset.num_tokens:
        raise _not_on_end(dataset)


def packed_segments(
    dataset: IndexedDataset, limit: int, at_once: int = AT_ONCE
) -> Iterator[NDArray[np.void]]:
    """Slices of the stream, each as long as the limit, whatever sentences and documents they cut.

    Only the last one may be shorter.
    """
    for first in range(0, dataset.num_tokens, limit * at_once):
        offsets = np.arange(first, min(first + limit * at_once, dataset.num_tokens), limit)
        segments = np.empty(len(offsets), dtype=SEGMENT)
        segments["offset"] = offsets
        segments["length"] = np.minimum(limit, dataset.num_tokens - offsets)
        yield segments


POLICIES: dict[str, Policy] = {"reference": reference_segments, "packed": packed_segments}


def _starts(dataset: IndexedDataset, first: int, last: int, place: int) -> NDArray[np.int64]:
    """Where the sentences [first, last) begin in the stream, and where the last one ends, int64 [n + 1]."""
    offsets, lengths = dataset.spans(first, last)
    starts = np.append(offsets, offsets[-1] + lengths[-1])
    if starts[0] != place or not np.array_equal(starts[1:], offsets + lengths):
        raise _not_on_end(dataset)
    return starts


def _not_on_end(dataset: IndexedDataset) -> UserError:
    return UserError(
        f"{dataset.prefix}.idx: sentences do not lie on end in .bin, which segments need; "
        "build the dataset again"
    )


def _cut(starts: NDArray[np.int64], bounds: NDArray[np.int64], limit: int) -> tuple[NDArray[np.void], int]:
    """The segments of a window of `W` sentences, as far as it can tell.

    Args:
        starts: place of each sentence in the stream, and the end of the last one, int64 [W + 1].
        bounds: in the window, the first sentence of each document and the end of the last one, from 0 to
            `W`, some of them equal; without `W` the last document goes on beyond the window.
        limit: most tokens of a segment.

    Returns:
        The segments, and the sentence, from 0 to `W`, with which the next one starts.
    """
    window = len(starts) - 1
    ends = np.append(bounds[bounds > 0], window)
    end_of = np.repeat(ends, np.diff(ends, prepend=0))  # of the document of each sentence, [W]
    # A segment that starts with a sentence is cut in the one in which it exceeds the limit, and that is
    # what the next segment starts with. Hence segments are a walk along `following`.
    following = np.searchsorted(starts, starts[:-1] + limit, side="right") - 1
    following = np.clip(following, np.arange(1, window + 1), end_of).tolist()
    stop = window
    if window not in bounds:
        # Of the last sentences it is only known that the next segment starts beyond the window.
        stop = max(int(np.searchsorted(starts[:-1], starts[-1] - limit)), *ends[-2:-1].tolist(), 0)
    walk, sentence = [], 0
    while sentence < stop:
        walk.append(sentence)
        sentence = following[sentence]
    is_twice = np.zeros(window + 1, dtype=bool)
    is_twice[bounds] = True
    is_twice[:-1] &= np.diff(starts) > limit
    chosen = np.array(walk, dtype=np.int64)
    chosen = np.repeat(chosen, 1 + is_twice[chosen])
    segments = np.empty(len(chosen), dtype=SEGMENT)
    segments["offset"] = starts[chosen]
    segments["length"] = np.minimum(limit, starts[end_of[chosen]] - starts[chosen])
    return segments[segments["length"] > 0], sentence
