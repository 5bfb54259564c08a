"""Cleaning of files on all cores, in order and in bounded memory.

The files are processed as one stream of chunks, so that one large file keeps all cores busy, and so do many
small ones. The passes over neighboring lines run in this process, in order. The steps run in worker
processes.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TypeVar

from data_tools.cleaning.rules import RULES
from data_tools.worker_pool import WORKER_KILLED, interrupts_blocked, make_worker_pool
from elc_bert.utils.errors import UserError

CHUNK_CHARACTERS = 1 << 18
"""Approximate size of a chunk in characters."""

Input = TypeVar("Input")
Output = TypeVar("Output")


@dataclass(frozen=True)
class Chunk:
    """Consecutive lines or paragraphs of a file, before cleaning."""

    corpus: str
    """Corpus whose rules apply, a key of ``RULES``."""
    texts: list[str]
    """Lines or paragraphs."""
    last: bool
    """True for the last chunk of a file."""


@dataclass(frozen=True)
class Cleaned:
    """Result of cleaning a chunk."""

    lines: list[str]
    """Cleaned lines."""
    words_in: int
    """Number of words before cleaning."""
    last: bool
    """True for the last chunk of a file."""


def make_chunks(corpus: str, lines: Iterable[str], characters: int = CHUNK_CHARACTERS) -> Iterator[Chunk]:
    """Apply the ``before`` pass of a rule to the lines of a file, and yield the results in chunks."""
    texts: list[str] = []
    size = 0
    for text in RULES[corpus].before(lines):
        texts.append(text)
        size += len(text) + 1
        if size >= characters:
            yield Chunk(corpus, texts, last=False)
            texts, size = [], 0
    yield Chunk(corpus, texts, last=True)


def clean_chunk(chunk: Chunk) -> Cleaned:
    """Apply the steps of its rule to the texts of a chunk."""
    clean = RULES[chunk.corpus].clean
    lines = [line for text in chunk.texts if (line := clean(text)) is not None]
    return Cleaned(lines, sum(len(text.split()) for text in chunk.texts), chunk.last)


def cleaned_files(chunks: Iterable[Chunk], workers: int) -> Generator[Iterator[Cleaned], None, None]:
    """Clean the chunks of some files.

    If reading a file raises a UserError, all earlier files are yielded first, as a whole.

    Yields:
        The results of each file, to be consumed in order.
    """
    with contextlib.closing(ordered_map(clean_chunk, chunks, workers)) as results:
        for first in results:
            yield _results_of_file(first, results)


def _results_of_file(first: Cleaned, rest: Iterator[Cleaned]) -> Iterator[Cleaned]:
    yield first
    while not first.last:
        first = next(rest)
        yield first


def ordered_map(
    function: Callable[[Input], Output], inputs: Iterable[Input], workers: int
) -> Generator[Output, None, None]:
    """Yield the results of ``map(function, inputs)``, computed in worker processes a few inputs ahead.

    If ``inputs`` raises a UserError, the results of all earlier inputs are yielded first.

    Args:
        function: Function to apply, which must be picklable.
        inputs: Inputs, consumed in order.
        workers: Number of worker processes. With 1, this process does the work.
    """
    if workers == 1:
        yield from map(function, inputs)
        return
    pool = make_worker_pool(workers)
    pending: deque[Future[Output]] = deque()
    failure: UserError | None = None
    try:
        inputs = iter(inputs)
        while failure is None:
            try:
                item = next(inputs)
            except StopIteration:
                break
            except UserError as error:
                failure = error
            else:
                with interrupts_blocked():
                    pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        if failure:
            raise failure
    except BrokenProcessPool:
        raise UserError(WORKER_KILLED) from None
    finally:
        pool.shutdown(cancel_futures=True)
