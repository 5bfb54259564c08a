"""Charts of minimal pairs: by phenomenon, and while a run trained."""

from collections.abc import Sequence

import plotly.graph_objects as go

from elc_bert.report.curves import OVERALL, line_chart
from elc_bert.report.drawing import AXIS, BASE, GREY, Chart, base_figure, colour, plain
from elc_bert.report.runs import PairScores, Run
from elc_bert.report.thinning import stride
from elc_bert.utils.event_files import Series

LOGGED = "minimal_pairs/"
FROM_TRAINING = "sample scored while training"
MOST_POINTS = 200
"""Of the curve of a phenomenon."""


def pair_charts(runs: Sequence[Run]) -> list[Chart]:
    """How accuracy rose while the runs trained, then a chart for each set that was scored, or the sample."""
    charts = [chart for chart in [_while_training(runs)] if chart is not None]
    sets = {scores.name: None for run in runs for scores in run.minimal_pairs}
    for name in sets:
        of_runs = [next((each for each in run.minimal_pairs if each.name == name), None) for run in runs]
        charts.append(_bars(runs, of_runs, name))
    if not sets and (of_runs := [logged_scores(run) for run in runs]) and any(of_runs):
        charts.append(_bars(runs, of_runs, FROM_TRAINING))
    return charts


def logged_scores(run: Run) -> PairScores | None:
    """The newest of what a run logged while it trained; None if it did not."""
    overall = run.scalars.get(f"{LOGGED}overall")
    if overall is None:
        return None
    phenomena = {name: series.last for name, series in logged_phenomena(run).items()}
    return PairScores(FROM_TRAINING, int(overall.steps[-1]), overall.last, phenomena, (), "")


def logged_phenomena(run: Run) -> dict[str, Series]:
    """Accuracy while training of each phenomenon, by name."""
    return {
        name.removeprefix(LOGGED): series
        for name, series in sorted(run.scalars.items())
        if name.startswith(LOGGED) and name != f"{LOGGED}overall"
    }


def _while_training(runs: Sequence[Run]) -> Chart | None:
    chart = line_chart(runs, OVERALL)
    if chart is None:
        return None
    notes = [chart.caption, "Dashed: guessing."]
    if len(runs) == 1:
        # Behind the overall curve, so that it is seen first.
        faint = [_faint(name, stride(s, MOST_POINTS)) for name, s in logged_phenomena(runs[0]).items()]
        chart.figure.add_traces(faint)
        chart.figure.data = [*chart.figure.data[1:], chart.figure.data[0]]
        chart.figure.update_layout(hovermode="closest")
        notes.append("Strong: overall; faint: each phenomenon (point at a line for its name).")
    chart.figure.add_hline(0.5, line={"color": GREY, "width": 1.5, "dash": "dash"})
    return Chart(chart.title, chart.unit, chart.figure, " ".join(filter(None, notes)), 320)


def _faint(name: str, series: Series) -> go.Scatter:
    return go.Scatter(
        x=series.steps,
        y=series.values,
        mode="lines",
        line={"color": GREY, "width": 1},
        opacity=0.7,
        showlegend=False,
        hovertemplate=f"{plain(_words(name))}, step %{{x:,}}: %{{y:.1%}}<extra></extra>",
    )


def _bars(runs: Sequence[Run], of_runs: Sequence[PairScores | None], name: str) -> Chart:
    scored = [each for each in of_runs if each is not None]
    best = {key: max(each.phenomena.get(key, 0.0) for each in scored) for s in scored for key in s.phenomena}
    order = [*sorted(best, key=lambda key: best[key]), "overall"]
    traces: list[go.Bar | go.Scatter] = []
    # Plotly draws bars from below.
    for number in reversed(range(len(runs))):
        if (scores := of_runs[number]) is not None:
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
    figure.add_vline(0.5, line={"color": GREY, "width": 1.5, "dash": "dash"})
    height = 70 + (26 if len(runs) > 1 else 0) + len(order) * (14 + 9 * len(scored))
    return Chart(f"Minimal pairs: {name}", "accuracy by phenomenon", figure, _said(scored, len(runs)), height)


def _said(scored: Sequence[PairScores], runs: int) -> str:
    parts = ["Dashed: guessing."]
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
        y=[plain(_words(key)) for key in order],
        orientation="h",
        name=plain(name),
        marker={"color": colour(number)},
        text=[f"{values[key]:.0%}" if key in values else "" for key in order] if is_alone else None,
        textposition="inside",
        insidetextanchor="start",
        textfont={"color": "white", "size": 10},
        hovertemplate="%{y}: %{x:.1%}",
    )


def _dots(scores: PairScores) -> go.Scatter:
    return go.Scatter(
        x=[each.accuracy for each in scores.paradigms],
        y=[plain(_words(each.phenomenon)) for each in scores.paradigms],
        mode="markers",
        showlegend=False,
        marker={"size": 5, "color": "#e69f00", "line": {"width": 0.5, "color": "#222222"}},
        customdata=[plain(_words(each.name)) for each in scores.paradigms],
        hovertemplate="%{customdata}: %{x:.1%}<extra></extra>",
    )


def _words(name: str) -> str:
    return name.replace("_", " ")
