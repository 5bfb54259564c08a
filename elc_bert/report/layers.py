"""Heat maps of the layer mixtures: what each layer takes from every earlier one.

``L`` layers; a layer's sources are the embedding (0) and the layers before it.
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
NUMBERED_UP_TO = 12
"""Layers up to which a cell has room for its number."""
NAMED_UP_TO = 8
"""Layers up to which a row over time has room for the name of its source."""
MOST_TIMES = 120
"""Columns over time."""
TALLEST = 900
STRIPS = 440
LAYER_NAME = 18
SOURCE_NAME = 14
"""Pixels."""
MARGIN = {"l": 44, "r": 12, "t": 36, "b": 34}
COLOUR_AXIS = {
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


def layer_charts(runs: Sequence[Run]) -> list[Chart]:
    """For each run that logged them: the mixtures as they are now, and how they came about."""
    charts: list[Chart] = []
    of_runs = [shares_of(run) for run in runs]
    # A layer with one source takes all from it; without it the others are told apart better.
    chosen = [sources for shares in of_runs for sources in shares.values() if len(sources) > 1]
    largest = max((float(series.values.max()) for sources in chosen for series in sources), default=1.0)
    for run, shares in zip(runs, of_runs, strict=True):
        if shares:
            of = f", {run.name}" if len(runs) > 1 else ""
            charts.append(_newest(shares, of))
            charts += _over_time(shares, of, largest)
    return charts


def shares_of(run: Run) -> dict[str, list[Series]]:
    """What each layer takes from each of its sources, by the layer's name, ``1`` to ``L`` and ``output``."""
    found: dict[str, dict[int, Series]] = {}
    for name, series in run.scalars.items():
        if match := SHARE.fullmatch(name):
            layer = match["layer"].lstrip("0")
            found.setdefault(layer, {})[int(match["source"])] = series
    order = sorted(found, key=lambda layer: (layer == "output", layer.zfill(6)))
    return {layer: [found[layer][source] for source in sorted(found[layer])] for layer in order}


def source_name(source: int) -> str:
    return "emb" if source == 0 else str(source)


def _newest(shares: dict[str, list[Series]], of: str) -> Chart:
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
        hovertemplate="%{y} takes %{z:.1%} from %{x}<extra></extra>",
    )
    height = min(TALLEST, 90 + 30 * len(shares))
    figure = base_figure(
        [heat],
        hovermode="closest",
        coloraxis=COLOUR_AXIS,
        margin=MARGIN,
        xaxis={**AXIS, "type": "category", "showgrid": False, "title": {"text": "takes from the output of"}},
        yaxis={**AXIS, "type": "category", "showgrid": False, "autorange": "reversed"},
    )
    return Chart(
        f"Which layers count{of}", f"share of a layer's input, after step {step:,}", figure, "", height
    )


def _over_time(shares: dict[str, list[Series]], of: str, largest: float) -> list[Chart]:
    """A strip for each layer that has a choice: upwards its sources, to the right the steps.

    Args:
        shares: see ``shares_of``.
        of: end of the title.
        largest: share that the colours reach up to.
    """
    layers = {layer: sources for layer, sources in shares.items() if len(sources) > 1}
    steps = _common_steps(layers)
    if len(steps) < 2:
        return []
    rows = sum(map(len, layers.values()))
    gap = 10 if len(layers) <= NAMED_UP_TO else 4
    # Room for the name of each layer, and for its sources as long as there is.
    height = 90 + max(LAYER_NAME * len(layers), min(SOURCE_NAME * rows, STRIPS)) + gap * (len(layers) - 1)
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
        **common, hovermode="closest", coloraxis={**COLOUR_AXIS, "cmax": largest}, margin={**MARGIN, "r": 58}
    )
    return [
        Chart(
            f"How that came about{of}",
            "share that each layer takes from each earlier one, over the steps",
            figure,
            "",
            height,
        )
    ]


def _name_strip(figure: go.Figure, row: int, layer: str) -> None:
    """Write a layer's name to the right of its strip."""
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
    """Steps after which all were logged, int64 [times], few enough to draw."""
    common: set[int] | None = None
    for sources in layers.values():
        for series in sources:
            logged = set(series.steps.tolist())
            common = logged if common is None else common & logged
    steps = np.array(sorted(common or ()), dtype=np.int64)
    kept = np.linspace(0, len(steps) - 1, min(len(steps), MOST_TIMES)).round().astype(int)
    return steps[kept]


def _strip(layer: str, sources: list[Series], steps: NDArray[np.int64]) -> go.Heatmap:
    table = np.array([series.values[np.isin(series.steps, steps)] for series in sources])
    name = layer if layer == "output" else f"layer {layer}"
    return go.Heatmap(
        z=table,
        x=steps,
        y=[source_name(source) for source in range(len(sources))],
        coloraxis="coloraxis",
        hovertemplate=f"step %{{x:,}}: {name} takes %{{z:.1%}} from %{{y}}<extra></extra>",
    )
