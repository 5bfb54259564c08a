"""Which cleaning each corpus gets, as a table.

The ten corpora of BabyLM 2023 differ in what their makers did to them: some are tokenised, some
hard-wrapped, some are transcripts. Speech is put between quotes, so that a model can tell it from prose.
All other text gets `generic`: nothing is done to it that might be wrong in some language or kind of text.
It keeps its lines; encodings (ftfy), Unicode punctuation (Moses) and white space are put right, and
several blank lines become one.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_tools.cleaning.passes import (
    drop_repeats,
    drop_stubs,
    end_blocks,
    join_paragraphs,
    squeeze_blanks,
    start_at_headings,
)
from data_tools.cleaning.steps import (
    bare_title,
    capitalize,
    detokenize,
    drop_references,
    drop_time_stamp,
    drop_wordless,
    hyphenate_compounds,
    mark_indent,
    normalize,
    penn_symbols,
    quote,
    quote_speech,
    resolve_links,
    space_punctuation,
    strip_dash,
)

Pass = Callable[[Iterable[str]], Iterator[str]]
Step = Callable[[str], str | None]


@dataclass(frozen=True)
class Rule:
    """How a corpus is cleaned: `before` and `after` see its lines in order, the steps one text at a time."""

    steps: tuple[Step, ...]
    """What is done to a line or paragraph, in order; costly, so that all cores share it."""
    before: Pass = iter
    """Puts lines together."""
    after: tuple[Pass, ...] = ()
    """Choose among the results."""

    def clean(self, text: str) -> str | None:
        """Takes one text through the steps; None if it is to be dropped."""
        result: str | None = text if text.strip() else ""
        for step in self.steps:
            if not result:
                break
            result = step(result)
        return result

    def choose(self, lines: Iterable[str]) -> Iterator[str]:
        """Takes the cleaned lines of a file through the passes in `after`."""
        for each in self.after:
            lines = each(lines)
        return iter(lines)

    def apply(self, lines: Iterable[str]) -> Iterator[str]:
        """The cleaned lines of a whole file, in one process."""
        return self.choose(result for text in self.before(lines) if (result := self.clean(text)) is not None)


GENERIC = "generic"

_TALK = (normalize, space_punctuation, detokenize, drop_wordless, capitalize, quote)
_CAPTIONS = (normalize, strip_dash, quote_speech)

RULES: dict[str, Rule] = {
    "aochildes": Rule((hyphenate_compounds, *_TALK), after=(drop_repeats,)),
    "bnc_spoken": Rule(_TALK, after=(drop_repeats,)),
    "cbt": Rule((penn_symbols, normalize, detokenize)),
    "children_stories": Rule((mark_indent, normalize), before=end_blocks),
    "gutenberg": Rule((normalize,), before=join_paragraphs, after=(squeeze_blanks,)),
    "open_subtitles": Rule(_CAPTIONS, after=(drop_repeats,)),
    "qed": Rule((normalize, strip_dash, drop_time_stamp, quote_speech), after=(drop_repeats,)),
    "simple_wikipedia": Rule((normalize, drop_references), after=(drop_stubs, squeeze_blanks)),
    "switchboard": Rule((normalize, strip_dash, quote), after=(drop_repeats,)),
    "wikipedia": Rule(
        (resolve_links, normalize, bare_title, drop_references),
        before=start_at_headings,
        after=(squeeze_blanks,),
    ),
    GENERIC: Rule((normalize,), after=(squeeze_blanks,)),
}
"""Rules by name of the corpus."""


def corpus_of(path: Path) -> str:
    """The corpus that a file belongs to by its name up to the first dot: `cbt.train`, `cbt.dev.txt`."""
    name = path.name.partition(".")[0]
    return name if name in RULES else GENERIC
