"""Cleaning steps for one line or paragraph.

A step gets text that is not empty and returns its replacement: ``""`` makes it an empty line, which ends a
document, and None drops it. Cleaning that depends on neighboring lines is in ``passes``.
"""

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from data_tools.sentences import INDENT

if TYPE_CHECKING:
    from data_tools.cleaning.moses import Detokenizer, Punctuation

# ---- for all text ----------------------------------------------------------------------------

_TYPOGRAPHY = (("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"), ("–", "-"), ("—", " - "), ("…", "..."))


@functools.cache
def _fix_text() -> Callable[[str], str]:
    import ftfy

    return functools.partial(ftfy.fix_text, config=ftfy.TextFixerConfig(unescape_html=True, explain=False))


@functools.cache
def _punctuation() -> "Punctuation":
    from data_tools.cleaning.moses import Punctuation

    return Punctuation(penn=False, norm_quote_commas=False, norm_numbers=False)


@functools.cache
def _detokenizer() -> "Detokenizer":
    from data_tools.cleaning.moses import Detokenizer

    return Detokenizer("en")


def normalize(text: str) -> str:
    """Fix encodings, entities and white space, and convert punctuation to ASCII.

    "cafÃ© &amp; “bar”…" becomes 'café & "bar"...'.
    """
    return _normalize_simple(text) or normalize_reference(text)


def normalize_reference(text: str) -> str:
    """Normalize text by the plain definition. ``normalize`` gives the same results faster."""
    return " ".join(_punctuation().normalize(" ".join(_fix_text()(text).split())).split())


def _normalize_simple(text: str) -> str | None:
    """Return what ``normalize_reference`` does if the text needs only ``_TYPOGRAPHY``, as most do, or None.

    No sequence of these characters is UTF-8 that was decoded in another encoding, so ftfy changes nothing. In
    the remaining ASCII, only entities, control characters and Moses' rule for two apostrophes matter.
    """
    if not text.isascii():
        for character, spelling in _TYPOGRAPHY:
            text = text.replace(character, spelling)
    text = text.replace("\t", " ")
    if text.isascii() and text.isprintable() and "&" not in text and "''" not in text:
        return " ".join(text.split())
    return None


# ---- tokenized text --------------------------------------------------------------------------

# Patterns begin with the rare character, which makes the search fast, and look back from there.
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
    """Replace the brackets and quotes of the Penn Treebank: "-LRB- `` so '' -RRB-" becomes '("so")'."""
    text = _PENN_OPENING.sub(lambda match: _PENN_BRACKETS.get(match[1], '"'), text)
    return _PENN_CLOSING.sub(lambda match: _PENN_BRACKETS.get(match[1], '"'), text)


def space_punctuation(text: str) -> str:
    """Fix spaces around punctuation: "look,there , 20 %of" becomes "look, there , 20% of"."""
    return _SPACE_MISSING.sub(r"\g<0> ", _PERCENT.sub("%", text))


def detokenize(text: str) -> str:
    """Join what a tokenizer has split: "is n't it , $ 5 . gon na" becomes "isn't it, $5. gonna"."""
    text = _SPLIT_WORD.sub(lambda match: match[0][1:], text)
    words, stop = (text[:-2], text[-1]) if text.endswith(_FINAL_STOPS) else (text, "")
    if words.isascii() and not _TOKENIZED(f" {words}"):
        return words + stop  # what the detokenizer would return, a hundred times faster
    joined: str = _detokenizer().detokenize(text.split(" "), unescape=False)
    return joined


# ---- speech ----------------------------------------------------------------------------------

_COMPOUND = re.compile(r"\+(?<=\w\+)(?=\w)")
_WORD = re.compile(r"[^\W_]").search
_LEADING_DASH = re.compile(r"-(?!\d)[- ]*")
_TIME_STAMP = re.compile(r"\d{1,3}(?::\d\d)+:?").fullmatch
_IN_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}").fullmatch


def hyphenate_compounds(text: str) -> str:
    """Write the compounds of CHILDES with a hyphen: "kitty+cat" becomes "kitty-cat"."""
    return _COMPOUND.sub("-", text)


def drop_wordless(text: str) -> str | None:
    """Drop a line that has only punctuation."""
    return text if _WORD(text) else None


def drop_time_stamp(text: str) -> str | None:
    """Drop a line that is only a time stamp: "12:30:"."""
    return None if _TIME_STAMP(text) else text


def strip_dash(text: str) -> str:
    """Remove the leading dash that marks a new speaker, but not the minus sign of a number."""
    return _LEADING_DASH.sub("", text, count=1) if text.startswith("-") else text


def capitalize(text: str) -> str:
    """Capitalize the first letter of a line, if the line begins with a letter."""
    return text[0].upper() + text[1:]


def quote(text: str) -> str:
    """Put a line in quotes."""
    return f'"{text}"'


def quote_speech(text: str) -> str:
    """Put speech in quotes.

    Stage directions in brackets, the name of a speaker before a colon, and text that already has quotes do
    not change.
    """
    said = '"' not in text and not text.endswith(":") and not _IN_BRACKETS(text)
    return quote(text) if said else text


# ---- stories and encyclopedias ---------------------------------------------------------------

_INDENTED = re.compile(r"\t|  ").match
_HEADING = re.compile(r"= = = (.*) = = =").fullmatch
_LINK = re.compile(r"\[\[(?!(?:Category|File|Image):)([^\[\]|]*)(?:\|[^\[\]]*)?\]\]")
_EMBEDDED = re.compile(r"\[\[(?:Category|File|Image):[^\[\]]*\]\]")
_REFERENCE = re.compile(r"\[\d+\]")


def mark_indent(text: str) -> str:
    """Replace indentation by a token of the vocabulary, because white space will be normalized."""
    return f"{INDENT} {text}" if _INDENTED(text) else text


def is_heading(text: str) -> bool:
    """Return True for the heading of a Wikipedia article, such as "= = = Oslo = = ="."""
    return text.startswith("= = = ") and _HEADING(text.rstrip()) is not None


def bare_title(text: str) -> str:
    """Remove the equals signs around a heading, unless the title itself contains one."""
    match = _HEADING(text)
    return match[1] if match and "=" not in match[1] else text


def resolve_links(text: str) -> str | None:
    """Replace each wiki link by its target, and drop files and categories.

    The target and not the displayed text is used, as in golden/clean.json, the output of the reference.
    """
    if "[[" not in text:
        return text
    return _EMBEDDED.sub("", _LINK.sub(r"\1", text)).strip() or None


def drop_references(text: str) -> str | None:
    """Remove the numbers of footnotes: "1905.[2]" becomes "1905.".

    The spaces on both sides are kept, as in golden/clean.json, the output of the reference.
    """
    return _REFERENCE.sub("", text).strip() or None
