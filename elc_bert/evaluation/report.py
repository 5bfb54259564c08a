"""What a run has learned, as text for a person."""

import math
import os
import sys
import textwrap
from pathlib import Path

from elc_bert.config import RunConfig
from elc_bert.config_file import load_config
from elc_bert.data.from_config import held_out_set
from elc_bert.data.indexed import IndexedDataset
from elc_bert.data.vocabulary import check_tokenizer, load_tokenizer
from elc_bert.errors import UserError
from elc_bert.evaluation.fill_mask import choose_clozes, fill, sentence_with_blank, token_text
from elc_bert.evaluation.held_out import score
from elc_bert.evaluation.loading import load_checkpoint_model, newest_checkpoint
from elc_bert.evaluation.unigram import unigram
from elc_bert.model import ElcBertForMaskedLM

CLOZES = 10
GUESSES = 3
WIDTH = 100
"""Columns."""


def report(run: Path) -> str:
    """Held-out loss and accuracy beside what guessing without context gives, filled-in blanks, and files.

    Args:
        run: the run's ``elc_bert.training.output_dir``.

    Raises:
        UserError: no run or checkpoint there, or its files or its data are missing or damaged.
    """
    if not (run / "config.json").is_file():
        raise UserError(
            f"{run}: no run there (config.json is missing); give the elc_bert.training.output_dir of one"
        )
    checkpoint = newest_checkpoint(run)
    config = load_config(run / "config.json")
    model = load_checkpoint_model(checkpoint)
    if model.config != config.elc_bert.model:
        raise UserError(
            f"{checkpoint / 'model.json'}: another model than in {run / 'config.json'}; "
            "give the directory of one run"
        )
    dev = IndexedDataset(config.elc_bert.data.dev)
    check_tokenizer(dev, config.elc_bert.data.tokenizer)
    parts = [
        f"{run}, {checkpoint.name}",
        _scores(config, dev, model),
        _fill_ins(config, dev, model),
        _places(config, run, checkpoint),
    ]
    return "\n\n".join(parts)


def _scores(config: RunConfig, dev: IndexedDataset, model: ElcBertForMaskedLM) -> str:
    held_out = held_out_set(config, micro_batch=32)
    reached = score(model, (held_out[index] for index in range(len(held_out))))
    alone = unigram(dev.tokens)
    always = token_text(load_tokenizer(config.elc_bert.data.tokenizer), alone.top_token)
    rows = [
        ("", "this model", "without context"),
        ("loss, nats per masked token", f"{reached.loss:.3f}", f"{alone.entropy:.3f}"),
        ("as unsure as among ... tokens", f"{math.exp(reached.loss):.0f}", f"{math.exp(alone.entropy):.0f}"),
        ("accuracy", f"{reached.accuracy:.1%}", f"{alone.top_share:.1%}"),
    ]
    return "\n".join(
        [
            f"Held-out text: {held_out.sequences:,} sequences, {reached.predictions:,} masked tokens",
            *(f"  {name:<36}{model_figure:>12}{baseline:>18}" for name, model_figure, baseline in rows),
            f"  Without context: the best that one guess for every place can do (unigram entropy; always "
            f'"{always}").',
        ]
    )


def _fill_ins(config: RunConfig, dev: IndexedDataset, model: ElcBertForMaskedLM) -> str:
    tokenizer = load_tokenizer(config.elc_bert.data.tokenizer)
    max_tokens = config.elc_bert.training.sequence_length - 2
    lines = ["Held-out sentences with one word masked, and the model's best guesses:"]
    for number, cloze in enumerate(choose_clozes(dev, tokenizer, CLOZES, max_tokens), start=1):
        sentence = sentence_with_blank(tokenizer, cloze)
        word = token_text(tokenizer, int(cloze.ids[cloze.place]))
        guesses = fill(model, tokenizer, cloze, GUESSES)
        shown = ", ".join(f'"{guess.text}" {guess.probability:.0%}' for guess in guesses)
        lines += textwrap.wrap(sentence, WIDTH, initial_indent=f"{number:>3}. ", subsequent_indent=" " * 5)
        verdict = " (right)" if word == guesses[0].text else ""
        lines.append(f'{"":5}guesses: {shown}; the word: "{word}"{verdict}')
    return "\n".join(lines)


def _places(config: RunConfig, run: Path, checkpoint: Path) -> str:
    lines = [f"Checkpoint: {checkpoint}"]
    tensorboard = config.deepspeed_extras.get("tensorboard", {})
    if tensorboard.get("enabled"):
        logs = tensorboard.get("output_path") or run
        lines += [
            f"Curves of loss, learning rate and throughput, and pictures of the layer weights: {logs}",
            f"  to look at them: {_command('tensorboard')} --logdir {logs}",
            "  then open http://localhost:6006 in a browser",
        ]
    return "\n".join(lines)


def _command(name: str) -> str:
    """How to start a program of this environment from here, whether or not that is activated."""
    path = Path(sys.executable).with_name(name)
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else name
