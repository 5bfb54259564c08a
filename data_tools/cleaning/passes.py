"""What depends on neighbouring lines: light passes over a whole file, before and after the steps.

Each is a generator that holds at most one paragraph. In and out are lines; an empty one ends a document.
"""

import itertools
import re
from collections.abc import Iterable, Iterator

from data_tools.cleaning.steps import is_heading

LONGEST_PARAGRAPH = 1 << 20
"""Characters. A file without blank lines shall not come to be one paragraph in memory."""
LONGEST_STUB = 200
"""Characters. An article on a place that has more to say is no stub."""

# ---- before: lines to paragraphs -------------------------------------------------------------


def join_paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Joins hard-wrapped lines; one blank line parts paragraphs, several end a document."""
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
    """Keeps a blank line after a block of several lines only; after a single one it is line spacing."""
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
    """Begins a document at each heading, and nowhere else."""
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
    """Keeps one of several equal lines that follow each other, blank lines among them."""
    return (line for line, _ in itertools.groupby(lines))


def squeeze_blanks(lines: Iterable[str]) -> Iterator[str]:
    """Keeps one of several blank lines, and none at the beginning."""
    previous = ""
    for line in lines:
        if line or previous:
            yield line
        previous = line


def is_stub(line: str) -> bool:
    """Whether a line is the sentence that makes up most articles on small places.

    "Montagnac is a commune. It is found in the south." There are thousands of them, made by a program.
    """
    return len(line) <= LONGEST_STUB and _PLACE(line) is not None


def drop_stubs(lines: Iterable[str]) -> Iterator[str]:
    """Drops stubs, titles right above one, and a last line that no blank line follows.

    That last line goes because golden/clean.json has it so; an article that the end of the file breaks off
    may well be cut within a line.
    """
    previous = last = ""
    for line, last in itertools.pairwise(lines):
        is_title = not previous
        if not (is_stub(line) or (is_title and is_stub(last))):
            yield line
        previous = line
    if not last:
        yield last
