"""Passes over the lines of a file, for cleaning that depends on neighboring lines.

They run before and after the steps. Each is a generator from lines to lines that keeps at most one paragraph
in memory. An empty line ends a document.
"""

import itertools
import re
from collections.abc import Iterable, Iterator

from data_tools.cleaning.steps import is_heading

LONGEST_PARAGRAPH = 1 << 20
"""Maximum length of a paragraph in characters. It bounds the memory for a file without blank lines."""
LONGEST_STUB = 200
"""Maximum length of a stub in characters. Longer articles about places are kept."""

# ---- before: lines to paragraphs -------------------------------------------------------------


def join_paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Join hard-wrapped lines to paragraphs. One blank line ends a paragraph, several end a document."""
    paragraph: list[str] = []
    size = blanks = 0
    for line in lines:
        if line.strip():
            if blanks > 1:
                yield ""
            paragraph.append(line)
            size += len(line) + 1
            blanks = 0
        else:
            blanks += 1
        if paragraph and (blanks or size > LONGEST_PARAGRAPH):
            yield " ".join(paragraph)
            paragraph, size = [], 0
    if paragraph:
        yield " ".join(paragraph)


def end_blocks(lines: Iterable[str]) -> Iterator[str]:
    """Keep a blank line only after a block of several lines. After a single line it is line spacing."""
    length = 0
    for line in lines:
        if line.strip():
            length += 1
            yield line
        else:
            if length > 1:
                yield ""
            length = 0


def start_at_headings(lines: Iterable[str]) -> Iterator[str]:
    """Begin a document at each heading, and nowhere else."""
    for line in lines:
        if is_heading(line):
            yield ""
        if line.strip():
            yield line


# ---- after -----------------------------------------------------------------------------------

_PLACE = re.compile(
    r"\b(?:is|was) an? (?:[\w-]+ ){0,2}?"
    r"(?:commune|city|town|village|hamlet|municipality|township|settlement|census-designated place)"
    r"(?: (?:in|of|on|near)\b|\.|$)"
).search


def drop_repeats(lines: Iterable[str]) -> Iterator[str]:
    """Keep only the first of several equal lines in a row, including blank lines."""
    return (line for line, _ in itertools.groupby(lines))


def squeeze_blanks(lines: Iterable[str]) -> Iterator[str]:
    """Keep only one of several blank lines in a row, and none at the beginning."""
    previous = ""
    for line in lines:
        if line or previous:
            yield line
        previous = line


def is_stub(line: str) -> bool:
    """Return True for a line that is a typical one-sentence article about a place.

    An example is "Montagnac is a commune. It is found in the south." A program has written thousands of them.
    """
    return len(line) <= LONGEST_STUB and _PLACE(line) is not None


def drop_stubs(lines: Iterable[str]) -> Iterator[str]:
    """Drop stubs, the title above a stub, and a last line that no blank line follows.

    The last line is dropped as in golden/clean.json, the output of the reference. An article at the end of a
    file may be cut off within a line.
    """
    previous = last = ""
    for line, last in itertools.pairwise(lines):
        is_title = not previous
        if not (is_stub(line) or (is_title and is_stub(last))):
            yield line
        previous = line
    if not last:
        yield last
