"""Filter that turns documentation text into paragraphs of plain English prose.

The input may be docstrings, reStructuredText or Markdown. It is filtered by rules rather than parsed: the
rules need not understand every construct, they only have to leave out what is not prose.
"""

import inspect
import re

# ---- from a text to its paragraphs -----------------------------------------------------------

# Directives of reStructuredText whose body is prose. The body of any other one is code, a table or a list.
PROSE_DIRECTIVE = re.compile(
    r"\.\. (note|warning|tip|hint|important|caution|attention|seealso|admonition"
    r"|versionadded|versionchanged|deprecated|class|function|method|attribute|data|module)::"
)
DIRECTIVE = re.compile(r"\.\. |::$")
FENCE = re.compile(r"```(?!`)[^`]*")
DOCTEST = re.compile(r">>>|In \[\d|\$ ")
RULE = re.compile(r"([-=~^\"'#*+._`:])\1{2,}[-= ]*|\+[-=+]+")  # underlines a heading or borders a table
HEADING = re.compile(r"#{1,6} ")
BULLET = re.compile(r"(?:[-*+•]|\(?(?:\d{1,2}|[a-z#])[.)])\s+(?=\S)")
# An entry of a list of parameters together with its continuation lines: ":param name: text",
# "name (type): text", "name -- text". NumPy's "name : type" does not match, because whole sentences follow.
FIELD = re.compile(
    r"[:@][a-z]+\b.*|[*`'\"]*([a-z_][\w.,*`'\"/]*( ?\(.*?\))?|\w+ ?\(.*?\))[`'\"]*(:| --?) +\S.*"
)
HYPHENATED = re.compile(r"(?<=[a-z])-\n(?=[a-z])")  # a word broken at its hyphen when lines were wrapped


class ParagraphFinder:
    """Reader of documentation text that joins each paragraph into one line and leaves out code.

    A paragraph is a run of lines with the same indentation. A bullet starts a paragraph with the indentation
    of the text that follows it.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        """Paragraphs that are complete."""
        self.lines: list[str] = []
        """Lines of the current paragraph."""
        self.margin = 0
        """Indentation of the current paragraph."""
        self.in_fence = False
        """True inside a fenced code block."""
        self.skip_to_blank = False
        """True if all lines up to the next blank one are skipped."""
        self.skip_deeper_than: int | None = None
        """Indentation below which all deeper lines are skipped, or None."""

    def read(self, line: str) -> None:
        """Read the next line."""
        content = line.strip()
        indent = len(line) - len(line.lstrip())
        if FENCE.fullmatch(content):
            self.in_fence = not self.in_fence
            self.end_paragraph()
        elif not content:
            self.skip_to_blank = False
            self.end_paragraph()
        elif not self.is_skipped(indent):
            self.read_content(content, indent)

    def is_skipped(self, indent: int) -> bool:
        """Return True if a line with this indentation belongs to something that is left out."""
        if self.skip_deeper_than is not None and indent <= self.skip_deeper_than:
            self.skip_deeper_than = None
        return self.in_fence or self.skip_to_blank or self.skip_deeper_than is not None

    def read_content(self, content: str, indent: int) -> None:
        """Read a line that is neither blank nor left out, given without its indentation."""
        if RULE.fullmatch(content):
            if len(self.lines) == 1:
                self.lines.clear()  # the heading above its underline
            self.end_paragraph()
            return
        if HEADING.match(content):
            self.end_paragraph()
            return
        if bullet := BULLET.match(content):
            self.end_paragraph()
            content = content[bullet.end() :]
            indent += bullet.end()
        if indent != self.margin:
            self.end_paragraph()
        if DOCTEST.match(content):
            self.skip_to_blank = True
        elif DIRECTIVE.match(content):
            self.skip_deeper_than = None if PROSE_DIRECTIVE.match(content) else indent
        elif not self.lines and FIELD.fullmatch(content):
            self.skip_deeper_than = indent
        else:
            self.lines.append(content)
            self.margin = indent
            if content.endswith("::"):
                self.skip_deeper_than = indent

    def end_paragraph(self) -> None:
        """Complete the current paragraph, if there is one."""
        if self.lines:
            self.found.append(HYPHENATED.sub("-", "\n".join(self.lines)).replace("\n", " "))
            self.lines.clear()


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a documentation text, prose or not, each in one line."""
    finder = ParagraphFinder()
    for line in inspect.cleandoc(text).splitlines():
        finder.read(line)
    finder.end_paragraph()
    return finder.found


# ---- from a paragraph to clean prose ---------------------------------------------------------

MARKUP = [
    (re.compile(r"!?\[([^\]]+)\]\([^)]*\)"), r"\1"),  # [text](target)
    (re.compile(r"(?::[\w:+-]+:)?`([^`<]+?)\s*<[^`>]*>`_{0,2}"), r"\1"),  # `text <target>`_
    (re.compile(r"\s?\[[#*\w]*\]_"), ""),  # footnote [1]_
    (re.compile(r":[\w:+-]+:`[~!]?([^`]*)`"), r"\1"),  # :role:`text`
    (re.compile(r"``(.+?)``"), r"\1"),
    (re.compile(r"`[~!.]?([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"(?<![\w*])(\*{1,3})(?=\w)([^*]*[^\s*])\1(?!\w)"), r"\2"),  # *text*, **text**
    (re.compile(r"(?<!\w)_([^\W_][^_]*[^\W_])_(?!\w)"), r"\1"),  # _text_
    (re.compile(r"\|(\w+)\|"), r"\1"),
    (re.compile(r"</?(?:b|i|em|strong|code|tt|kbd|p|br|sub|sup)\s?/?>"), ""),
    (re.compile(r"\\(?:\s|(?=[*_`|\\]))"), ""),
    (re.compile(r"\s*::$"), ":"),
    (re.compile(r"\s+"), " "),
]
SENTENCE = re.compile(r"[\"'(“]?[A-Z].*[.!?:][\"')”]?", re.DOTALL)
WORD = re.compile(r"[(\"'“‘]*[A-Za-z]+(?:['’-][A-Za-z]+)*[)\"'”’.,;:!?]*")
COMMON_WORD = re.compile(
    r"an?|and|are|as|at|be|but|by|can|do|does|each|for|from|has|have|if|in|is|its?|may|must|no|not|of|on|or|so"
    r"|than|that|the|their|then|there|this|to|use|used|was|we|when|where|which|will|with|you|your",
    re.I,
)
LEGAL = re.compile(r"copyright|licen[cs]e|warrant(y|ies)|all rights reserved", re.I)
COLUMNS = re.compile(r"\S {3,}\S")  # cells of a table
NOT_PROSE = re.compile(r"://|www\.|\.\.\.|…|[$|<>{}=\\^\ufffd]")


def prose_or_none(paragraph: str) -> str | None:
    """Return the paragraph without markup, or None if it does not read like English sentences."""
    if COLUMNS.search(paragraph):
        return None
    for pattern, replacement in MARKUP:
        paragraph = pattern.sub(replacement, paragraph)
    paragraph = paragraph.strip()
    words = paragraph.split(" ")
    if len(words) < 6 or not SENTENCE.fullmatch(paragraph):
        return None
    if NOT_PROSE.search(paragraph) or LEGAL.search(paragraph):
        return None
    plain = sum(WORD.fullmatch(word) is not None for word in words)
    common = sum(COMMON_WORD.fullmatch(word) is not None for word in words)
    return paragraph if plain >= 0.85 * len(words) and common >= 0.2 * len(words) else None
