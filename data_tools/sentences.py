"""Finding the sentences of a paragraph."""

from collections.abc import Callable

from elc_bert.utils.errors import UserError

PARAGRAPH_END = "[PAR]"
Splitter = Callable[[str], list[str]]


def sentencex_splitter(language: str) -> Splitter:
    """The sentencex library, which carries the rules of many languages in its package."""
    import sentencex

    return lambda paragraph: sentencex.segment(language, paragraph)


def punkt_splitter(language: str) -> Splitter:
    """NLTK's Punkt (Kiss and Strunk, 2006), as the BabyLM submission used it; needs NLTK and its data.

    Raises:
        UserError: one of them is not installed, or has no such language.
    """
    try:
        from nltk.tokenize import PunktTokenizer
    except ImportError:
        raise UserError(
            "--sentences punkt: the package nltk is not installed; pip install nltk, or use --sentences split"
        ) from None
    name = PUNKT_LANGUAGES.get(language, language)
    try:
        return PunktTokenizer(name).tokenize
    except LookupError:
        raise UserError(
            f"--sentences punkt: NLTK has no data for {name!r} here; fetch it with: "
            "python -m nltk.downloader punkt_tab, or use --sentences split"
        ) from None


#: What `punkt` calls the languages that `--language` names by their ISO code.
PUNKT_LANGUAGES = {
    "cs": "czech",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "et": "estonian",
    "fi": "finnish",
    "fr": "french",
    "it": "italian",
    "ml": "malayalam",
    "nl": "dutch",
    "no": "norwegian",
    "pl": "polish",
    "pt": "portuguese",
    "ru": "russian",
    "sl": "slovene",
    "sv": "swedish",
    "tr": "turkish",
}
SPLITTERS: dict[str, Callable[[str], Splitter]] = {"split": sentencex_splitter, "punkt": punkt_splitter}
#: The packages that decide where a splitter splits.
LIBRARIES = {"split": ["sentencex"], "punkt": ["nltk"]}


def sentence_finder(name: str, language: str) -> Splitter:
    """A function from a paragraph to its sentences, the last of which ends in `[PAR]`.

    Args:
        name: a key of `SPLITTERS`, or `lines` for paragraphs that are sentences already.
        language: ISO 639 code.

    Raises:
        UserError: what it needs is not installed.
    """
    if name == "lines":
        return lambda line: [line]
    split = SPLITTERS[name](language)

    def sentences_of(paragraph: str) -> list[str]:
        sentences = [stripped for each in split(paragraph) if (stripped := each.strip())]
        sentences[-1] += PARAGRAPH_END
        return sentences

    return sentences_of
