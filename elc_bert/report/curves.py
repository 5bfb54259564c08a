"""Charts of the scalars that runs have logged, over the training steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go

from elc_bert.report.drawing import GRAY, Chart, base_figure, escape_label, series_color
from elc_bert.report.runs import Run
from elc_bert.report.thinning import smooth, subsample, thin
from elc_bert.utils.event_files import Series

MAX_POINTS = 1000
"""Maximum number of points of a scalar in a chart, shared by the runs."""
MIN_POINTS = 200
"""Lower bound of the maximum number of points of a curve, for any number of runs."""
PLOT_HEIGHT = 270
"""Height of a chart in pixels."""
LEGEND_LINE = 18
"""Height of a line of the legend in pixels."""
SMOOTHED_FROM = 60
"""Minimum number of entries of a noisy curve that is smoothed."""
SMOOTHING_WINDOWS = 50
"""Number of entries of a curve divided by the width of its smoothing window."""
MARKED_UP_TO = 30
"""Number of entries up to which each entry has a marker."""
DASHES = ("solid", "dot", "dash")
"""Line styles that distinguish the scalars of a chart if the colors distinguish the runs."""


@dataclass(frozen=True)
class Curve:
    """A scalar in a chart."""

    scalar: str
    """TensorBoard tag of the scalar."""
    label: str
    """Name in the legend."""
    is_smoothed: bool = False
    """True if the scalar is noisy, so that a long curve is smoothed."""


@dataclass(frozen=True)
class LineChart:
    """Description of a chart of one or more scalars over the steps."""

    title: str
    """Heading of the chart."""
    unit: str
    """Unit or quantity of the vertical axis."""
    curves: tuple[Curve, ...]
    """Scalars to draw."""
    tick_format: str = ""
    """d3 format of the axis labels."""
    hover_format: str = ".4g"
    """d3 format of the values shown on hover."""
    has_baseline: bool = False
    """True to draw the unigram entropy too."""
    shows_lengths: bool = False
    """True to mark the steps at which the sequence length changes."""
    from_zero: bool = False
    """True if the axis begins at 0."""
    scale: str = "linear"
    """Type of the axis, ``linear`` or ``log``."""


TRAINING = (
    LineChart(
        "Training loss",
        "nats per masked token",
        (Curve("train/loss", "training", True),),
        shows_lengths=True,
    ),
    LineChart(
        "Held-out loss",
        "nats per masked token",
        (Curve("held_out/loss", "held out"),),
        has_baseline=True,
    ),
    LineChart(
        "Accuracy",
        "fraction of the masked tokens predicted correctly",
        (Curve("held_out/accuracy", "held out"), Curve("train/accuracy", "training", True)),
        tick_format=".0%",
        hover_format=".1%",
        shows_lengths=True,
    ),
    LineChart("Learning rate", "per step", (Curve("train/learning_rate", "learning rate"),)),
    LineChart("Gradient norm", "before clipping", (Curve("train/gradient_norm", "norm", True),)),
    LineChart(
        "Trust ratios of LAMB",
        "over the tensors with weight decay",
        tuple(Curve(f"lamb/trust_ratio_{name}", name, True) for name in ("median", "max", "min")),
        tick_format="~g",
        scale="log",
    ),
    LineChart(
        "Throughput",
        "tokens per second",
        (Curve("throughput/tokens_per_second", "tokens/s", True),),
        tick_format="~s",
        from_zero=True,
        shows_lengths=True,
    ),
    LineChart(
        "Device utilization",
        "model FLOPS as a fraction of the measured peak (MFU)",
        (Curve("throughput/mfu", "MFU", True),),
        tick_format=".0%",
        from_zero=True,
        hover_format=".1%",
        shows_lengths=True,
    ),
    LineChart(
        "Waiting for data",
        "fraction of the time",
        (Curve("throughput/data_wait", "waiting", True),),
        tick_format=".1~%",
        from_zero=True,
        hover_format=".2%",
    ),
    LineChart(
        "Peak memory",
        "GiB per device, or per CPU process",
        (Curve("memory/peak_gib", "memory"),),
        from_zero=True,
    ),
    LineChart("Loss scale", "fp16", (Curve("train/loss_scale", "scale"),), "~s", scale="log"),
)
"""Charts of the section on training, in the order of the page."""


def draw_line_chart(runs: Sequence[Run], spec: LineChart) -> Chart | None:
    """Draw a chart, or return None if none of its scalars was logged.

    Colors distinguish the scalars of a single run, or else the runs.
    """
    return draw_lines(runs, spec, [run.scalars for run in runs])


def draw_lines(runs: Sequence[Run], spec: LineChart, scalars: Sequence[Mapping[str, Series]]) -> Chart | None:
    """Draw a chart of scalars that are given for each run; see ``draw_line_chart``."""
    present = [curve for curve in spec.curves if any(curve.scalar in logged for logged in scalars)]
    if not present:
        return None
    traces, notes = _traces(runs, spec, present, scalars)
    figure = base_figure(traces, showlegend=len(runs) > 1 or len(present) > 1)
    figure.update_xaxes(range=[0, max(1, *(run.step for run in runs))])
    figure.update_yaxes(
        tickformat=spec.tick_format, type=spec.scale, rangemode="tozero" if spec.from_zero else "normal"
    )
    if spec.shows_lengths and len(runs) == 1:
        _mark_lengths(figure, runs[0])
    if spec.has_baseline:
        notes += _mark_baselines(figure, runs)
    if spec.scale == "log":
        figure.update_yaxes(dtick="D2")  # labels at 1, 2 and 5: more would overlap
    # In a narrow window, each run takes a line of the legend.
    height = PLOT_HEIGHT + (LEGEND_LINE * len(runs) if len(runs) > 1 else 0)
    return Chart(spec.title, spec.unit, figure, " ".join(notes), height)


def _traces(
    runs: Sequence[Run], spec: LineChart, present: list[Curve], scalars: Sequence[Mapping[str, Series]]
) -> tuple[list[go.Scatter], list[str]]:
    """Return the curves to draw, and notes for the caption."""
    traces: list[go.Scatter] = []
    most = max(MIN_POINTS, MAX_POINTS // len(runs))
    is_thinned = is_smoothed = False
    for run_number, run in enumerate(runs):
        of_run = scalars[run_number]
        logged = [number for number, curve in enumerate(present) if curve.scalar in of_run]
        for number in logged:
            curve, series = present[number], of_run[present[number].scalar]
            if len(runs) == 1:
                style = _Style(curve.label, series_color(number), group=number)
            else:
                # A run has one entry in the legend, regardless of its number of curves.
                dash = DASHES[number % len(DASHES)]
                style = _Style(
                    escape_label(run.name), series_color(run_number), dash, run_number, number == logged[0]
                )
            is_thinned |= len(series.steps) > most
            if curve.is_smoothed and len(series.steps) >= SMOOTHED_FROM:
                is_smoothed = True
                if len(runs) == 1:
                    faint = replace(style, in_legend=False, is_faint=True)
                    traces.append(_line(thin(series, most), faint, spec.hover_format))
                series = subsample(smooth(series, max(3, len(series.steps) // SMOOTHING_WINDOWS)), most)
            traces.append(_line(thin(series, most), style, spec.hover_format))
    notes = []
    if len(runs) > 1 and len(present) > 1:
        labels = (f"{dash}: {curve.label}" for dash, curve in zip(DASHES, present, strict=False))
        notes.append(f"{'; '.join(labels).capitalize()}.")
    if is_smoothed:
        average = f"moving average over 1/{SMOOTHING_WINDOWS} of the entries"
        notes.append(
            f"Bold: {average}; faint: all entries." if len(runs) == 1 else f"{average.capitalize()}."
        )
    if is_thinned:
        notes.append(
            f"Reduced to about {most} points per curve: minimum and maximum of each group of entries."
        )
    return traces, notes


@dataclass(frozen=True)
class _Style:
    """Appearance of a curve."""

    name: str
    """Name in the legend and on hover."""
    color: str
    """CSS color."""
    dash: str = "solid"
    """Line style."""
    group: int = 0
    """Group in the legend; the curves of a group are shown and hidden together."""
    in_legend: bool = True
    """True if the curve has an entry in the legend."""
    is_faint: bool = False
    """True if the curve is drawn thin, behind its moving average."""


def _line(series: Series, style: _Style, hover_format: str) -> go.Scatter:
    has_markers = len(series.steps) <= MARKED_UP_TO and not style.is_faint
    return go.Scatter(
        x=series.steps,
        y=series.values,
        name=style.name,
        legendgroup=str(style.group),
        showlegend=style.in_legend,
        mode="lines+markers" if has_markers else "lines",
        marker={"size": 5},
        cliponaxis=False,
        line={"color": style.color, "dash": style.dash, "width": 1 if style.is_faint else 2},
        opacity=0.4 if style.is_faint else 1.0,
        hovertemplate=None if style.is_faint else f"%{{y:{hover_format}}}",
        hoverinfo="skip" if style.is_faint else None,
    )


def _mark_lengths(figure: go.Figure, run: Run) -> None:
    """Draw a dotted line at each step at which the sequence length changes."""
    series = run.scalars.get("train/sequence_length")
    if series is None:
        return
    for before, after, step in zip(series.values, series.values[1:], series.steps[1:], strict=False):
        if before != after:
            figure.add_vline(
                float(step),
                line={"color": GRAY, "width": 1, "dash": "dot"},
                annotation={
                    "text": f"sequence length {after:.0f}",
                    "font": {"size": 11},
                    "yanchor": "bottom",
                },
                annotation_position="bottom left",
            )


def _mark_baselines(figure: go.Figure, runs: Sequence[Run]) -> list[str]:
    """Draw a dashed line at the unigram entropy of each held-out text, and return notes for the caption."""
    masks = list(dict.fromkeys(run.logged_masks for run in runs if "held_out/loss" in run.scalars))
    about = [f"{each[0].upper()}{each[1:]}." for each in masks]
    if len(masks) > 1:
        about.append("These differ, so the losses of these runs cannot be compared.")
    entropies = {
        round(run.held_out.baseline.entropy, 3): run.name for run in runs if run.held_out.baseline is not None
    }
    if not entropies:
        return [*about, "The unigram entropy is missing, because the held-out text cannot be read."]
    for entropy, name in entropies.items():
        suffix = f", {escape_label(name)}" if len(entropies) > 1 else ""
        figure.add_hline(
            entropy,
            line={"color": GRAY, "width": 1.5, "dash": "dash"},
            annotation={"text": f"unigram entropy {entropy:.2f}{suffix}", "font": {"size": 11}},
            annotation_position="top right",
        )
    note = "Dashed: unigram entropy, the lowest loss that is possible without context."
    if len(entropies) > 1:
        note += " It differs between these runs, so their losses refer to different texts or vocabularies."
    return [*about, note]
