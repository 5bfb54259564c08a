"""Sequential reading of a token dataset, some sentences at a time, in bounded memory."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_tools.progress import progress_bar
from elc_bert.data.format.indexed import IndexedDataset

if TYPE_CHECKING:
    from tqdm import tqdm

SENTENCES_AT_ONCE = 1 << 20
"""Maximum number of sentences in a batch of spans."""
TOKENS_AT_ONCE = 1 << 23
"""Maximum number of tokens in a batch, unless it is a single sentence."""


class Spans(NamedTuple):
    """Positions of consecutive sentences in the token stream."""

    offsets: NDArray[np.int64]
    """Position of the first token of each sentence, ``[sentences]``."""
    lengths: NDArray[np.int64]
    """Number of tokens of each sentence, ``[sentences]``."""
    document_ends: NDArray[np.int64]
    """Number of sentences, counted from the first of these, after which each document ends,
    ``[documents]``."""


class SentenceBatch(NamedTuple):
    """Consecutive sentences with their tokens: the arguments of ``IndexedDatasetWriter.add``."""

    tokens: NDArray[np.integer]
    """Tokens of all sentences, concatenated, in the dtype on disk, ``[sum of lengths]``."""
    lengths: NDArray[np.int64]
    """Number of tokens of each sentence, ``[sentences]``."""
    document_ends: NDArray[np.int64]
    """Number of sentences, counted from the first of these, after which each document ends,
    ``[documents]``."""


def read_spans(dataset: IndexedDataset) -> Iterator[Spans]:
    """Yield the spans of all sentences of a dataset, in order and in batches, without reading the tokens.

    Raises:
        UserError: The index is damaged.
    """
    sentences, entries = dataset.num_sentences, dataset.num_documents + 1
    document = 0
    for first in range(0, sentences, SENTENCES_AT_ONCE):
        last = min(first + SENTENCES_AT_ONCE, sentences)
        # The last batch takes all remaining documents, so that every entry of a damaged index is checked.
        is_last = last == sentences
        end = entries if is_last else int(np.searchsorted(dataset.documents, last, side="right"))
        document_ends = dataset.documents_between(document, max(document, end - 1))[1:]
        document += len(document_ends)
        yield Spans(*dataset.spans(first, last), document_ends - first)
        dataset.release()


def read_batches(dataset: IndexedDataset, progress: "tqdm") -> Iterator[SentenceBatch]:
    """Yield all sentences of a dataset with their tokens, in order and in batches.

    A batch has at most ``TOKENS_AT_ONCE`` tokens or is a single sentence, so that memory is bounded. The
    sentences may be stored in ``.bin`` in any order.

    Args:
        dataset: Dataset to read.
        progress: Progress bar from ``reading_progress``.

    Raises:
        UserError: The index is damaged.
    """
    for offsets, lengths, document_ends in read_spans(dataset):
        token_ends = np.cumsum(lengths)
        first = before = 0
        while first < len(lengths):
            fitting = int(np.searchsorted(token_ends, before + TOKENS_AT_ONCE, side="right"))
            last = max(fitting, first + 1)
            begin, end = np.searchsorted(document_ends, [first, last], side="right")
            tokens = _gather(dataset.tokens, offsets[first:last], lengths[first:last])
            yield SentenceBatch(tokens, lengths[first:last], document_ends[begin:end] - first)
            progress.update(_size(len(tokens), last - first, dataset))
            dataset.release()
            first, before = last, int(token_ends[last - 1])


def _gather(
    tokens: NDArray[np.integer], offsets: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.integer]:
    """Return the concatenated tokens of some sentences: a view if they are contiguous in the token stream."""
    ends = offsets + lengths
    starts_run = np.concatenate([[True], offsets[1:] != ends[:-1]])
    ends_run = np.append(starts_run[1:], True)
    runs = zip(offsets[starts_run].tolist(), ends[ends_run].tolist(), strict=True)
    slices = [tokens[begin:end] for begin, end in runs]
    return slices[0] if len(slices) == 1 else np.concatenate(slices)


def _size(tokens: int, sentences: int, dataset: IndexedDataset) -> int:
    """Return the size in bytes of some tokens and of the lengths and pointers of their sentences."""
    return tokens * dataset.tokens.itemsize + sentences * 12


def reading_progress(datasets: Iterable[IndexedDataset], prefix: Path) -> "tqdm":
    """Return a progress bar for the bytes of the datasets that are read.

    Args:
        datasets: Datasets to read.
        prefix: Dataset whose name is the title of the bar.
    """
    total = sum(_size(dataset.num_tokens, dataset.num_sentences, dataset) for dataset in datasets)
    return progress_bar(total, "B", prefix.name)
