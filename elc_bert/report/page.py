"""The report as one HTML file that needs nothing else: no network, no other file."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from elc_bert.report.curves import TRAINING, line_chart
from elc_bert.report.drawing import Chart, colour
from elc_bert.report.facts import as_table, differing_settings, key_figures
from elc_bert.report.layers import layer_charts
from elc_bert.report.learned import FillIn
from elc_bert.report.pairs import pair_charts
from elc_bert.report.runs import Run

TEMPLATE = "page.html.j2"
MOST_COLUMNS = 6
"""Of cards with key figures; the rows are filled evenly."""


@dataclass(frozen=True)
class Section:
    """Charts under one heading."""

    title: str
    charts: list[Chart]
    missing: str
    """What to say of charts that are not there; empty if all are."""


def page_of(runs: Sequence[Run], now: datetime) -> str:
    """The page.

    Args:
        runs: one, or several to compare.
        now: the date that it bears.
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
        made=now.strftime("%Y-%m-%d %H:%M %Z").strip(),
        colours=[colour(number) for number in range(len(runs))],
        figures=figures,
        columns=math.ceil(len(figures) / math.ceil(len(figures) / MOST_COLUMNS)) if figures else 1,
        notes=[(run.name, note) for run in runs for note in run.notes],
        sections=sections,
        blanks=_blanks(runs),
        differing=differing_settings([run.config for run in runs]),
        configs=[json.dumps(run.config, indent=2, ensure_ascii=False) for run in runs],
        plotly=get_plotlyjs(),
        drawings=_as_script(sections),
    )


def _sections(runs: Sequence[Run]) -> list[Section]:
    curves = {lines.title: line_chart(runs, lines) for lines in TRAINING}
    training = [chart for chart in curves.values() if chart is not None]
    # A loss scale is only there with fp16, and trust ratios only with LAMB: nobody misses them elsewhere.
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
            else "None scored: launch/evaluate.py pairs does it for a checkpoint, "
            "elc_bert.evaluation.minimal_pairs while training.",
        ),
    ]


def _blanks(runs: Sequence[Run]) -> list[tuple[str, str, list[FillIn | None]]]:
    """Sentence, word, and what each run would put there; runs on the same text share their sentences."""
    keys = {(each.sentence, each.word): None for run in runs for each in run.learned.fill_ins}
    of_runs = [{(each.sentence, each.word): each for each in run.learned.fill_ins} for run in runs]
    return [(*key, [fill_ins.get(key) for fill_ins in of_runs]) for key in keys]


def _as_script(sections: Sequence[Section]) -> str:
    """The figures as JSON that may stand within a script element, in the order of the page."""
    figures: list[Any] = [json.loads(chart.figure.to_json()) for each in sections for chart in each.charts]
    return json.dumps(figures, separators=(",", ":")).replace("<", "\\u003c")
