"""Key figures of a run, and the settings in which runs differ."""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from elc_bert.evaluation.saved_results import PairScores
from elc_bert.report.pairs import logged_scores
from elc_bert.report.runs import Run
from elc_bert.utils.text import human


@dataclass(frozen=True)
class Fact:
    """A key figure, formatted for display."""

    label: str
    """Name of the figure."""
    value: str
    """The figure itself."""
    detail: str = ""
    """Explanation, such as the unit or the step."""


def key_figures(run: Run) -> list[Fact]:
    """Return the most important figures of a run, as far as they are known."""
    return [*_held_out(run), *_pairs(run), *_size_and_speed(run)]


def _held_out(run: Run) -> Iterator[Fact]:
    logged, accuracy = run.scalars.get("held_out/loss"), run.scalars.get("held_out/accuracy")
    if logged is not None and accuracy is not None:
        loss, share, when = logged.last, accuracy.last, f"step {int(logged.steps[-1]):,}"
        masks = run.logged_masks
    elif run.held_out.score is not None and run.checkpoint is not None:
        loss, share, when = run.held_out.score.loss, run.held_out.score.accuracy, run.checkpoint.name
        masks = run.held_out.masks
    else:
        return
    yield Fact("held-out loss", f"{loss:.3f}", f"nats per masked token, {when}; {masks}")
    # The limit avoids an overflow if the run has diverged.
    yield Fact("perplexity", human(math.exp(min(loss, 700.0))), "exponential of the held-out loss")
    yield Fact("held-out accuracy", f"{share:.1%}", "of the masked tokens predicted correctly")


def _pairs(run: Run) -> Iterator[Fact]:
    scored: Sequence[PairScores] = run.minimal_pairs or logged_scores(run)
    for each in scored:
        when = "" if each.step is None else f", step {each.step:,}"
        label = each.label if run.minimal_pairs else f"minimal pairs {each.label}"
        yield Fact(label, f"{each.overall:.1%}", f"accuracy on {each.how}{when}")


def _size_and_speed(run: Run) -> Iterator[Fact]:
    max_steps = run.setting("elc_bert.training.max_steps")
    is_known = isinstance(max_steps, int) and max_steps
    yield Fact("steps", f"{run.step:,}", f"of {max_steps:,}, {run.step / max_steps:.0%}" if is_known else "")
    if tokens := run.progress.get("tokens_seen"):
        yield Fact(
            "tokens seen", human(tokens), f"including repetitions, up to step {run.progress['step']:,}"
        )
    words = run.scalars.get("data/words")
    if words is not None:
        detail = f"including repetitions, up to step {int(words.steps[-1]):,}"
        yield Fact("words seen", human(words.last), detail)
    if run.parameters:
        shape = [run.setting(f"elc_bert.model.{key}") for key in ("num_hidden_layers", "hidden_size")]
        yield Fact("parameters", human(run.parameters), "{} layers x {}".format(*shape) if all(shape) else "")
    speeds = run.scalars.get("throughput/tokens_per_second")
    if speeds is not None:
        yield Fact("tokens per second", human(statistics.median(speeds.values.tolist())), "median")


def as_table(facts_by_run: Sequence[Sequence[Fact]]) -> list[tuple[str, list[Fact | None]]]:
    """Return the figures of several runs as rows of a label and the figure of each run, or None."""
    # Use the order of the run with the most figures, so that gaps in other runs do not change it.
    labels = {fact.label: None for facts in sorted(facts_by_run, key=len, reverse=True) for fact in facts}
    rows = []
    for label in labels:
        cells = [next((fact for fact in facts if fact.label == label), None) for facts in facts_by_run]
        rows.append((label, cells))
    return rows


def differing_settings(configs: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the settings in which configurations differ.

    Each row has the path of a key, such as ``elc_bert.model.variant``, and its value in each configuration
    as JSON; the value is empty where the key is absent.
    """
    leaves = [dict(_leaves(config)) for config in configs]
    keys = {key: None for each in leaves for key in each}
    rows = [(key, [each.get(key, "") for each in leaves]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _leaves(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path of each key and its value as JSON."""
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(inner, ensure_ascii=False)
