"""What the newest checkpoint of a run knows about the held-out text."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from elc_bert.checkpoint.load_model import load_checkpoint_model
from elc_bert.config.schema import RunConfig
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.vocabulary import check_tokenizer, load_tokenizer
from elc_bert.data.sampling.from_config import held_out_from_config
from elc_bert.data.sampling.steps import HeldOut
from elc_bert.evaluation.fill_mask import Guess, choose_clozes, fill, sentence_with_blank, token_text
from elc_bert.evaluation.held_out import Score, score
from elc_bert.evaluation.unigram import Unigram, unigram
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.utils.errors import UserError, describe_os_error

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T = TypeVar("T")
CLOZES = 10
GUESSES = 3


@dataclass(frozen=True)
class FillIn:
    """A sentence with one word masked, and what the model would put there."""

    sentence: str
    """With a blank in the place of the word."""
    word: str
    guesses: tuple[Guess, ...]
    """The best first."""

    @property
    def is_right(self) -> bool:
        return self.guesses[0].text == self.word


@dataclass(frozen=True)
class Learned:
    """Parts are None or empty where the model, the text or the tokenizer cannot be read."""

    score: Score | None = None
    """Of the checkpoint on the run's held-out set."""
    sequences: int = 0
    """Of that set."""
    baseline: Unigram | None = None
    """What guessing without context reaches on the same text."""
    top_word: str = ""
    """The most frequent token of the text."""
    fill_ins: tuple[FillIn, ...] = ()
    notes: tuple[str, ...] = ()
    """Why parts are missing."""


def look(config: RunConfig | None, checkpoint: Path | None) -> Learned:
    """Score a checkpoint and let it fill in blanks, in this process, on the CPU.

    Args:
        config: of its run; None if it cannot be read.
        checkpoint: its directory; None without one.
    """
    if config is None:
        return Learned()
    notes: list[str] = []
    text = _or_note("what concerns the held-out text", lambda: _load_text(config), notes)
    scoring = None
    if checkpoint is not None:
        what = "score and filled-in words"
        scoring = _or_note(what, lambda: (_load_model(config, checkpoint), _held_out(config)), notes)
    if text is None:
        return Learned(notes=tuple(notes))
    dev, tokenizer = text
    baseline = unigram(dev.tokens)
    top_word = token_text(tokenizer, baseline.top_token)
    if scoring is None:
        return Learned(baseline=baseline, top_word=top_word, notes=tuple(notes))
    model, held_out = scoring
    return Learned(
        score(model, (held_out[index] for index in range(len(held_out)))),
        held_out.sequences,
        baseline,
        top_word,
        tuple(_fill_ins(config, dev, tokenizer, model)),
        tuple(notes),
    )


def _held_out(config: RunConfig) -> HeldOut:
    return held_out_from_config(config, micro_batch=32)


def _load_model(config: RunConfig, checkpoint: Path) -> ElcBertForMaskedLM:
    model = load_checkpoint_model(checkpoint)
    if model.config != config.elc_bert.model:
        raise UserError(
            f"{checkpoint / 'model.json'}: another model than in the run's config.json; "
            "give the directory of one run"
        )
    return model


def _load_text(config: RunConfig) -> "tuple[IndexedDataset, Tokenizer]":
    dev, tokenizer = IndexedDataset(config.elc_bert.data.dev), config.elc_bert.data.tokenizer
    check_tokenizer(dev, tokenizer)
    return dev, load_tokenizer(tokenizer)


def _fill_ins(
    config: RunConfig, dev: IndexedDataset, tokenizer: "Tokenizer", model: ElcBertForMaskedLM
) -> list[FillIn]:
    max_tokens = config.elc_bert.training.sequence_length - 2
    return [
        FillIn(
            sentence_with_blank(tokenizer, cloze),
            token_text(tokenizer, int(cloze.ids[cloze.place])),
            tuple(fill(model, tokenizer, cloze, GUESSES)),
        )
        for cloze in choose_clozes(dev, tokenizer, CLOZES, max_tokens)
    ]


def _or_note(what: str, read: Callable[[], T], notes: list[str]) -> T | None:
    """What ``read`` returns; if it cannot, None and a note of what is left out and why."""
    try:
        return read()
    except UserError as error:
        notes.append(f"{what}: {error}")
    except OSError as error:
        notes.append(f"{what}: {describe_os_error(error)}")
    return None
