"""Evaluation of a run's newest checkpoint on its held-out text."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from elc_bert.checkpoint.load_model import load_checkpoint_model
from elc_bert.config.held_out import HeldOutSettings
from elc_bert.config.schema import RunConfig
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.text_tokenizer import TextTokenizer
from elc_bert.data.format.vocabulary import check_tokenizer
from elc_bert.data.sampling.from_config import held_out_from_config, special_names
from elc_bert.data.sampling.steps import HeldOut
from elc_bert.evaluation.fill_mask import Guess, choose_clozes, fill_blank, sentence_with_blank, token_text
from elc_bert.evaluation.held_out import Score, score_held_out
from elc_bert.evaluation.unigram import UnigramBaseline, unigram_baseline
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.utils.errors import UserError, describe_os_error

T = TypeVar("T")
NUM_SENTENCES = 10
"""Number of sentences in which a word is masked."""
TOP_K = 3
"""Number of predictions for each masked word."""


@dataclass(frozen=True)
class FillIn:
    """A sentence with one masked word, and the model's predictions for it."""

    sentence: str
    """The sentence with a blank in place of the word."""
    word: str
    """The masked word."""
    guesses: tuple[Guess, ...]
    """Predicted words, most probable first."""

    @property
    def is_right(self) -> bool:
        """True if the most probable prediction is correct."""
        return self.guesses[0].text == self.word


@dataclass(frozen=True)
class HeldOutResults:
    """Results on held-out text; None or empty if the model, the text or the tokenizer cannot be read."""

    score: Score | None = None
    """Loss and accuracy of the checkpoint on the run's held-out set."""
    sequences: int = 0
    """Number of sequences in that set."""
    masks: str = ""
    """Description of the masks and the length of the sequences."""
    baseline: UnigramBaseline | None = None
    """The best loss and accuracy without context on the same text."""
    top_word: str = ""
    """The most frequent token of the text."""
    fill_ins: tuple[FillIn, ...] = ()
    """Sentences with a masked word and the model's predictions."""
    notes: tuple[str, ...] = ()
    """Reasons why parts are missing."""


def evaluate_checkpoint(config: RunConfig | None, checkpoint: Path | None) -> HeldOutResults:
    """Score a checkpoint and predict masked words with it, in this process and on the CPU.

    Args:
        config: Configuration of the run; None if it cannot be read.
        checkpoint: Directory of the checkpoint; None if there is none.
    """
    if config is None:
        return HeldOutResults()
    notes: list[str] = []
    text = _or_note("held-out text", lambda: _load_text(config), notes)
    scoring = None
    if checkpoint is not None:
        what = "held-out score and masked words"
        scoring = _or_note(what, lambda: (_load_model(config, checkpoint), _held_out(config)), notes)
    if text is None:
        return HeldOutResults(notes=tuple(notes))
    dev, tokenizer = text
    baseline = unigram_baseline(dev.tokens, tokenizer.special)
    top_word = token_text(tokenizer, baseline.top_token)
    if scoring is None:
        return HeldOutResults(baseline=baseline, top_word=top_word, notes=tuple(notes))
    model, held_out = scoring
    return HeldOutResults(
        score_held_out(model, (held_out[index] for index in range(len(held_out)))),
        held_out.sequences,
        HeldOutSettings.of_run(config).describe(),
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
            f"{checkpoint / 'model.json'}: not the model of the run's config.json; "
            "give the directory of a single run"
        )
    return model


def _load_text(config: RunConfig) -> tuple[IndexedDataset, TextTokenizer]:
    dev, tokenizer = IndexedDataset(config.elc_bert.data.dev), config.elc_bert.data.tokenizer
    check_tokenizer(dev, tokenizer)
    return dev, TextTokenizer.load(tokenizer, special_names(config.elc_bert.data))


def _fill_ins(
    config: RunConfig, dev: IndexedDataset, tokenizer: TextTokenizer, model: ElcBertForMaskedLM
) -> list[FillIn]:
    max_tokens = config.elc_bert.training.sequence_length - 2
    return [
        FillIn(
            sentence_with_blank(tokenizer, cloze),
            token_text(tokenizer, int(cloze.ids[cloze.position])),
            tuple(fill_blank(model, tokenizer, cloze, TOP_K)),
        )
        for cloze in choose_clozes(dev, tokenizer, NUM_SENTENCES, max_tokens)
    ]


def _or_note(what: str, read: Callable[[], T], notes: list[str]) -> T | None:
    """Return the result of ``read``, or None after adding a note with the error if it fails."""
    try:
        return read()
    except UserError as error:
        notes.append(f"{what}: {error}")
    except OSError as error:
        notes.append(f"{what}: {describe_os_error(error)}")
    return None
