"""The steps of cleaning one line or paragraph, each a small function.

A step gets text that is not empty and returns what shall stand there instead: `""` makes it an empty
line, which ends a document, and `None` drops it. Steps know nothing of the neighbouring lines; what
depends on those is in `passes`.
"""

import functools
import re
from typing import TYPE_CHECKING

import ftfy

if TYPE_CHECKING:
    from data_tools.cleaning.moses import Detokenizer, Punctuation

# ---- for all text ----------------------------------------------------------------------------

_FTFY = ftfy.TextFixerConfig(unescape_html=True, explain=False)
_TYPOGRAPHY = (("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"), ("–", "-"), ("—", " - "), ("…", "..."))


@functools.cache
def _punctuation() -> "Punctuation":
    from data_tools.cleaning.moses import Punctuation

    return Punctuation(penn=False, norm_quote_commas=False, norm_numbers=False)


@functools.cache
def _detokenizer() -> "Detokenizer":
    from data_tools.cleaning.moses import Detokenizer

    return Detokenizer("en")


def normalize(text: str) -> str:
    """Repairs encodings, entities and white space, and writes punctuation in ASCII.

    "cafÃ© &amp; “bar”…" becomes 'café & "bar"...'.
    """
    return _plain(text) or repair(text)


def repair(text: str) -> str:
    """The definition of `normalize`, which finds most results sooner."""
    return " ".join(_punctuation().normalize(" ".join(ftfy.fix_text(text, _FTFY).split())).split())


def _plain(text: str) -> str | None:
    """`repair` for the many texts that need only `_TYPOGRAPHY`; None for all others.

    No bytes of these characters on end are UTF-8 in any encoding, so there is nothing to repair; else only
    entities, control characters and Moses' rule for '' concern ASCII.
    """
    if not text.isascii():
        for character, spelling in _TYPOGRAPHY:
            text = text.replace(character, spelling)
    text = text.replace("\t", " ")
    if text.isascii() and text.isprintable() and "&" not in text and "''" not in text:
        return " ".join(text.split())
    return None


# ---- tokenised text --------------------------------------------------------------------------

# Patterns begin with the rare character, by which they are found fast, and look back from there.
_SPACE_MISSING = re.compile(
    r"[,;?!.%](?:"
    r"(?<=[,;?!])(?=[^\W\d_])"  # look,there
    r"|(?<=[a-z]{2}\.)(?=[A-Z])"  # know.What, but neither U.S.A nor Ph.D
    r"|(?<=\d%)(?=\w))"
)
_PERCENT = re.compile(r" %(?<=\d %)(?=\w)")
_SPLIT_WORD = re.compile(r"(?i) (?:(?<=\bgon )na|(?<=\bwan )na|(?<=\bgot )ta)\b")
_FINAL_STOPS = (" .", " ?", " !")
_TOKENIZED = re.compile(r"(?i) (?:[^\w ]|n't)").search

_PENN_BRACKETS = {"-LRB-": "(", "-LSB-": "[", "-LCB-": "{", "-RRB-": ")", "-RSB-": "]", "-RCB-": "}"}
_PENN_OPENING = re.compile(r"(-L[RSC]B-|``) *")
_PENN_CLOSING = re.compile(r" *(-R[RSC]B-|'')")


def penn_symbols(text: str) -> str:
    """Replaces the Penn Treebank's brackets and quotes: "-LRB- `` so '' -RRB-" becomes '("so")'."""
    text = _PENN_OPENING.sub(lambda match: _PENN_BRACKETS.get(match[1], '"'), text)
    return _PENN_CLOSING.sub(lambda match: _PENN_BRACKETS.get(match[1], '"'), text)


def space_punctuation(text: str) -> str:
    """Puts the spaces where they belong: "look,there , 20 %of" becomes "look, there , 20% of"."""
    return _SPACE_MISSING.sub(r"\g<0> ", _PERCENT.sub("%", text))


def detokenize(text: str) -> str:
    """Joins what a tokeniser took apart: "is n't it , $ 5 . gon na" becomes "isn't it, $5. gonna"."""
    text = _SPLIT_WORD.sub(lambda match: match[0][1:], text)
    words, stop = (text[:-2], text[-1]) if text.endswith(_FINAL_STOPS) else (text, "")
    if words.isascii() and not _TOKENIZED(f" {words}"):
        return words + stop  # as the detokeniser would say, only a hundred times faster
    return _detokenizer().detokenize(text.split(" "), unescape=False)


# ---- speech ----------------------------------------------------------------------------------

_COMPOUND = re.compile(r"\+(?<=\w\+)(?=\w)")
_WORD = re.compile(r"[^\W_]").search
_LEADING_DASH = re.compile(r"-(?!\d)[- ]*")
_TIME_STAMP = re.compile(r"\d{1,3}(?::\d\d)+:?").fullmatch
_IN_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}").fullmatch


def hyphenate_compounds(text: str) -> str:
    """Writes CHILDES' compounds as English does: "kitty+cat" becomes "kitty-cat"."""
    return _COMPOUND.sub("-", text)


def drop_wordless(text: str) -> str | None:
    """Drops a line of punctuation only."""
    return text if _WORD(text) else None


def drop_time_stamp(text: str) -> str | None:
    """Drops a line that only says when something was said: "12:30:"."""
    return None if _TIME_STAMP(text) else text


def strip_dash(text: str) -> str:
    """Takes away the dash that marks a new speaker; the minus of a number stays."""
    return _LEADING_DASH.sub("", text, count=1) if text.startswith("-") else text


def capitalize(text: str) -> str:
    """Begins a line with a capital, where it begins with a letter."""
    return text[0].upper() + text[1:]


def quote(text: str) -> str:
    """Puts a line between quotes."""
    return f'"{text}"'


def quote_speech(text: str) -> str:
    """Puts what is said between quotes, but no stage direction in brackets, no speaker's name before a
    colon, and nothing that has quotes already.
    """
    said = '"' not in text and not text.endswith(":") and not _IN_BRACKETS(text)
    return quote(text) if said else text


# ---- stories and encyclopedias ---------------------------------------------------------------

INDENT = "[TAB]"
_INDENTED = re.compile(r"\t|  ").match
_HEADING = re.compile(r"= = = (.*) = = =").fullmatch
_LINK = re.compile(r"\[\[(?!(?:Category|File|Image):)([^\[\]|]*)(?:\|[^\[\]]*)?\]\]")
_EMBEDDED = re.compile(r"\[\[(?:Category|File|Image):[^\[\]]*\]\]")
_REFERENCE = re.compile(r"\[\d+\]")


def mark_indent(text: str) -> str:
    """Writes indentation, which white space would not survive, as a token of the vocabulary."""
    return f"{INDENT} {text}" if _INDENTED(text) else text


def is_heading(text: str) -> bool:
    """Whether a line is the heading of a Wikipedia article: "= = = Oslo = = ="."""
    return text.startswith("= = = ") and _HEADING(text.rstrip()) is not None


def bare_title(text: str) -> str:
    """Takes the marks off a heading; one with a further "=" in it is left as it stands."""
    match = _HEADING(text)
    return match[1] if match and "=" not in match[1] else text


def resolve_links(text: str) -> str | None:
    """Writes the target of each wiki link, and drops files and categories.

    The target rather than the words shown for it, as golden/clean.json has it.
    """
    if "[[" not in text:
        return text
    return _EMBEDDED.sub("", _LINK.sub(r"\1", text)).strip() or None


def drop_references(text: str) -> str | None:
    """Takes out the numbers of footnotes: "1905.[2]" becomes "1905.".

    The spaces on both sides of one stay, as golden/clean.json has it.
    """
    return _REFERENCE.sub("", text).strip() or None
