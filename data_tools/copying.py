"""What `merge` and `split` share: reading datasets part by part, and writing others from them."""

import argparse
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from elc_bert import __version__
from elc_bert.data.format.indexed import IndexedDataset, with_suffix
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.segments import build_segments
from elc_bert.data.format.writer import Written
from elc_bert.utils.errors import UserError

SENTENCES_AT_ONCE = 1 << 20
TOKENS_AT_ONCE = 1 << 23


class Spans(NamedTuple):
    """Where some sentences that follow one another lie."""

    offsets: NDArray[np.int64]
    """Place of each in the token stream, in tokens, [sentences]."""
    lengths: NDArray[np.int64]
    """Tokens of each, [sentences]."""
    document_ends: NDArray[np.int64]
    """Numbers of these sentences after which a document ends, [documents]."""


class Part(NamedTuple):
    """Some sentences that follow one another, as `IndexedDatasetWriter.add` takes them."""

    tokens: NDArray[np.integer]
    """Of all of them on end, in the dtype on disk, [sum of lengths]."""
    lengths: NDArray[np.int64]
    document_ends: NDArray[np.int64]


def read_spans(dataset: IndexedDataset) -> Iterator[Spans]:
    """All sentences of a dataset in order, some at a time, without reading a token.

    Raises:
        UserError: the tables are damaged.
    """
    sentences, entries = len(dataset.lengths), len(dataset.documents)
    document = 0
    for first in range(0, sentences, SENTENCES_AT_ONCE):
        last = min(first + SENTENCES_AT_ONCE, sentences)
        # The last part takes all documents that are left, so that none of a damaged index is passed over.
        is_last = last == sentences
        end = entries if is_last else int(np.searchsorted(dataset.documents, last, side="right"))
        document_ends = dataset.documents_between(document, max(document, end - 1))[1:]
        document += len(document_ends)
        yield Spans(*dataset.spans(first, last), document_ends - first)
        dataset.release()


def read_parts(dataset: IndexedDataset, progress: tqdm) -> Iterator[Part]:
    """All sentences of a dataset in order, with their tokens.

    A part has at most `TOKENS_AT_ONCE` tokens or is one sentence, so that memory stays within bounds.
    Sentences may lie in `.bin` in any order.

    Args:
        progress: a bar of `progress_bar`.
    """
    for offsets, lengths, document_ends in read_spans(dataset):
        token_ends = np.cumsum(lengths)
        first = before = 0
        while first < len(lengths):
            fitting = int(np.searchsorted(token_ends, before + TOKENS_AT_ONCE, side="right"))
            last = max(fitting, first + 1)
            begin, end = np.searchsorted(document_ends, [first, last], side="right")
            tokens = _gather(dataset.tokens, offsets[first:last], lengths[first:last])
            yield Part(tokens, lengths[first:last], document_ends[begin:end] - first)
            progress.update(_size(len(tokens), last - first, dataset))
            dataset.release()
            first, before = last, int(token_ends[last - 1])


def _gather(
    tokens: NDArray[np.integer], offsets: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.integer]:
    """The tokens of some sentences on end: a view of the stream where they lie so in it, else a copy."""
    ends = offsets + lengths
    starts_run = np.concatenate([[True], offsets[1:] != ends[:-1]])
    ends_run = np.append(starts_run[1:], True)
    runs = zip(offsets[starts_run].tolist(), ends[ends_run].tolist(), strict=True)
    slices = [tokens[begin:end] for begin, end in runs]
    return slices[0] if len(slices) == 1 else np.concatenate(slices)


def _size(tokens: int, sentences: int, dataset: IndexedDataset) -> int:
    """Bytes of tokens, and of the lengths and pointers of sentences."""
    return tokens * dataset.tokens.itemsize + sentences * 12


def progress_bar(datasets: Iterable[IndexedDataset], prefix: Path) -> tqdm:
    """A bar in the bytes of some datasets on their way to `prefix`, on a terminal only."""
    total = sum(_size(dataset.num_tokens, len(dataset.lengths), dataset) for dataset in datasets)
    return tqdm(total=total, unit="B", unit_scale=True, desc=prefix.name, disable=None)


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Makes sure that no dataset is written twice, or over one that is read.

    Raises:
        UserError: two of them are the same.
    """
    taken = {with_suffix(prefix, ".bin").resolve(): f"the input {prefix}" for prefix in inputs}
    for prefix in outputs:
        path = with_suffix(prefix, ".bin").resolve()
        if path in taken:
            raise UserError(f"{prefix}: the output is also {taken[path]}; choose another name for it")
        taken[path] = "the other output"


def add_lengths(parser: argparse.ArgumentParser, origin: str) -> None:
    """Declares `--lengths` of a command whose result has the segments of `origin` by default."""
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=int,
        metavar="T",
        help=f"sequence lengths to cut segments for (default: those of {origin})",
    )


def finish(
    prefix: Path,
    written: Written,
    segments: Iterable[tuple[str, int]],
    versions: dict[str, str],
    **description: Any,
) -> Manifest:
    """Gives tokens that were written their manifest and their segments.

    Args:
        prefix: of the dataset that was written.
        written: what the writer says of it.
        segments: policy and sequence length of each segment index.
        versions: of what encoded the tokens.
        description: further fields of the manifest.
    """
    counts = dataclasses.asdict(written)
    Manifest(**counts, versions=versions | {"elc-bert": __version__}, **description).save(prefix)
    dataset = IndexedDataset(prefix)
    for policy, sequence_length in segments:
        with tqdm(
            total=dataset.num_tokens,
            unit="token",
            unit_scale=True,
            desc=f"segments of {sequence_length}",
            disable=None,
            leave=False,
        ) as bar:
            build_segments(dataset, sequence_length, policy, progress=bar.update)
    return dataset.manifest
