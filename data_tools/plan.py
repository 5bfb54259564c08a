"""Cutting a build into parts that can be made in any order, by any process, once."""

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from data_tools.encoding import Encoding, Part
from data_tools.sentences import LIBRARIES
from data_tools.text import Piece, Skipped, pieces_of
from elc_bert import __version__
from elc_bert.data.vocabulary import tokenizer_sha256

MIN_PIECE, MAX_PIECE = 1 << 20, 1 << 28
PIECES = 512
"""The input is cut into about so many pieces, as far as their least and largest size allow."""

Plan = list[tuple[Piece, Part]]
"""The pieces of the input in order, and where each is encoded to."""


def versions_of(encoding: Encoding) -> dict[str, str]:
    """Of everything that decides what the tokens are."""
    libraries = ["tokenizers", *LIBRARIES.get(encoding.sentences, [])]
    return {"elc-bert": __version__} | {name: version(name) for name in libraries}


def plan_parts(files: list[Path], encoding: Encoding, folder: Path, unreadable: Skipped) -> Plan:
    """The pieces of the input in order, which depend on nothing but the input, and where their parts go."""
    total = sum(path.stat().st_size for path in files)
    size = min(max(MIN_PIECE, 1 << (total // PIECES).bit_length()), MAX_PIECE)
    settings = {
        **asdict(encoding),
        "tokenizer": tokenizer_sha256(encoding.tokenizer),
        "versions": versions_of(encoding),
    }
    del settings["skip"]  # decides only whether there is a part
    plan = []
    for path in files:
        for piece in pieces_of(path, size, unreadable if encoding.skip else None):
            identity = [settings, piece, path.stat().st_mtime_ns]
            key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
            plan.append((piece, Part(folder, key)))
    known = {part.key for _, part in plan}
    for path in folder.iterdir():
        if path.name != "lock" and path.name.partition(".")[0] not in known:
            path.unlink()  # of a build of other input that was given up
    return plan


def share(plan: Plan, rank: int, ranks: int) -> Plan:
    """The pieces whose middle lies in a rank's range of the input's bytes."""
    total = sum(piece.size for piece, _ in plan)
    begin, mine = 0, []
    for piece, part in plan:
        if min((2 * begin + piece.size) * ranks // max(2 * total, 1), ranks - 1) == rank:
            mine.append((piece, part))
        begin += piece.size
    return mine
