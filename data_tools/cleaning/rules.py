"""Table of cleaning rules, one for each corpus.

The ten corpora of BabyLM 2023 come in different forms: some are tokenized, some are hard-wrapped, some are
transcripts. Speech is put in quotes, so that a model can distinguish it from prose. All other text is cleaned
by the rule ``generic``, which does nothing that could be wrong for some language or kind of text: it keeps
the lines, fixes encodings (ftfy), normalizes Unicode punctuation (Moses) and white space, and replaces
several blank lines in a row by one.
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
    """Cleaning of one corpus: passes over all lines in order, and steps for single texts."""

    steps: tuple[Step, ...]
    """Steps to apply to a line or paragraph, in order. They are costly and run on all cores."""
    before: Pass = iter
    """Pass that groups lines before the steps."""
    after: tuple[Pass, ...] = ()
    """Passes that select among the results of the steps."""

    def clean(self, text: str) -> str | None:
        """Apply the steps to one text. Return None if it must be dropped."""
        result: str | None = text if text.strip() else ""
        for step in self.steps:
            if not result:
                break
            result = step(result)
        return result

    def run_after(self, lines: Iterable[str]) -> Iterator[str]:
        """Apply the passes in ``after`` to the cleaned lines of a file."""
        for each in self.after:
            lines = each(lines)
        return iter(lines)

    def apply(self, lines: Iterable[str]) -> Iterator[str]:
        """Yield the cleaned lines of a whole file, in this process."""
        return self.run_after(
            result for text in self.before(lines) if (result := self.clean(text)) is not None
        )


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


def corpus_name(path: Path) -> str:
    """Return the corpus of a file, which is its name up to the first dot: ``cbt.train``, ``cbt.dev.txt``."""
    name = path.name.partition(".")[0]
    return name if name in RULES else GENERIC
