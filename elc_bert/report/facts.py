"""A run in a few figures, and what sets runs apart."""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from elc_bert.report.pairs import logged_scores
from elc_bert.report.runs import PairScores, Run
from elc_bert.utils.text import human


@dataclass(frozen=True)
class Fact:
    """One figure, as a person reads it."""

    label: str
    value: str
    detail: str = ""
    """What it is, or when it was measured."""


def key_figures(run: Run) -> list[Fact]:
    """The most telling figures, those that are known."""
    return [*_held_out(run), *_pairs(run), *_size_and_speed(run)]


def _held_out(run: Run) -> Iterator[Fact]:
    logged, accuracy = run.scalars.get("held_out/loss"), run.scalars.get("held_out/accuracy")
    if logged is not None and accuracy is not None:
        loss, share, when = logged.last, accuracy.last, f"step {int(logged.steps[-1]):,}"
    elif run.learned.score is not None and run.checkpoint is not None:
        loss, share, when = run.learned.score.loss, run.learned.score.accuracy, run.checkpoint.name
    else:
        return
    yield Fact("held-out loss", f"{loss:.3f}", f"nats per masked token, {when}")
    # A loss that is not finite, or was never near it, must not end the report.
    yield Fact(
        "as unsure as among", human(math.exp(min(loss, 700.0))), "equally likely tokens: e to that loss"
    )
    yield Fact("held-out accuracy", f"{share:.1%}", "of the masked tokens guessed right")


def _pairs(run: Run) -> Iterator[Fact]:
    logged = logged_scores(run)
    scored: Sequence[PairScores] = run.minimal_pairs or ([logged] if logged else [])
    for each in scored:
        when = "" if each.step is None else f", step {each.step:,}"
        label = "minimal pairs" if each is logged else each.name
        detail = "a sample, scored while training" if each is logged else "of minimal pairs right"
        yield Fact(label, f"{each.overall:.1%}", f"{detail}{when}")


def _size_and_speed(run: Run) -> Iterator[Fact]:
    most = run.setting("elc_bert.training.max_steps")
    of = f"of {most:,}, {run.step / most:.0%}" if isinstance(most, int) and most else ""
    yield Fact("steps", f"{run.step:,}", of)
    if tokens := run.progress.get("tokens_seen"):
        yield Fact("tokens seen", human(tokens), f"repeats included, up to step {run.progress['step']:,}")
    words = run.scalars.get("data/words")
    if words is not None:
        detail = f"repeats included, up to step {int(words.steps[-1]):,}"
        yield Fact("words seen", human(words.last), detail)
    if run.parameters:
        shape = [run.setting(f"elc_bert.model.{key}") for key in ("num_hidden_layers", "hidden_size")]
        yield Fact("parameters", human(run.parameters), "{} layers x {}".format(*shape) if all(shape) else "")
    speeds = run.scalars.get("throughput/tokens_per_second")
    if speeds is not None:
        yield Fact("tokens per second", human(statistics.median(speeds.values.tolist())), "median")


def as_table(of_runs: Sequence[Sequence[Fact]]) -> list[tuple[str, list[Fact | None]]]:
    """Figures of several runs as rows: the label, and what each run has under it."""
    # In the order of the run that has most, so that the others' gaps do not move a figure to the end.
    labels = {fact.label: None for facts in sorted(of_runs, key=len, reverse=True) for fact in facts}
    rows = []
    for label in labels:
        cells = [next((fact for fact in facts if fact.label == label), None) for facts in of_runs]
        rows.append((label, cells))
    return rows


def differing_settings(configs: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Keys in which configurations differ: ``key.path`` and each one's value as JSON, empty where absent."""
    leaves = [dict(_leaves(config)) for config in configs]
    keys = {key: None for each in leaves for key in each}
    rows = [(key, [each.get(key, "") for each in leaves]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _leaves(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(inner, ensure_ascii=False)
