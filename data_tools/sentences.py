"""Sentence splitting."""

from collections.abc import Callable
from typing import NamedTuple

from data_tools.languages import PUNKT, language_code
from elc_bert.utils.errors import UserError

PARAGRAPH_END = "[PAR]"
"""Marker at the end of a paragraph, in text that has one sentence per line."""
INDENT = "[TAB]"
"""Marker that ``clean`` writes at the start of an indented paragraph."""
Splitter = Callable[[str], list[str]]
"""Function that splits a paragraph into sentences."""


class Sentence(NamedTuple):
    """A sentence, and the special tokens around it.

    Special tokens elsewhere in the text are text.
    """

    text: str
    """Text of the sentence."""
    is_indented: bool = False
    """True at the start of an indented paragraph; ``[TAB]`` comes before the text."""
    ends_paragraph: bool = False
    """True at the end of a paragraph; ``[PAR]`` comes after the text."""


def sentencex_splitter(language: str) -> Splitter:
    """Return a splitter that uses sentencex, whose package includes rules for many languages.

    Raises:
        UserError: There is no such language.
    """
    import sentencex

    code = language_code(language)
    return lambda paragraph: sentencex.segment(code, paragraph)


def punkt_splitter(language: str) -> Splitter:
    """Return a splitter that uses NLTK's Punkt (Kiss and Strunk, 2006), as the BabyLM submission did.

    Raises:
        UserError: NLTK or its data is not installed, or has no model for the language.
    """
    try:
        from nltk.tokenize import PunktTokenizer
    except ImportError:
        raise UserError(
            "--sentences punkt: nltk is not installed; use --sentences split, or run: "
            "pip install 'elc-bert[data]'"
        ) from None
    name = PUNKT.get(language, language)
    if name not in PUNKT.values():
        raise UserError(f"--language {language}: unknown to Punkt; use one of: {', '.join(PUNKT)}")
    try:
        tokenize: Splitter = PunktTokenizer(name).tokenize
    except LookupError:
        raise UserError(
            f"--sentences punkt: NLTK's data for {name!r} is not installed; use --sentences split, "
            "or download the data with: python -m nltk.downloader punkt_tab"
        ) from None
    return tokenize


SPLITTERS: dict[str, Callable[[str], Splitter]] = {"split": sentencex_splitter, "punkt": punkt_splitter}
"""Functions that make a splitter for a language, by value of ``--sentences``."""

LIBRARIES = {"split": ["sentencex"], "punkt": ["nltk"]}
"""Packages whose version decides where sentences are split, by value of ``--sentences``."""


def sentence_splitter(name: str, language: str) -> Callable[[str], list[Sentence]]:
    """Return a function that splits a paragraph into sentences.

    Args:
        name: Key of ``SPLITTERS``, or ``lines`` for lines that are single sentences already, with ``[PAR]``
            at the end of those that end a paragraph.
        language: ISO 639 code of the language.

    Raises:
        UserError: There is no such language, or a package or data that the splitter needs is not installed.
    """
    if name == "lines":
        return _line_as_sentence
    split = SPLITTERS[name](language)

    def sentences_of(paragraph: str) -> list[Sentence]:
        texts = [stripped for each in split(paragraph) if (stripped := each.strip())]
        sentences = [Sentence(text) for text in texts]
        sentences[0] = Sentence(texts[0].removeprefix(INDENT), is_indented=texts[0].startswith(INDENT))
        sentences[-1] = sentences[-1]._replace(ends_paragraph=True)
        return sentences

    return sentences_of


def without_markers(line: str) -> str:
    """Return a line of text without ``[TAB]`` at its start and ``[PAR]`` at its end."""
    return _line_as_sentence(line)[0].text


def _line_as_sentence(line: str) -> list[Sentence]:
    text = line.removeprefix(INDENT)
    if text.endswith(PARAGRAPH_END):
        text = text.removesuffix(PARAGRAPH_END).rstrip()
    return [Sentence(text, line.startswith(INDENT), line.endswith(PARAGRAPH_END))]
