"""What all charts have in common: colours, axes, and the text in them.

Colours of text, axes and grids are not here: the page's style sheet sets them, for light and dark.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of Okabe and Ito, told apart by colour-blind eyes too; without those that vanish on white or on black."""
GREY = "#8a8a8a"
"""Seen on both."""
CLEAR = "rgba(0,0,0,0)"
NAME_LENGTH = 32
"""Characters of a run's name in a legend."""


@dataclass(frozen=True)
class Chart:
    """A figure with what the page says around it."""

    title: str
    unit: str
    """Of what is drawn upwards, or what is drawn at all."""
    figure: go.Figure
    caption: str
    height: int
    """Pixels."""


def plain(text: str) -> str:
    """Text that plotly shows as it is: it would take tags for formatting and links."""
    shown = text if len(text) <= NAME_LENGTH else f"{text[: NAME_LENGTH - 1]}…"
    return html.escape(shown, quote=False)


def colour(number: int) -> str:
    """Of the run, or the curve, of this number."""
    return COLOURS[number % len(COLOURS)]


def base_figure(traces: Sequence[Any], **layout: Any) -> go.Figure:
    """A figure without background, whose legend lies above it."""
    return go.Figure(data=list(traces), layout={**BASE, **layout})


AXIS: dict[str, Any] = {
    "automargin": True,
    "gridcolor": GREY,
    "zeroline": False,
    "exponentformat": "power",
    "separatethousands": True,
    "ticks": "",
}
STEPS: dict[str, Any] = {
    **AXIS,
    "showgrid": False,
    "tickformat": ",d",
    "title": {"text": "steps", "standoff": 6},
}
BASE: dict[str, Any] = {
    "template": "none",
    "paper_bgcolor": CLEAR,
    "plot_bgcolor": CLEAR,
    "margin": {"l": 44, "r": 12, "t": 8, "b": 30},
    "font": {"family": "system-ui, sans-serif", "size": 12},
    "hovermode": "x unified",
    "dragmode": False,
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": CLEAR},
    "xaxis": STEPS,
    "yaxis": AXIS,
}
