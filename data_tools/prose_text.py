"""Documentation text (docstrings, reStructuredText, Markdown) to paragraphs of plain English prose.

Rules, not a parser: they need not understand every construct, only to leave out what is not prose.
"""

import inspect
import re

# ---- from a text to its paragraphs -----------------------------------------------------------

# Directives of reStructuredText whose body is prose; that of any other is code, a table or a list.
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
# An entry whose continuation lines belong to it: ":param name: text", "name (type): text", "name -- text".
# (NumPy's "name : type" is not one: the lines below it are sentences of their own.)
FIELD = re.compile(
    r"[:@][a-z]+\b.*|[*`'\"]*([a-z_][\w.,*`'\"/]*( ?\(.*?\))?|\w+ ?\(.*?\))[`'\"]*(:| --?) +\S.*"
)
HYPHENATED = re.compile(r"(?<=[a-z])-\n(?=[a-z])")  # a word broken at its hyphen when lines were wrapped


class ParagraphFinder:
    """Reads a documentation text line by line and joins each paragraph into one line, leaving code out.

    A paragraph is a run of lines of one indentation; a bullet starts one that is indented as its text.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self.lines: list[str] = []  # of the paragraph being collected
        self.margin = 0  # its indentation
        self.fenced = False
        self.skip_to_blank = False
        self.skip_deeper_than: int | None = None

    def read(self, line: str) -> None:
        content = line.strip()
        indent = len(line) - len(line.lstrip())
        if FENCE.fullmatch(content):
            self.fenced = not self.fenced
            self.end_paragraph()
        elif not content:
            self.skip_to_blank = False
            self.end_paragraph()
        elif not self.is_skipped(indent):
            self.read_content(content, indent)

    def is_skipped(self, indent: int) -> bool:
        if self.skip_deeper_than is not None and indent <= self.skip_deeper_than:
            self.skip_deeper_than = None
        return self.fenced or self.skip_to_blank or self.skip_deeper_than is not None

    def read_content(self, content: str, indent: int) -> None:
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
        if self.lines:
            self.found.append(HYPHENATED.sub("-", "\n".join(self.lines)).replace("\n", " "))
            self.lines.clear()


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a documentation text, prose or not, each in one line."""
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


def as_prose(paragraph: str) -> str | None:
    """The paragraph without markup, or None where it does not read like English sentences."""
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
