"""Reader for files of minimal pairs: BLiMP, its BabyLM supplement and EWoK.

A line of BLiMP (Warstadt et al. 2020, TACL) is a JSON object with ``sentence_good`` and ``sentence_bad``. A
line of EWoK (Ivanova et al. 2024) has two contexts and two targets: each target should be more probable after
its own context than after the other one. Only the tokens of the target are scored.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elc_bert.utils.errors import UserError

_EXPECTED = (
    "a line needs sentence_good and sentence_bad (BLiMP), or Context1, Context2, Target1 and Target2 (EWoK)"
)


@dataclass(frozen=True)
class Sentence:
    """A sentence of which all or only the last part is scored."""

    text: str
    """The whole sentence."""
    scored_from: int = 0
    """Index of the first character that is scored; the text before it is context."""


@dataclass(frozen=True)
class Pair:
    """Two sentences, of which a good model assigns the first one the higher probability."""

    good: Sentence
    """The acceptable or plausible sentence."""
    bad: Sentence
    """The unacceptable or implausible sentence."""


@dataclass(frozen=True)
class Paradigm:
    """The minimal pairs of one file that belong to one phenomenon."""

    name: str
    """File name without its suffix, followed by phenomenon and UID if the file holds several of them."""
    phenomenon: str
    """Name of the group of paradigms over which accuracy is averaged."""
    pairs: list[Pair]
    """Pairs in the order of the file."""
    file: Path
    """Path of the file."""


def read_paradigms(folder: Path) -> list[Paradigm]:
    """Return the paradigms in all ``*.jsonl`` files of a folder, sorted by file name.

    A file whose lines name several phenomena (``linguistics_term``, ``field`` or ``Domain``) or several
    paradigms (``UID``) is split into one paradigm for each.

    Args:
        folder: The folder, or a single file.

    Raises:
        UserError: There are no such files, or a line is not a minimal pair; the message names the line.
    """
    files = [folder] if folder.is_file() else sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError(
            f"{folder}: contains no .jsonl files; give a folder of minimal pairs, such as blimp/data"
        )
    return [paradigm for file in files for paradigm in _read_file(file)]


def _read_file(file: Path) -> list[Paradigm]:
    groups: dict[tuple[str, str], list[Pair]] = {}
    try:
        # Records of JSON are separated by line feeds only; str.splitlines would also cut text at U+2028.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}; give a readable file") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text; convert it to UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{file}:{number}: not valid JSON: {error}; each line must be a JSON object"
            ) from None
        if not isinstance(fields, dict):
            raise UserError(f"{file}:{number}: not a JSON object; {_EXPECTED}")
        phenomenon = (
            fields.get("linguistics_term") or fields.get("field") or fields.get("Domain") or file.stem
        )
        group = str(phenomenon), str(fields.get("UID") or "")
        groups.setdefault(group, []).extend(_pairs(fields, f"{file}:{number}"))
    if not groups:
        raise UserError(f"{file}: contains no pairs; {_EXPECTED}")
    if len(groups) == 1:
        (((phenomenon, _), pairs),) = groups.items()
        return [Paradigm(file.stem, phenomenon, pairs, file)]
    return [
        Paradigm(f"{file.stem}: {', '.join(filter(None, group))}", group[0], pairs, file)
        for group, pairs in groups.items()
    ]


def _pairs(fields: dict[str, Any], place: str) -> list[Pair]:
    if "Target1" in fields:
        first, second, one, two = (
            _text(fields, name, place) for name in ("Context1", "Context2", "Target1", "Target2")
        )
        return [
            Pair(_after_context(first, one), _after_context(second, one)),
            Pair(_after_context(second, two), _after_context(first, two)),
        ]
    good, bad = (_text(fields, name, place) for name in ("sentence_good", "sentence_bad"))
    return [Pair(Sentence(good), Sentence(bad))]


def _after_context(context: str, target: str) -> Sentence:
    return Sentence(f"{context} {target}", len(context))


def _text(fields: dict[str, Any], name: str, place: str) -> str:
    text = fields.get(name)
    if not isinstance(text, str):
        raise UserError(f"{place}: {name} is missing; {_EXPECTED}")
    if not text.strip():
        raise UserError(f"{place}: {name} is empty; {_EXPECTED}")
    return text
