"""The files of a corpus cleaned on all cores, in order and in bounded memory.

The files' texts travel as one stream of chunks, so that one large file keeps all cores busy and so do many
small ones. The passes over neighbouring lines run here, in order; the steps run in worker processes.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TypeVar

from data_tools.cleaning.rules import RULES
from data_tools.workers import KILLED, interrupts_blocked, worker_pool
from elc_bert.utils.errors import UserError

CHUNK_CHARACTERS = 1 << 18

Input = TypeVar("Input")
Output = TypeVar("Output")


@dataclass(frozen=True)
class Chunk:
    """Some lines or paragraphs of a file that are to be cleaned."""

    corpus: str
    """Key of `RULES`."""
    texts: list[str]
    last: bool
    """Whether the file ends here."""


@dataclass(frozen=True)
class Cleaned:
    """What became of a chunk."""

    lines: list[str]
    words_in: int
    last: bool


def chunks_of(corpus: str, lines: Iterable[str], characters: int = CHUNK_CHARACTERS) -> Iterator[Chunk]:
    """Puts the lines of a file together as its rule says and cuts them into chunks."""
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
    """Takes the texts of a chunk through the steps of its rule."""
    clean = RULES[chunk.corpus].clean
    lines = [line for text in chunk.texts if (line := clean(text)) is not None]
    return Cleaned(lines, sum(len(text.split()) for text in chunk.texts), chunk.last)


def cleaned_files(chunks: Iterable[Chunk], workers: int) -> Generator[Iterator[Cleaned], None, None]:
    """Cleans the chunks of some files; yields the results of each file, which are to be used up in order.

    Where reading a file raises a UserError, the files before it come first, whole.
    """
    with contextlib.closing(in_order(clean_chunk, chunks, workers)) as results:
        for first in results:
            yield _to_last(first, results)


def _to_last(first: Cleaned, rest: Iterator[Cleaned]) -> Iterator[Cleaned]:
    yield first
    while not first.last:
        first = next(rest)
        yield first


def in_order(
    function: Callable[[Input], Output], inputs: Iterable[Input], workers: int
) -> Generator[Output, None, None]:
    """`map(function, inputs)` in `workers` processes, a few inputs ahead; one worker is this process.

    Where `inputs` raises a UserError, the results of all inputs before it come first.
    """
    if workers == 1:
        yield from map(function, inputs)
        return
    pool = worker_pool(workers)
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
        raise UserError(KILLED) from None
    finally:
        pool.shutdown(cancel_futures=True)
