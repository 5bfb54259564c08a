"""Cutting a build into parts that can be made in any order, by any process, once."""

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from data_tools.encoding import Encoding, Part
from data_tools.sentences import LIBRARIES
from data_tools.text import Piece, Skipped, pieces_of
from elc_bert import __version__
from elc_bert.data.format.vocabulary import tokenizer_sha256

MIN_PIECE, MAX_PIECE = 1 << 20, 1 << 28
PIECES = 512
"""The input is cut into about so many pieces, as far as their least and largest size allow."""
MAX_FILES = 1000
"""In one part."""


class Task(NamedTuple):
    """Pieces of the input that are encoded together."""

    pieces: tuple[Piece, ...]
    part: Part
    """Where to."""
    size: int
    """Bytes on disk."""


def versions_of(encoding: Encoding) -> dict[str, str]:
    """Of everything that decides what the tokens are."""
    libraries = ["tokenizers", *LIBRARIES.get(encoding.sentences, [])]
    return {"elc-bert": __version__} | {name: version(name) for name in libraries}


def plan_parts(files: list[Path], encoding: Encoding, folder: Path, unreadable: Skipped) -> list[Task]:
    """The input in order, cut into tasks that depend on nothing but the input and the encoding.

    Large files are cut, small ones put together. Parts of a former build in `folder` that belong to no
    task are removed.

    Args:
        files: of the input.
        encoding: how they become tokens.
        folder: for the parts.
        unreadable: where files that cannot be read are counted, if `encoding.skip`.

    Raises:
        UserError: a file cannot be read.
    """
    total = sum(path.stat().st_size for path in files)
    size = min(max(MIN_PIECE, 1 << (total // PIECES).bit_length()), MAX_PIECE)
    settings = {
        **asdict(encoding),
        "tokenizer": tokenizer_sha256(encoding.tokenizer),
        "versions": versions_of(encoding),
    }
    del settings["skip"]  # decides only whether there is a part
    tasks: list[Task] = []
    waiting: list[tuple[Piece, int]] = []  # with the times when their files were changed

    def end_task() -> None:
        if waiting:
            key = hashlib.sha256(json.dumps([settings, waiting]).encode()).hexdigest()[:24]
            pieces = tuple(piece for piece, _ in waiting)
            tasks.append(Task(pieces, Part(folder, key), sum(piece.size for piece in pieces)))
            waiting.clear()

    for path in files:
        for piece in pieces_of(path, size, unreadable if encoding.skip else None):
            if sum(each.size for each, _ in waiting) + piece.size > size or len(waiting) >= MAX_FILES:
                end_task()
            waiting.append((piece, path.stat().st_mtime_ns))
    end_task()
    known = {task.part.key for task in tasks}
    for path in folder.iterdir():
        if path.name != "lock" and path.name.partition(".")[0] not in known:
            path.unlink()
    return tasks


def share(tasks: list[Task], rank: int, ranks: int) -> list[Task]:
    """The tasks whose middle lies in a rank's range of the input's bytes."""
    total = sum(task.size for task in tasks)
    begin, mine = 0, []
    for task in tasks:
        if min((2 * begin + task.size) * ranks // max(2 * total, 1), ranks - 1) == rank:
            mine.append(task)
        begin += task.size
    return mine
