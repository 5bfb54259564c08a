"""Files of minimal pairs: BLiMP's, its supplement's and EWoK's.

BLiMP (Warstadt et al. 2020, TACL) has JSON lines with ``sentence_good`` and ``sentence_bad``. EWoK (Ivanova
et al. 2024) has contexts and targets: a target is to be more probable behind its own context than behind the
other one, and only the target is scored.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elc_bert.utils.errors import UserError


@dataclass(frozen=True)
class Sentence:
    """A sentence, or the part of it that is scored."""

    text: str
    scored_from: int = 0
    """The first character that is scored; what stands before it is context."""


@dataclass(frozen=True)
class Pair:
    """Two sentences of which a good model finds the first one more probable."""

    good: Sentence
    bad: Sentence


@dataclass(frozen=True)
class Paradigm:
    """The pairs of a file."""

    name: str
    phenomenon: str
    """What it is summed up with."""
    pairs: list[Pair]
    file: Path


def read_paradigms(folder: Path) -> list[Paradigm]:
    """All ``*.jsonl`` files of a folder, by name.

    Raises:
        UserError: there are none, or one has a line that is no pair; the message names the line.
    """
    files = [folder] if folder.is_file() else sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError(
            f"{folder}: holds no .jsonl files; give a folder of minimal pairs, such as BLiMP's data"
        )
    return [_read(file) for file in files]


def _read(file: Path) -> Paradigm:
    pairs: list[Pair] = []
    phenomenon = ""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}:{number}: not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise UserError(f"{file}:{number}: no JSON object")
        pairs += _pairs(fields, f"{file}:{number}")
        phenomenon = phenomenon or str(
            fields.get("linguistics_term") or fields.get("field") or fields.get("Domain") or file.stem
        )
    if not pairs:
        raise UserError(f"{file}: holds no pairs")
    return Paradigm(file.stem, phenomenon, pairs, file)


def _pairs(fields: dict[str, Any], place: str) -> list[Pair]:
    if "Target1" in fields:
        first, second, one, two = (
            _text(fields, name, place) for name in ("Context1", "Context2", "Target1", "Target2")
        )
        return [
            Pair(_behind(first, one), _behind(second, one)),
            Pair(_behind(second, two), _behind(first, two)),
        ]
    good, bad = (_text(fields, name, place) for name in ("sentence_good", "sentence_bad"))
    return [Pair(Sentence(good), Sentence(bad))]


def _behind(context: str, target: str) -> Sentence:
    return Sentence(f"{context} {target}", len(context))


def _text(fields: dict[str, Any], name: str, place: str) -> str:
    text = fields.get(name)
    if not isinstance(text, str):
        raise UserError(f"{place}: lacks {name}; a line needs sentence_good and sentence_bad")
    if not text.strip():
        raise UserError(f"{place}: {name} is empty")
    return text
