"""The report as a single HTML file that needs no network and no other files."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from elc_bert.report.curves import TRAINING, draw_line_chart
from elc_bert.report.drawing import Chart, series_color
from elc_bert.report.facts import as_table, differing_settings, key_figures
from elc_bert.report.held_out import FillIn
from elc_bert.report.layers import layer_charts
from elc_bert.report.pairs import pair_charts
from elc_bert.report.runs import Run

TEMPLATE = "page.html.j2"
"""Jinja template in this folder."""
MAX_COLUMNS = 6
"""Maximum number of columns of cards with key figures; the rows are filled evenly."""


@dataclass(frozen=True)
class Section:
    """Charts under one heading."""

    title: str
    """The heading."""
    charts: list[Chart]
    """Charts in the order of the page."""
    missing: str
    """Message about missing charts; empty if there are none."""


def render_page(runs: Sequence[Run], now: datetime) -> str:
    """Return the HTML page.

    Args:
        runs: One run, or several runs to compare.
        now: Date and time shown on the page.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections, figures = _sections(runs), as_table([key_figures(run) for run in runs])
    return environment.get_template(TEMPLATE).render(
        runs=runs,
        created=now.strftime("%Y-%m-%d %H:%M %Z").strip(),
        colors=[series_color(number) for number in range(len(runs))],
        figures=figures,
        columns=math.ceil(len(figures) / math.ceil(len(figures) / MAX_COLUMNS)) if figures else 1,
        notes=[(run.name, note) for run in runs for note in run.notes],
        sections=sections,
        blanks=_blanks(runs),
        differing=differing_settings([run.config for run in runs]),
        configs=[json.dumps(run.config, indent=2, ensure_ascii=False) for run in runs],
        plotly=get_plotlyjs(),
        drawings=_as_script(sections),
    )


def _sections(runs: Sequence[Run]) -> list[Section]:
    curves = {spec.title: draw_line_chart(runs, spec) for spec in TRAINING}
    training = [chart for chart in curves.values() if chart is not None]
    # Loss scales exist only in fp16 and trust ratios only with LAMB, so these charts are not expected.
    expected = {"Training loss", "Held-out loss", "Accuracy", "Learning rate", "Gradient norm", "Throughput"}
    missing = [title.lower() for title, chart in curves.items() if chart is None and title in expected]
    layers, pairs = layer_charts(runs), pair_charts(runs)
    return [
        Section("Training", training, f"Not logged yet: {', '.join(missing)}." if missing else ""),
        Section("Layer weights", layers, "" if layers else "No layer weights logged yet."),
        Section(
            "Minimal pairs",
            pairs,
            ""
            if pairs
            else "No minimal pairs scored yet. Score a checkpoint with launch/evaluate.py pairs, or set "
            "elc_bert.evaluation.minimal_pairs to score a sample during training.",
        ),
    ]


def _blanks(runs: Sequence[Run]) -> list[tuple[str, str, list[FillIn | None]]]:
    """Return rows of sentence, masked word and each run's predictions.

    Runs with the same held-out text and tokenizer have the same sentences.
    """
    keys = {(each.sentence, each.word): None for run in runs for each in run.held_out.fill_ins}
    fill_ins_by_run = [{(each.sentence, each.word): each for each in run.held_out.fill_ins} for run in runs]
    return [(*key, [fill_ins.get(key) for fill_ins in fill_ins_by_run]) for key in keys]


def _as_script(sections: Sequence[Section]) -> str:
    """Return the figures in the order of the page, as JSON that is safe inside a script element."""
    figures: list[Any] = [json.loads(chart.figure.to_json()) for each in sections for chart in each.charts]
    return json.dumps(figures, separators=(",", ":")).replace("<", "\\u003c")
