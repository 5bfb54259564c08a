"""Charts of the accuracy on minimal pairs: by phenomenon, and during training."""

from collections.abc import Sequence

import plotly.graph_objects as go

from elc_bert.report.curves import OVERALL, draw_line_chart
from elc_bert.report.drawing import AXIS, BASE, GRAY, Chart, base_figure, escape_label, series_color
from elc_bert.report.runs import PairScores, Run
from elc_bert.report.thinning import subsample
from elc_bert.utils.event_files import Series

LOGGED = "minimal_pairs/"
"""Prefix of the TensorBoard tags."""
FROM_TRAINING = "sample scored during training"
"""Name of the set of pairs that runs score while they train."""
MAX_POINTS = 200
"""Maximum number of points of the curve of a phenomenon."""


def pair_charts(runs: Sequence[Run]) -> list[Chart]:
    """Return a chart of accuracy during training, and one for each set of pairs that was scored.

    If no set was scored, the second kind shows the sample that was scored during training.
    """
    charts = [chart for chart in [_during_training(runs)] if chart is not None]
    sets = {scores.name: None for run in runs for scores in run.minimal_pairs}
    for name in sets:
        scores_by_run = [
            next((each for each in run.minimal_pairs if each.name == name), None) for run in runs
        ]
        charts.append(_bars(runs, scores_by_run, name))
    if not sets and (scores_by_run := [logged_scores(run) for run in runs]) and any(scores_by_run):
        charts.append(_bars(runs, scores_by_run, FROM_TRAINING))
    return charts


def logged_scores(run: Run) -> PairScores | None:
    """Return the newest scores that a run has logged during training, or None."""
    overall = run.scalars.get(f"{LOGGED}overall")
    if overall is None:
        return None
    phenomena = {name: series.last for name, series in logged_phenomena(run).items()}
    return PairScores(FROM_TRAINING, int(overall.steps[-1]), overall.last, phenomena, (), "")


def logged_phenomena(run: Run) -> dict[str, Series]:
    """Return the accuracy on each phenomenon that was logged during training, by name."""
    return {
        name.removeprefix(LOGGED): series
        for name, series in sorted(run.scalars.items())
        if name.startswith(LOGGED) and name != f"{LOGGED}overall"
    }


def _during_training(runs: Sequence[Run]) -> Chart | None:
    chart = draw_line_chart(runs, OVERALL)
    if chart is None:
        return None
    notes = [chart.caption, "Dashed: chance."]
    if len(runs) == 1:
        # Draw the phenomena behind the overall curve, so that it stands out.
        faint = [_faint(name, subsample(s, MAX_POINTS)) for name, s in logged_phenomena(runs[0]).items()]
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
    parts += sorted({f"{each.how.capitalize()}." for each in scored if each.how})
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
