"""Sentence splitting."""

from collections.abc import Callable

from data_tools.languages import PUNKT, language_code
from elc_bert.utils.errors import UserError

PARAGRAPH_END = "[PAR]"
Splitter = Callable[[str], list[str]]


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


def sentence_splitter(name: str, language: str) -> Splitter:
    """Return a function that splits a paragraph into sentences and appends ``[PAR]`` to the last one.

    Args:
        name: Key of ``SPLITTERS``, or ``lines`` for paragraphs that are single sentences already.
        language: ISO 639 code of the language.

    Raises:
        UserError: There is no such language, or a package or data that the splitter needs is not installed.
    """
    if name == "lines":
        return lambda line: [line]
    split = SPLITTERS[name](language)

    def sentences_of(paragraph: str) -> list[str]:
        sentences = [stripped for each in split(paragraph) if (stripped := each.strip())]
        sentences[-1] += PARAGRAPH_END
        return sentences

    return sentences_of
