"""Heat maps of the layer weights.

A layer's sources are the embedding (source 0) and the layers before it; its weights sum to 1.
"""

import re
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from elc_bert.report.drawing import AXIS, BASE, STEPS, Chart, base_figure
from elc_bert.report.runs import Run
from elc_bert.utils.event_files import Series

SHARE = re.compile(r"layer_weights/(?:layer_)?(?P<layer>\d+|output)_from_(?P<source>\d+)")
"""TensorBoard tags of the layer weights."""
NUMBERED_UP_TO = 12
"""Number of layers up to which a cell has room for its value."""
NAMED_UP_TO = 8
"""Number of layers up to which a row of the chart over time has room for the name of its source."""
MAX_COLUMNS = 120
"""Maximum number of steps in the chart over time."""
MAX_HEIGHT = 900
"""Maximum height of the chart of current weights in pixels."""
STRIPS_HEIGHT = 440
"""Height in pixels up to which each source in the chart over time gets a full row."""
LAYER_NAME_HEIGHT = 18
"""Height of the name of a layer in pixels."""
SOURCE_NAME_HEIGHT = 14
"""Height of the name of a source in pixels."""
MARGIN = {"l": 44, "r": 12, "t": 36, "b": 34}
"""Margins of the heat maps in pixels."""
COLOR_AXIS = {
    "cmin": 0.0,
    "cmax": 1.0,
    "colorscale": "Cividis",
    "colorbar": {
        "orientation": "h",
        "x": 0.5,
        "yref": "container",
        "y": 1.0,
        "yanchor": "top",
        "ypad": 0,
        "thickness": 8,
        "outlinewidth": 0,
        "tickformat": ".0%",
    },
}
"""Color scale shared by the heat maps."""


def layer_charts(runs: Sequence[Run]) -> list[Chart]:
    """Return, for each run that logged them, charts of the current layer weights and of their history."""
    charts: list[Chart] = []
    shares_by_run = [layer_shares(run) for run in runs]
    # The weight of a single source is always 1; without it, the color scale resolves the others better.
    learned = [sources for shares in shares_by_run for sources in shares.values() if len(sources) > 1]
    largest = max((float(series.values.max()) for sources in learned for series in sources), default=1.0)
    for run, shares in zip(runs, shares_by_run, strict=True):
        if shares:
            suffix = f", {run.name}" if len(runs) > 1 else ""
            charts.append(_current(shares, suffix))
            charts += _over_time(shares, suffix, largest)
    return charts


def layer_shares(run: Run) -> dict[str, list[Series]]:
    """Return the weights of each layer's sources, by layer name (``1``, ``2``, ... and ``output``)."""
    found: dict[str, dict[int, Series]] = {}
    for name, series in run.scalars.items():
        if match := SHARE.fullmatch(name):
            layer = match["layer"].lstrip("0")
            found.setdefault(layer, {})[int(match["source"])] = series
    order = sorted(found, key=lambda layer: (layer == "output", layer.zfill(6)))
    return {layer: [found[layer][source] for source in sorted(found[layer])] for layer in order}


def source_name(source: int) -> str:
    """Return the label of a source: ``emb`` for the embedding, or the number of the layer."""
    return "emb" if source == 0 else str(source)


def _current(shares: dict[str, list[Series]], suffix: str) -> Chart:
    columns = max(len(sources) for sources in shares.values())
    table = np.full((len(shares), columns), np.nan)
    for row, sources in enumerate(shares.values()):
        table[row, : len(sources)] = [series.last for series in sources]
    step = max(int(sources[0].steps[-1]) for sources in shares.values())
    names = [layer if layer == "output" else f"layer {layer}" for layer in shares]
    heat = go.Heatmap(
        z=table,
        x=[source_name(source) for source in range(columns)],
        y=names,
        coloraxis="coloraxis",
        xgap=2,
        ygap=2,
        texttemplate="%{z:.0%}" if len(shares) <= NUMBERED_UP_TO else None,
        hoverongaps=False,
        hovertemplate="%{y}: %{z:.1%} from %{x}<extra></extra>",
    )
    height = min(MAX_HEIGHT, 90 + 30 * len(shares))
    figure = base_figure(
        [heat],
        hovermode="closest",
        coloraxis=COLOR_AXIS,
        margin=MARGIN,
        xaxis={**AXIS, "type": "category", "showgrid": False, "title": {"text": "from the output of layer"}},
        yaxis={**AXIS, "type": "category", "showgrid": False, "autorange": "reversed"},
    )
    return Chart(
        f"Current layer weights{suffix}",
        f"share of each layer's input, after step {step:,}",
        figure,
        "",
        height,
    )


def _over_time(shares: dict[str, list[Series]], suffix: str, largest: float) -> list[Chart]:
    """Draw one strip for each layer with several sources, with the sources as rows and the steps as columns.

    Args:
        shares: Weights of each layer; see ``layer_shares``.
        suffix: End of the title.
        largest: Upper end of the color scale.
    """
    layers = {layer: sources for layer, sources in shares.items() if len(sources) > 1}
    steps = _common_steps(layers)
    if len(steps) < 2:
        return []
    rows = sum(map(len, layers.values()))
    gap = 10 if len(layers) <= NAMED_UP_TO else 4
    # Leave room for the name of each layer, and for the names of its sources unless there are too many.
    strips = max(LAYER_NAME_HEIGHT * len(layers), min(SOURCE_NAME_HEIGHT * rows, STRIPS_HEIGHT))
    height = 90 + strips + gap * (len(layers) - 1)
    figure = make_subplots(
        rows=len(layers),
        shared_xaxes=True,
        row_heights=[float(len(sources)) for sources in layers.values()],
        vertical_spacing=gap / (height - 80) if len(layers) > 1 else 0,
    )
    for row, (layer, sources) in enumerate(layers.items(), start=1):
        figure.add_trace(_strip(layer, sources, steps), row=row, col=1)
        figure.update_yaxes(
            {**AXIS, "type": "category", "showgrid": False, "tickfont": {"size": 10}, "dtick": 1},
            showticklabels=len(shares) <= NAMED_UP_TO,
            side="left",
            row=row,
            col=1,
        )
        _name_strip(figure, row, layer)
    figure.update_xaxes({**STEPS, "title": None})
    figure.update_xaxes(title=STEPS["title"], row=len(layers), col=1)
    common = {key: BASE[key] for key in ("template", "paper_bgcolor", "plot_bgcolor", "font", "dragmode")}
    figure.update_layout(
        **common, hovermode="closest", coloraxis={**COLOR_AXIS, "cmax": largest}, margin={**MARGIN, "r": 58}
    )
    return [
        Chart(
            f"Layer weights over time{suffix}",
            "share of each earlier output in the input of each layer, by step",
            figure,
            "",
            height,
        )
    ]


def _name_strip(figure: go.Figure, row: int, layer: str) -> None:
    """Write the name of a layer to the right of its strip."""
    domain = figure.layout[f"yaxis{row if row > 1 else ''}"].domain
    figure.add_annotation(
        text=layer if layer == "output" else f"layer {layer}",
        font={"size": 11},
        xref="paper",
        yref="paper",
        x=1.0,
        y=(domain[0] + domain[1]) / 2,
        xanchor="left",
        xshift=6,
        showarrow=False,
    )


def _common_steps(layers: dict[str, list[Series]]) -> NDArray[np.int64]:
    """Return the steps at which all weights were logged, at most ``MAX_COLUMNS`` of them, int64 ``[n]``."""
    common: set[int] | None = None
    for sources in layers.values():
        for series in sources:
            logged = set(series.steps.tolist())
            common = logged if common is None else common & logged
    steps = np.array(sorted(common or ()), dtype=np.int64)
    kept = np.linspace(0, len(steps) - 1, min(len(steps), MAX_COLUMNS)).round().astype(int)
    result: NDArray[np.int64] = steps[kept]
    return result


def _strip(layer: str, sources: list[Series], steps: NDArray[np.int64]) -> go.Heatmap:
    table = np.array([series.values[np.isin(series.steps, steps)] for series in sources])
    name = layer if layer == "output" else f"layer {layer}"
    return go.Heatmap(
        z=table,
        x=steps,
        y=[source_name(source) for source in range(len(sources))],
        coloraxis="coloraxis",
        hovertemplate=f"step %{{x:,}}: {name} %{{z:.1%}} from %{{y}}<extra></extra>",
    )
