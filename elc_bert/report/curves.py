"""Curves of what runs have logged over their steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go

from elc_bert.report.drawing import GREY, Chart, base_figure, colour, plain
from elc_bert.report.runs import Run
from elc_bert.report.thinning import smooth, stride, thin
from elc_bert.utils.event_files import Series

MOST_POINTS = 1000
"""Of a chart, roughly, for each of its curves."""
FEWEST_POINTS = 200
"""Of a curve, however many runs there are."""
PLOT_HEIGHT = 270
LEGEND_LINE = 18
"""Pixels."""
SMOOTHED_FROM = 60
"""Entries from which on a curve that jumps has a smooth one in front of it."""
WIDTHS = 50
"""A smooth curve is the mean of this fraction of the entries."""
MARKED_UP_TO = 30
"""Entries up to which each has a marker."""
DASHES = ("solid", "dot", "dash")


@dataclass(frozen=True)
class Curve:
    """A scalar in a chart."""

    scalar: str
    label: str
    is_smoothed: bool = False


@dataclass(frozen=True)
class Lines:
    """A chart: one or more scalars over the steps."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    tick_format: str = ""
    hover_format: str = ".4g"
    has_baseline: bool = False
    """Whether the loss of guessing without context is drawn too."""
    shows_lengths: bool = False
    """Whether it changes where the sequences become longer."""
    from_zero: bool = False
    """Whether the axis begins at 0, so that lengths may be compared."""
    scale: str = "linear"


TRAINING = (
    Lines(
        "Training loss",
        "nats per masked token",
        (Curve("train/loss", "training", True),),
        shows_lengths=True,
    ),
    Lines(
        "Held-out loss",
        "nats per masked token",
        (Curve("held_out/loss", "held out"),),
        has_baseline=True,
    ),
    Lines(
        "Accuracy",
        "share of the masked tokens that the best guess met",
        (Curve("held_out/accuracy", "held out"), Curve("train/accuracy", "training", True)),
        tick_format=".0%",
        hover_format=".1%",
        shows_lengths=True,
    ),
    Lines("Learning rate", "per step", (Curve("train/learning_rate", "learning rate"),)),
    Lines("Gradient norm", "before clipping", (Curve("train/gradient_norm", "norm", True),)),
    Lines(
        "Trust ratios of LAMB",
        "over the tensors that decay",
        tuple(Curve(f"lamb/trust_ratio_{name}", name, True) for name in ("median", "max", "min")),
        tick_format="~g",
        scale="log",
    ),
    Lines(
        "Throughput",
        "tokens per second",
        (Curve("throughput/tokens_per_second", "tokens/s", True),),
        tick_format="~s",
        from_zero=True,
        shows_lengths=True,
    ),
    Lines(
        "Use of the device",
        "share of its arithmetic peak (MFU)",
        (Curve("throughput/mfu", "MFU", True),),
        tick_format=".0%",
        from_zero=True,
        hover_format=".1%",
        shows_lengths=True,
    ),
    Lines(
        "Waiting for data",
        "share of the time",
        (Curve("throughput/data_wait", "waiting", True),),
        tick_format=".1~%",
        from_zero=True,
        hover_format=".2%",
    ),
    Lines(
        "Peak memory",
        "GiB per device, or per CPU process",
        (Curve("memory/peak_gib", "memory"),),
        from_zero=True,
    ),
    Lines("Loss scale", "of fp16", (Curve("train/loss_scale", "scale"),), "~s", scale="log"),
)
OVERALL = Lines(
    "Minimal pairs while training",
    "accuracy, mean over the paradigms of a sample",
    (Curve("minimal_pairs/overall", "overall"),),
    tick_format=".0%",
    hover_format=".1%",
)


def line_chart(runs: Sequence[Run], lines: Lines) -> Chart | None:
    """One colour for each curve of a run, or for each of several runs; None where nothing was logged."""
    present = [curve for curve in lines.curves if any(curve.scalar in run.scalars for run in runs)]
    if not present:
        return None
    traces, notes = _traces(runs, lines, present)
    figure = base_figure(traces, showlegend=len(runs) > 1 or len(present) > 1)
    figure.update_xaxes(range=[0, max(1, *(run.step for run in runs))])
    figure.update_yaxes(
        tickformat=lines.tick_format, type=lines.scale, rangemode="tozero" if lines.from_zero else "normal"
    )
    if lines.shows_lengths and len(runs) == 1:
        _mark_lengths(figure, runs[0])
    if lines.has_baseline:
        notes += _mark_baselines(figure, runs)
    if lines.scale == "log":
        figure.update_yaxes(dtick="D2")  # 1, 2, 5: more would not fit beside each other
    # In a narrow window each run has a line of the legend.
    height = PLOT_HEIGHT + (LEGEND_LINE * len(runs) if len(runs) > 1 else 0)
    return Chart(lines.title, lines.unit, figure, " ".join(notes), height)


def _traces(runs: Sequence[Run], lines: Lines, present: list[Curve]) -> tuple[list[go.Scatter], list[str]]:
    """Lines to draw, and what is to be said of them."""
    traces: list[go.Scatter] = []
    most = max(FEWEST_POINTS, MOST_POINTS // len(runs))
    is_thinned = is_smoothed = False
    for run_number, run in enumerate(runs):
        own = [number for number, curve in enumerate(present) if curve.scalar in run.scalars]
        for number in own:
            curve, series = present[number], run.scalars[present[number].scalar]
            if len(runs) == 1:
                style = _Style(curve.label, colour(number), group=number)
            else:
                # A run is one entry of the legend, whatever its curves.
                dash = DASHES[number % len(DASHES)]
                style = _Style(plain(run.name), colour(run_number), dash, run_number, number == own[0])
            is_thinned |= len(series.steps) > most
            if curve.is_smoothed and len(series.steps) >= SMOOTHED_FROM:
                is_smoothed = True
                if len(runs) == 1:
                    faint = replace(style, in_legend=False, is_faint=True)
                    traces.append(_line(thin(series, most), faint, lines.hover_format))
                series = stride(smooth(series, max(3, len(series.steps) // WIDTHS)), most)
            traces.append(_line(thin(series, most), style, lines.hover_format))
    notes = []
    if len(runs) > 1 and len(present) > 1:
        named = (f"{dash}: {curve.label}" for dash, curve in zip(DASHES, present, strict=False))
        notes.append(f"{'; '.join(named).capitalize()}.")
    if is_smoothed:
        others = "; faint: all of them" if len(runs) == 1 else ""
        notes.append(
            f"{'Strong: the' if others else 'The'} mean of 1/{WIDTHS} of the entries around each{others}."
        )
    if is_thinned:
        notes.append(f"Thinned to about {most} points a curve: the lowest and the highest of equal groups.")
    return traces, notes


@dataclass(frozen=True)
class _Style:
    """How a line looks."""

    name: str
    colour: str
    dash: str = "solid"
    group: int = 0
    """In the legend, where a group is shown and hidden as one."""
    in_legend: bool = True
    is_faint: bool = False


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
        line={"color": style.colour, "dash": style.dash, "width": 1 if style.is_faint else 2},
        opacity=0.4 if style.is_faint else 1.0,
        hovertemplate=None if style.is_faint else f"%{{y:{hover_format}}}",
        hoverinfo="skip" if style.is_faint else None,
    )


def _mark_lengths(figure: go.Figure, run: Run) -> None:
    """A dotted line where the sequences become longer."""
    series = run.scalars.get("train/sequence_length")
    if series is None:
        return
    for before, after, step in zip(series.values, series.values[1:], series.steps[1:], strict=False):
        if before != after:
            figure.add_vline(
                float(step),
                line={"color": GREY, "width": 1, "dash": "dot"},
                annotation={"text": f"sequences of {after:.0f}", "font": {"size": 11}, "yanchor": "bottom"},
                annotation_position="bottom left",
            )


def _mark_baselines(figure: go.Figure, runs: Sequence[Run]) -> list[str]:
    """A dashed line for each loss of guessing without context; returns what is to be said of it."""
    entropies = {
        round(run.learned.baseline.entropy, 3): run.name for run in runs if run.learned.baseline is not None
    }
    if not entropies:
        return ["The loss of guessing without context is not known: the held-out text cannot be read."]
    for entropy, name in entropies.items():
        of = f", {plain(name)}" if len(entropies) > 1 else ""
        figure.add_hline(
            entropy,
            line={"color": GREY, "width": 1.5, "dash": "dash"},
            annotation={"text": f"without context {entropy:.2f}{of}", "font": {"size": 11}},
            annotation_position="top right",
        )
    note = "Dashed: the best loss that one guess for every place can have (unigram entropy)."
    if len(entropies) > 1:
        note += " It differs between these runs, so their losses are of different texts or tokens."
    return [note]
