"""Summary of a run for the terminal."""

import math
import os
import sys
import textwrap
from pathlib import Path

from elc_bert.report.held_out import HeldOutResults
from elc_bert.report.runs import Run
from elc_bert.utils.event_files import log_folder

WIDTH = 100
"""Width of the text in columns."""


def summary_text(run: Run) -> str:
    """Return a summary: held-out loss and accuracy, predictions of masked words, and file locations."""
    parts = [
        f"{run.folder}, {run.checkpoint.name if run.checkpoint else f'step {run.step}'}",
        _scores(run.held_out),
        _fill_ins(run.held_out),
        "\n".join(f"Missing: {note}" for note in run.notes),
        _locations(run),
    ]
    return "\n\n".join(part for part in parts if part)


def _scores(results: HeldOutResults) -> str:
    score, baseline = results.score, results.baseline
    if score is None or baseline is None:
        return ""
    rows = [
        ("", "this model", "unigram baseline"),
        ("loss, nats per masked token", f"{score.loss:.3f}", f"{baseline.entropy:.3f}"),
        ("perplexity", f"{score.perplexity:.0f}", f"{math.exp(baseline.entropy):.0f}"),
        ("accuracy", f"{score.accuracy:.1%}", f"{baseline.top_share:.1%}"),
    ]
    return "\n".join(
        [
            f"Held-out text: {results.sequences:,} sequences, {score.predictions:,} masked tokens",
            f"  {results.masks}",
            *(
                f"  {name:<36}{model_value:>12}{baseline_value:>18}"
                for name, model_value, baseline_value in rows
            ),
            "  Unigram baseline: the best loss (unigram entropy) and accuracy without context; "
            f'the most frequent token is "{results.top_word}".',
        ]
    )


def _fill_ins(results: HeldOutResults) -> str:
    if not results.fill_ins:
        return ""
    lines = ["Held-out sentences with one masked word, and the model's most probable predictions:"]
    for number, each in enumerate(results.fill_ins, start=1):
        shown = ", ".join(f'"{guess.text}" {guess.probability:.0%}' for guess in each.guesses)
        lines += textwrap.wrap(
            each.sentence, WIDTH, initial_indent=f"{number:>3}. ", subsequent_indent=" " * 5
        )
        mark = " (correct)" if each.is_right else ""
        lines.append(f'{"":5}predictions: {shown}; masked word: "{each.word}"{mark}')
    return "\n".join(lines)


def _locations(run: Run) -> str:
    lines = [f"Checkpoint: {run.checkpoint}"] if run.checkpoint else []
    if run.scalars:
        lines.append(f"TensorBoard: {_command('tensorboard')} --logdir {log_folder(run.folder)}")
    return "\n".join(lines)


def _command(name: str) -> str:
    """Return the command that starts a program of this Python environment, even if it is not activated."""
    path = Path(sys.executable).with_name(name)
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else name
