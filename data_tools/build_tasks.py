"""Division of a build into tasks that any process can run, in any order."""

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from data_tools.encode_worker import Encoding, Part
from data_tools.input_files import Piece, Skipped, file_pieces
from data_tools.input_formats import TextFile
from data_tools.sentences import LIBRARIES
from elc_bert import __version__
from elc_bert.data.format.tokenizer_identity import tokenizer_sha256

MIN_PIECE, MAX_PIECE = 1 << 20, 1 << 28
"""Minimum and maximum size of a piece in bytes on disk."""
PIECES = 512
"""Approximate number of pieces to cut the input into, within the limits on the size of a piece."""
ENCODING_RULES = 2
"""Version of the rules by which text becomes tokens. Parts that a build by others has left are not used."""
MAX_FILES = 1000
"""Maximum number of input files in one task."""


class Task(NamedTuple):
    """Consecutive pieces of the input that are encoded together."""

    pieces: tuple[Piece, ...]
    """Pieces, in the order of the input."""
    part: Part
    """Part that the encoded pieces are written to."""
    size: int
    """Size of the pieces in bytes on disk."""


def tool_versions(encoding: Encoding) -> dict[str, str]:
    """Return the versions of this project and of the packages that decide how text becomes tokens."""
    libraries = ["tokenizers", *LIBRARIES.get(encoding.sentences, [])]
    return {"elc-bert": __version__} | {name: version(name) for name in libraries}


def plan_tasks(files: list[TextFile], encoding: Encoding, folder: Path, unreadable: Skipped) -> list[Task]:
    """Cut the input into tasks, in order. The tasks depend only on the input and the encoding.

    Large files are cut, small ones are combined. Parts of an earlier build in ``folder`` that belong to none
    of the tasks are removed.

    Args:
        files: Files of the input.
        encoding: Settings that decide how text becomes tokens.
        folder: Folder for the parts.
        unreadable: Counter for files that cannot be read. It is used only if ``encoding.skip`` is true.

    Raises:
        UserError: A file cannot be read.
    """
    total = sum(file.size for file in files)
    size = min(max(MIN_PIECE, 1 << (total // PIECES).bit_length()), MAX_PIECE)
    settings = {
        **asdict(encoding),
        "tokenizer": tokenizer_sha256(encoding.tokenizer),
        "versions": tool_versions(encoding),
        "rules": ENCODING_RULES,
    }
    del settings["skip"]  # does not change the contents of a part
    tasks: list[Task] = []
    waiting: list[tuple[Piece, int]] = []  # pieces, and the modification times of their files

    def end_task() -> None:
        if waiting:
            key = hashlib.sha256(json.dumps([settings, waiting]).encode()).hexdigest()[:24]
            pieces = tuple(piece for piece, _ in waiting)
            tasks.append(Task(pieces, Part(folder, key), sum(piece.size for piece in pieces)))
            waiting.clear()

    for file in files:
        modified = file.path.stat().st_mtime_ns
        for piece in file_pieces(file, size, encoding.json_key, unreadable if encoding.skip else None):
            if sum(each.size for each, _ in waiting) + piece.size > size or len(waiting) >= MAX_FILES:
                end_task()
            waiting.append((piece, modified))
    end_task()
    known = {task.part.key for task in tasks}
    for path in folder.iterdir():
        if path.name != "lock" and path.name.partition(".")[0] not in known:
            path.unlink()
    return tasks


def tasks_of_rank(tasks: list[Task], rank: int, ranks: int) -> list[Task]:
    """Return the tasks of one rank: those whose middle lies in the rank's share of the bytes of the input."""
    total = sum(task.size for task in tasks)
    begin, mine = 0, []
    for task in tasks:
        if min((2 * begin + task.size) * ranks // max(2 * total, 1), ranks - 1) == rank:
            mine.append(task)
        begin += task.size
    return mine
