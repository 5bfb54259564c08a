"""From lines of text to token ids, on all cores, in order and in bounded memory."""

import itertools
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import sentencex
from numpy.typing import NDArray

from data_tools.text import read_lines
from elc_bert.data.vocabulary import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNK_BYTES = 1 << 18
END_OF_DOCUMENT = ""
"""An empty line."""
PARAGRAPH_END = "[PAR]"


@dataclass(frozen=True)
class Chunk:
    """Some lines of the input, in which `END_OF_DOCUMENT` ends a document."""

    lines: list[str]
    size: int
    """Bytes on disk."""


@dataclass(frozen=True)
class Encoded:
    """The token ids of a chunk."""

    tokens: NDArray[np.integer]
    """Ids of all sentences on end."""
    lengths: NDArray[np.int32]
    """Tokens of each sentence."""
    document_ends: list[int]
    """Numbers of sentences in the chunk after which a document ends."""
    words: int
    size: int
    """Bytes on disk."""


def read_chunks(files: Iterable[Path]) -> Iterator[Chunk]:
    """The lines of some files, a chunk at a time; each file starts a new document."""
    lines: list[str] = []
    size = 0
    for path in files:
        for line, line_size in read_lines(path):
            lines.append(line)
            size += line_size
            if size >= CHUNK_BYTES:
                yield Chunk(lines, size)
                lines, size = [], 0
        lines.append(END_OF_DOCUMENT)
    yield Chunk(lines, size)


def split_paragraph(line: str) -> list[str]:
    """The sentences of a paragraph, with `[PAR]` on the last one."""
    sentences = [sentence.strip() for sentence in sentencex.segment("en", line)]
    sentences = [sentence for sentence in sentences if sentence]
    sentences[-1] += PARAGRAPH_END
    return sentences


def whole_line(line: str) -> list[str]:
    """A line that is a sentence already."""
    return [line]


def encode_chunk(
    chunk: Chunk, tokenizer: "Tokenizer", sentences_of: Callable[[str], list[str]], dtype: np.dtype
) -> Encoded:
    """Splits the lines of a chunk into sentences and encodes them as `dtype`."""
    sentences: list[str] = []
    document_ends: list[int] = []
    for line in chunk.lines:
        if line == END_OF_DOCUMENT:
            document_ends.append(len(sentences))
        else:
            sentences += sentences_of(line)
    ids = [each.ids for each in tokenizer.encode_batch_fast(sentences, add_special_tokens=False)]
    lengths = np.array([len(each) for each in ids], dtype=np.int32)
    tokens = np.fromiter(itertools.chain.from_iterable(ids), dtype=dtype, count=lengths.sum())
    words = sum(len(line.split()) for line in chunk.lines)
    return Encoded(tokens, lengths, document_ends, words, chunk.size)


def encode_chunks(
    chunks: Iterable[Chunk],
    tokenizer_path: Path,
    sentences_of: Callable[[str], list[str]],
    dtype: np.dtype,
    workers: int,
) -> Iterator[Encoded]:
    """Encodes chunks in `workers` processes, in the order of the input, a few chunks ahead."""
    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(tokenizer_path,))
    pending: deque[Future[Encoded]] = deque()
    try:
        for chunk in chunks:
            pending.append(pool.submit(_encode_in_worker, chunk, sentences_of, dtype))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


_tokenizer: "Tokenizer"


def _start_worker(tokenizer_path: Path) -> None:
    global _tokenizer
    # Ctrl-C reaches every process of the terminal; the parent alone reports it and stops the rest.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process for each core is enough
    _tokenizer = load_tokenizer(tokenizer_path)


def _encode_in_worker(chunk: Chunk, sentences_of: Callable[[str], list[str]], dtype: np.dtype) -> Encoded:
    return encode_chunk(chunk, _tokenizer, sentences_of, dtype)
