"""Worker process of ``build``: encodes pieces of the input and writes the token ids to disk."""

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data_tools.input_files import Piece, Skipped
from data_tools.long_text import encode
from data_tools.sentences import Sentence, sentence_splitter
from data_tools.text_reader import END_OF_DOCUMENT, UNREADABLE_FILE, read_piece
from elc_bert.data.format.text_tokenizer import TextTokenizer
from elc_bert.data.format.vocabulary import SpecialNames
from elc_bert.utils.files import atomic_write, sha256_of

COUNTS = ("size", "documents", "sequences", "tokens", "words", "unknown")
"""Names of the counts that are kept while encoding. ``size`` is the number of bytes read from disk, and
``unknown`` the number of ``[UNK]``."""


@dataclass(frozen=True)
class Encoding:
    """Settings that decide how text becomes tokens."""

    tokenizer: str
    """Path of the tokenizer's JSON file."""
    dtype: str
    """NumPy dtype of the tokens on disk."""
    sentences: str
    """Name of the sentence splitter; see ``data_tools.sentences``."""
    language: str
    """ISO 639 code of the language, for the sentence splitter."""
    json_key: str
    """Key or column that holds the text of a record."""
    skip: bool
    """Skip and count input that cannot be used, instead of stopping."""
    special_names: SpecialNames = field(default_factory=SpecialNames)
    """Names of the tokenizer's special tokens."""


@dataclass(frozen=True)
class PieceSummary:
    """Result of encoding one piece of the input."""

    path: str
    """Path of the input file."""
    counts: dict[str, int]
    """Counts by the names in ``COUNTS``. A document is counted in the piece in which it ends."""
    skipped: Skipped
    """Input that was skipped."""
    sha256: str | None
    """SHA-256 of the whole input file if it begins in the piece."""


@dataclass(frozen=True)
class PartSummary:
    """Contents of an encoded part, in numbers."""

    pieces: list[PieceSummary]
    """Summaries of the pieces, in order."""

    @property
    def counts(self) -> dict[str, int]:
        """Total counts by the names in ``COUNTS``."""
        return {name: sum(piece.counts[name] for piece in self.pieces) for name in COUNTS}

    @property
    def is_complete(self) -> bool:
        """True if nothing was skipped."""
        return not any(piece.skipped.counts for piece in self.pieces)


@dataclass(frozen=True)
class Part:
    """Encoded pieces on disk: three arrays and a summary.

    The summary is written last. A part without one is unfinished.
    """

    folder: Path
    """Folder of the files."""
    key: str
    """Hash of everything that decides the contents of the part."""

    def path(self, kind: str) -> Path:
        """Return the path of one of the files.

        Args:
            kind: ``tokens``, ``lengths`` (of sentences), ``ends`` (of documents) or ``json`` (the summary).
        """
        return self.folder / f"{self.key}.{kind}"

    def array(self, kind: str, dtype: str) -> NDArray[Any]:
        """Return one of the arrays, memory-mapped."""
        path = self.path(kind)
        if path.stat().st_size == 0:  # an empty file cannot be mapped
            return np.empty(0, dtype=dtype)
        return np.asarray(np.memmap(path, dtype=dtype, mode="r"))

    def summary(self) -> PartSummary | None:
        """Return the summary, or None if the part is not finished."""
        try:
            values = json.loads(self.path("json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return PartSummary(
            [PieceSummary(**each | {"skipped": Skipped(**each["skipped"])}) for each in values["pieces"]]
        )


class WorkerStoppedError(Exception):
    """The worker has been asked to stop. Parts that it has finished remain on disk."""


class Worker:
    """State that a worker process keeps from one part to the next.

    Args:
        encoding: Settings that decide how text becomes tokens.
        progress: Shared int64 array of length ``len(COUNTS) + 1``. It holds the total counts of all workers
            of this rank, followed by a flag that is nonzero if the workers must stop.
    """

    def __init__(self, encoding: Encoding, progress: Any) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a worker for every core already
        self.encoding = encoding
        self.progress = progress
        self.tokenizer = TextTokenizer.load(encoding.tokenizer, encoding.special_names)
        self.split_sentences = sentence_splitter(encoding.sentences, encoding.language)

    def encode(self, pieces: Sequence[Piece], part: Part) -> None:
        """Encode consecutive pieces of the input and write them to disk as a part.

        Raises:
            UserError: The input cannot be used.
            WorkerStoppedError: Another worker has failed, or the user has interrupted the command.
        """
        summaries: list[PieceSummary] = []
        with contextlib.ExitStack() as stack:
            names = ("tokens", "lengths", "ends")
            files = [stack.enter_context(atomic_write(part.path(name))) for name in names]
            sequences = 0
            for piece in pieces:
                summaries.append(self._encode_piece(piece, sequences, *files))
                sequences += summaries[-1].counts["sequences"]
        with atomic_write(part.path("json"), "w") as file:
            json.dump(asdict(PartSummary(summaries)), file)

    def _encode_piece(
        self, piece: Piece, sequences: int, tokens: IO[bytes], lengths: IO[bytes], ends: IO[bytes]
    ) -> PieceSummary:
        """Encode a piece and append it to the files of a part, which hold ``sequences`` sentences so far."""
        skipped = Skipped() if self.encoding.skip else None
        counts = dict.fromkeys(COUNTS, 0)
        for block in read_piece(piece, self.encoding.json_key, skipped):
            sentences: list[Sentence] = []
            block_ends: list[int] = []
            words = 0
            for paragraph in block.paragraphs:
                if paragraph == END_OF_DOCUMENT:
                    block_ends.append(sequences + counts["sequences"] + len(sentences))
                else:
                    sentences += self.split_sentences(paragraph)
                    words += len(paragraph.split())
            ids, sizes = self._token_ids(sentences)
            unknown = int(np.count_nonzero(ids == self.tokenizer.special.unk))
            tokens.write(ids.data)
            lengths.write(sizes.data)
            ends.write(np.array(block_ends, dtype="<i8").data)
            self._count(counts, (block.size, len(block_ends), len(sizes), len(ids), words, unknown))
        is_readable = skipped is None or UNREADABLE_FILE not in skipped.counts
        sha256 = sha256_of(piece.path) if piece.begin == 0 and is_readable else None
        return PieceSummary(piece.path, counts, skipped or Skipped(), sha256)

    def _token_ids(self, sentences: list[Sentence]) -> tuple[NDArray[np.integer], NDArray[np.int32]]:
        """Return the tokens of all sentences, concatenated, and the number of tokens of each, int32."""
        ids, sizes = encode(self.tokenizer.text, [each.text for each in sentences], self.encoding.dtype)
        ends = np.cumsum(sizes, dtype=np.int64)
        is_marked = np.array([(each.is_indented, each.ends_paragraph) for each in sentences], dtype=bool)
        special = self.tokenizer.special
        markers = [special.tab, special.par]
        is_marked = is_marked.reshape(-1, 2) & [marker is not None for marker in markers]
        positions, tokens = (
            np.stack([ends - sizes, ends], axis=1),
            np.broadcast_to([marker or 0 for marker in markers], (len(ends), 2)),
        )
        marked = np.insert(ids, positions[is_marked], tokens[is_marked])
        return marked, (sizes + is_marked.sum(axis=1)).astype("<i4")

    def _count(self, counts: dict[str, int], more: tuple[int, ...]) -> None:
        for name, number in zip(COUNTS, more, strict=True):
            counts[name] += number
        with self.progress.get_lock():
            for index, number in enumerate(more):
                self.progress[index] += number
            if self.progress[-1]:
                raise WorkerStoppedError


_worker: Worker


def init_worker(encoding: Encoding, progress: Any) -> None:
    """Prepare this process to run ``encode_in_worker``; used as the initializer of a pool."""
    global _worker
    _worker = Worker(encoding, progress)


def encode_in_worker(pieces: Sequence[Piece], part: Part) -> None:
    """Call ``Worker.encode`` in a process that ``init_worker`` has prepared."""
    _worker.encode(pieces, part)
