"""From pieces of the input to token ids on disk: what a worker process of `build` does."""

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_tools.reading import END_OF_DOCUMENT, Block, read_piece
from data_tools.sentences import Splitter, sentence_finder
from data_tools.text import Piece, Skipped
from elc_bert.data.format.vocabulary import load_tokenizer
from elc_bert.utils.files import atomic_write, sha256_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

COUNTS = ("size", "documents", "sequences", "tokens", "words")
"""What is counted while pieces are encoded; `size` is the bytes on disk that were read."""


@dataclass(frozen=True)
class Encoding:
    """How text becomes tokens."""

    tokenizer: str
    """Path of the JSON file."""
    dtype: str
    """Of the tokens on disk."""
    sentences: str
    """Which sentence splitter; see `data_tools.sentences`."""
    language: str
    json_key: str
    skip: bool
    """Count and leave out what cannot be used, instead of stopping."""


@dataclass(frozen=True)
class Summary:
    """What a part holds."""

    counts: dict[str, int]
    """By the names in `COUNTS`; a document counts where it ends."""
    skipped: Skipped
    sha256: dict[str, str]
    """Of the input files that begin in the part, whole, by path."""


@dataclass(frozen=True)
class Part:
    """Encoded pieces on disk: three arrays, and a summary that is written last and makes them count."""

    folder: Path
    key: str
    """Hash of everything that decides what the part holds."""

    def path(self, kind: str) -> Path:
        """One of its files: `tokens`, `lengths` of sentences, `ends` of documents, `json`."""
        return self.folder / f"{self.key}.{kind}"

    def array(self, kind: str, dtype: str) -> NDArray[Any]:
        """One of its arrays, memory-mapped."""
        path = self.path(kind)
        if path.stat().st_size == 0:  # which cannot be mapped
            return np.empty(0, dtype=dtype)
        return np.asarray(np.memmap(path, dtype=dtype, mode="r"))

    def summary(self) -> Summary | None:
        """What it holds; None if it is not finished."""
        try:
            values = json.loads(self.path("json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Summary(values["counts"], Skipped(**values["skipped"]), values["sha256"])


class Stopped(Exception):
    """The worker was told to stop; what it has finished stays."""


class Worker:
    """What a worker process keeps between pieces.

    Args:
        encoding: how text becomes tokens.
        progress: shared int64 [`COUNTS` + 1]: the counts of all workers of this process together, and
            at the end whether they are to stop.
    """

    def __init__(self, encoding: Encoding, progress: Any):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process for each core is enough
        self.encoding = encoding
        self.progress = progress
        self.tokenizer: Tokenizer = load_tokenizer(encoding.tokenizer)
        self.sentences_of: Splitter = sentence_finder(encoding.sentences, encoding.language)

    def encode(self, pieces: Sequence[Piece], part: Part) -> None:
        """Encodes pieces of the input that follow one another and leaves the part on disk.

        Raises:
            UserError: they hold something that cannot be used.
            Stopped: others did, or the user interrupts.
        """
        skipped = Skipped() if self.encoding.skip else None
        counts = dict.fromkeys(COUNTS, 0)
        with contextlib.ExitStack() as files:
            tokens, lengths, ends = (
                files.enter_context(atomic_write(part.path(kind))) for kind in ("tokens", "lengths", "ends")
            )
            for block in self._blocks(pieces, skipped):
                sentences: list[str] = []
                block_ends: list[int] = []
                words = 0
                for paragraph in block.paragraphs:
                    if paragraph == END_OF_DOCUMENT:
                        block_ends.append(counts["sequences"] + len(sentences))
                    else:
                        sentences += self.sentences_of(paragraph)
                        words += len(paragraph.split())
                ids = [
                    each.ids for each in self.tokenizer.encode_batch_fast(sentences, add_special_tokens=False)
                ]
                sizes = np.fromiter(map(len, ids), dtype="<i4", count=len(ids))
                total = int(sizes.sum(dtype=np.int64))
                flat = itertools.chain.from_iterable(ids)
                tokens.write(np.fromiter(flat, dtype=self.encoding.dtype, count=total))
                lengths.write(sizes)
                ends.write(np.array(block_ends, dtype="<i8"))
                self._count(counts, (block.size, len(block_ends), len(ids), total, words))
        sha256 = {piece.path: sha256_of(piece.path) for piece in pieces if piece.begin == 0}
        with atomic_write(part.path("json"), "w") as file:
            json.dump({"counts": counts, "skipped": asdict(skipped or Skipped()), "sha256": sha256}, file)

    def _blocks(self, pieces: Sequence[Piece], skipped: Skipped | None) -> Iterator[Block]:
        for piece in pieces:
            yield from read_piece(piece, self.encoding.json_key, skipped)

    def _count(self, counts: dict[str, int], more: tuple[int, ...]) -> None:
        for name, number in zip(COUNTS, more, strict=True):
            counts[name] += number
        with self.progress.get_lock():
            for place, number in enumerate(more):
                self.progress[place] += number
            if self.progress[-1]:
                raise Stopped


_worker: Worker


def start_worker(encoding: Encoding, progress: Any) -> None:
    """Makes this process a worker of a pool."""
    global _worker
    _worker = Worker(encoding, progress)


def encode_in_worker(pieces: Sequence[Piece], part: Part) -> None:
    """`Worker.encode`, in a process that `start_worker` has prepared."""
    _worker.encode(pieces, part)
