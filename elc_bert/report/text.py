"""What a run has learned, as text for the terminal."""

import math
import os
import sys
import textwrap
from pathlib import Path

from elc_bert.report.learned import Learned
from elc_bert.report.runs import Run
from elc_bert.utils.event_files import log_folder

WIDTH = 100
"""Columns."""


def text_of(run: Run) -> str:
    """Held-out loss and accuracy beside what guessing without context gives, filled-in blanks, and files."""
    parts = [
        f"{run.folder}, {run.checkpoint.name if run.checkpoint else f'step {run.step}'}",
        _scores(run.learned),
        _fill_ins(run.learned),
        "\n".join(f"Left out: {note}" for note in run.notes),
        _places(run),
    ]
    return "\n\n".join(part for part in parts if part)


def _scores(learned: Learned) -> str:
    reached, alone = learned.score, learned.baseline
    if reached is None or alone is None:
        return ""
    rows = [
        ("", "this model", "without context"),
        ("loss, nats per masked token", f"{reached.loss:.3f}", f"{alone.entropy:.3f}"),
        ("as unsure as among ... tokens", f"{reached.perplexity:.0f}", f"{math.exp(alone.entropy):.0f}"),
        ("accuracy", f"{reached.accuracy:.1%}", f"{alone.top_share:.1%}"),
    ]
    return "\n".join(
        [
            f"Held-out text: {learned.sequences:,} sequences, {reached.predictions:,} masked tokens",
            *(f"  {name:<36}{model_figure:>12}{baseline:>18}" for name, model_figure, baseline in rows),
            f"  Without context: the best that one guess for every place can do (unigram entropy; always "
            f'"{learned.top_word}").',
        ]
    )


def _fill_ins(learned: Learned) -> str:
    if not learned.fill_ins:
        return ""
    lines = ["Held-out sentences with one word masked, and the model's best guesses:"]
    for number, each in enumerate(learned.fill_ins, start=1):
        shown = ", ".join(f'"{guess.text}" {guess.probability:.0%}' for guess in each.guesses)
        lines += textwrap.wrap(
            each.sentence, WIDTH, initial_indent=f"{number:>3}. ", subsequent_indent=" " * 5
        )
        verdict = " (right)" if each.is_right else ""
        lines.append(f'{"":5}guesses: {shown}; the word: "{each.word}"{verdict}')
    return "\n".join(lines)


def _places(run: Run) -> str:
    lines = [f"Checkpoint: {run.checkpoint}"] if run.checkpoint else []
    if run.scalars:
        lines.append(f"TensorBoard: {_command('tensorboard')} --logdir {log_folder(run.folder)}")
    return "\n".join(lines)


def _command(name: str) -> str:
    """How to start a program of this environment from here, whether or not that is activated."""
    path = Path(sys.executable).with_name(name)
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else name
