"""Charts of the accuracy on minimal pairs: by phenomenon, and during training."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from elc_bert.evaluation.pair_settings import OVERALL, PAIRS, PairSettings, describe, logged_pairs
from elc_bert.evaluation.saved_results import PairScores
from elc_bert.report.curves import Curve, LineChart, draw_lines
from elc_bert.report.drawing import AXIS, BASE, GRAY, Chart, base_figure, escape_label, series_color
from elc_bert.report.runs import Run
from elc_bert.report.thinning import subsample
from elc_bert.utils.event_files import Series

FROM_TRAINING = "scored during training"
"""Name of the set of pairs that runs score while they train."""
MAX_POINTS = 200
"""Maximum number of points of the curve of a phenomenon."""


def pair_charts(runs: Sequence[Run]) -> list[Chart]:
    """Return charts of accuracy during training, and one for each set of pairs and settings that was scored.

    If no set was scored, the second kind shows the pairs that were scored during training.
    """
    logged = [_logged(run) for run in runs]
    settings = list(dict.fromkeys(each for of_run in logged for each in of_run))
    charts = [_during_training(runs, each, [of_run.get(each, {}) for of_run in logged]) for each in settings]
    saved = {scores.label: None for run in runs for scores in run.minimal_pairs}
    shown = [list(run.minimal_pairs) if saved else logged_scores(run) for run in runs]
    for label in dict.fromkeys(scores.label for of_run in shown for scores in of_run):
        scores_by_run = [next((each for each in of_run if each.label == label), None) for of_run in shown]
        charts.append(_bars(runs, scores_by_run, label))
    return charts


def logged_scores(run: Run) -> list[PairScores]:
    """Return the newest scores that a run has logged during training, for each setting."""
    scores = []
    for settings, values in _logged(run).items():
        overall, pairs = values[OVERALL], values.get(PAIRS)
        phenomena = {name: series.last for name, series in _phenomena(values).items()}
        count = None if pairs is None else int(pairs.last)
        step = int(overall.steps[-1])
        scores.append(PairScores(FROM_TRAINING, step, settings, count, overall.last, phenomena, ()))
    return scores


def _logged(run: Run) -> dict[PairSettings, dict[str, Series]]:
    evaluation = run.setting("elc_bert.evaluation")
    found = logged_pairs(run.scalars, evaluation if isinstance(evaluation, dict) else None)
    return {
        settings: {name: _joined(parts) for name, parts in values.items()}
        for settings, values in found.items()
    }


def _joined(parts: Sequence[Series]) -> Series:
    """Return a curve and its continuation, which replaces later steps of the first part, as one curve."""
    *before, last = parts
    if not before:
        return last
    kept = before[0].steps < last.steps[0]
    return Series(
        np.concatenate([before[0].steps[kept], last.steps]),
        np.concatenate([before[0].values[kept], last.values]),
    )


def _phenomena(values: Mapping[str, Series]) -> dict[str, Series]:
    """Return the accuracy on each phenomenon."""
    return {name: series for name, series in values.items() if name not in (OVERALL, PAIRS)}


def _during_training(
    runs: Sequence[Run], settings: PairSettings, scalars: Sequence[Mapping[str, Series]]
) -> Chart:
    counts = sorted({int(values[PAIRS].last) if PAIRS in values else -1 for values in scalars if values})
    how = "; ".join(describe(settings, count if count >= 0 else None) for count in counts)
    spec = LineChart(
        "Minimal pairs during training",
        f"mean accuracy over the paradigms: {how}",
        (Curve(OVERALL, "overall"),),
        tick_format=".0%",
        hover_format=".1%",
    )
    chart = draw_lines(runs, spec, scalars)
    assert chart is not None
    notes = [chart.caption, "Dashed: chance."]
    if len(runs) == 1:
        # Draw the phenomena behind the overall curve, so that it stands out.
        faint = [_faint(name, subsample(s, MAX_POINTS)) for name, s in _phenomena(scalars[0]).items()]
        chart.figure.add_traces(faint)
        chart.figure.data = [*chart.figure.data[1:], chart.figure.data[0]]
        chart.figure.update_layout(hovermode="closest")
        notes.append("Bold: overall; faint: single phenomena (hover over a line for its name).")
    chart.figure.add_hline(0.5, line={"color": GRAY, "width": 1.5, "dash": "dash"})
    return Chart(chart.title, chart.unit, chart.figure, " ".join(filter(None, notes)), 320)


def _faint(name: str, series: Series) -> go.Scatter:
    return go.Scatter(
        x=series.steps,
        y=series.values,
        mode="lines",
        line={"color": GRAY, "width": 1},
        opacity=0.7,
        showlegend=False,
        hovertemplate=f"{escape_label(_words(name))}, step %{{x:,}}: %{{y:.1%}}<extra></extra>",
    )


def _bars(runs: Sequence[Run], scores_by_run: Sequence[PairScores | None], name: str) -> Chart:
    scored = [each for each in scores_by_run if each is not None]
    best = {key: max(each.phenomena.get(key, 0.0) for each in scored) for s in scored for key in s.phenomena}
    order = [*sorted(best, key=lambda key: best[key]), "overall"]
    traces: list[go.Bar | go.Scatter] = []
    # Plotly draws bars from the bottom up.
    for number in reversed(range(len(runs))):
        if (scores := scores_by_run[number]) is not None:
            traces.append(_bars_of_run(runs[number].name, scores, order, number, len(runs) == 1))
            if len(runs) == 1 and scores.paradigms:
                traces.append(_dots(scores))
    figure = base_figure(
        traces,
        showlegend=len(runs) > 1,
        hovermode="closest",
        barmode="group",
        bargap=0.25,
        xaxis={**AXIS, "range": [0, 1], "tickformat": ".0%", "dtick": 0.25},
        margin={**BASE["margin"], "r": 26},
        yaxis={**AXIS, "type": "category", "showgrid": False, "tickfont": {"size": 11}},
    )
    figure.update_layout(legend={"traceorder": "reversed"})
    figure.add_vline(0.5, line={"color": GRAY, "width": 1.5, "dash": "dash"})
    height = 70 + (26 if len(runs) > 1 else 0) + len(order) * (14 + 9 * len(scored))
    return Chart(
        f"Minimal pairs: {name}", "accuracy by phenomenon", figure, _caption(scored, len(runs)), height
    )


def _caption(scored: Sequence[PairScores], runs: int) -> str:
    parts = ["Dashed: chance."]
    if runs == 1 and scored[0].paradigms:
        parts.append("Dots: paradigms.")
    parts += sorted({f"{each.how[0].upper()}{each.how[1:]}." for each in scored})
    steps = sorted({each.step for each in scored if each.step is not None})
    if steps:
        parts.append(f"After step {', '.join(f'{step:,}' for step in steps)}.")
    return " ".join(parts)


def _bars_of_run(name: str, scores: PairScores, order: list[str], number: int, is_alone: bool) -> go.Bar:
    values = {**scores.phenomena, "overall": scores.overall}
    return go.Bar(
        x=[values.get(key) for key in order],
        y=[escape_label(_words(key)) for key in order],
        orientation="h",
        name=escape_label(name),
        marker={"color": series_color(number)},
        text=[f"{values[key]:.0%}" if key in values else "" for key in order] if is_alone else None,
        textposition="inside",
        insidetextanchor="start",
        textfont={"color": "white", "size": 10},
        hovertemplate="%{y}: %{x:.1%}",
    )


def _dots(scores: PairScores) -> go.Scatter:
    return go.Scatter(
        x=[each.accuracy for each in scores.paradigms],
        y=[escape_label(_words(each.phenomenon)) for each in scores.paradigms],
        mode="markers",
        showlegend=False,
        marker={"size": 5, "color": "#e69f00", "line": {"width": 0.5, "color": "#222222"}},
        customdata=[escape_label(_words(each.name)) for each in scores.paradigms],
        hovertemplate="%{customdata}: %{x:.1%}<extra></extra>",
    )


def _words(name: str) -> str:
    return name.replace("_", " ")
