"""Formatting of text for people: tables, short numbers, suggestions for misspelled names."""

import difflib
import os
from collections.abc import Iterable, Sequence
from itertools import groupby


def summary_table(rows: list[tuple[str, str]]) -> str:
    """Return a table of two aligned columns between two horizontal rules."""
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {value}" for name, value in rows]
    rule = "-" * max(len(line) for line in lines)
    return "\n".join([rule, *lines, rule])


def human(number: float) -> str:
    """Return a number with three digits and a unit prefix: ``1.23M`` for 1234567."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def numbers_in_short(numbers: Sequence[int]) -> str:
    """Return increasing integers as ranges: ``0-2, 5`` for 0, 1, 2, 5."""
    runs = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    ends = [(group[0][1], group[-1][1]) for _, each in runs if (group := list(each))]
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest valid name, or all valid names."""
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; valid: {', '.join(sorted(valid))}" if valid else ""


def printable(name: str | os.PathLike[str]) -> str:
    """Return a file name as valid Unicode, with escapes for bytes that are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
