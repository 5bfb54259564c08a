"""Reading the pages of the documentation: links, headings and fenced blocks."""

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "README.md"
HISTORY = REPOSITORY / "CHANGELOG.md"
"""Page that names files and keys of earlier versions, so only its links are checked."""
PAGES = [
    page for folder in (".", "docs") for page in sorted((REPOSITORY / folder).glob("*.md")) if page != HISTORY
]

FENCE = re.compile(r"^( *)```(\w*)$")
COMMENT = re.compile(r"^ *<!-- *(\w+): *(.*?) *-->$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    marks: dict[str, str]
    """Content of the HTML comments ``<!-- name: value -->`` directly above the block, by name."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    found, marks, body = [], {}, None
    start, language, indent = 0, "", ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = FENCE.match(line)
        if body is not None:
            if fence and not fence[2]:
                found.append(Block(page, start, language, "\n".join(body) + "\n", marks))
                body, marks = None, {}
            else:
                body.append(line.removeprefix(indent))
        elif fence:
            body, start, indent, language = [], number, fence[1], fence[2]
        elif comment := COMMENT.match(line):
            marks = {**marks, comment[1]: comment[2]}
        elif line.strip():
            marks = {}
    assert body is None, f"{page}:{start}: a fenced block without an end"
    return found


def prose(page: Path) -> str:
    """Return the text of a page without its fenced blocks."""
    lines, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            lines.append(line)
    return "\n".join(lines)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = 0
        while (anchor := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(anchor)
    return found


def links(page: Path) -> list[str]:
    """Return the targets of the links and pictures of a page."""
    without_code = re.sub(r"`[^`\n]*`", "", prose(page))
    return re.findall(r"\]\(([^)\s]+)\)", without_code)
