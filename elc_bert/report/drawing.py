"""Colors, axes and labels that all charts share.

The colors of text, axes and grids are set by the page's style sheet, for light and dark themes.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe-Ito palette, which is safe for color blindness, without its colors that vanish on white or black."""
GRAY = "#8a8a8a"
"""Gray that is visible on both white and black."""
CLEAR = "rgba(0,0,0,0)"
"""Color that is fully transparent."""
NAME_LENGTH = 32
"""Maximum number of characters of a name in a legend."""


@dataclass(frozen=True)
class Chart:
    """A figure with its title, unit and caption on the page."""

    title: str
    """Heading above the figure."""
    unit: str
    """Unit or quantity of the vertical axis, shown below the title."""
    figure: go.Figure
    """The plotly figure."""
    caption: str
    """Explanation below the figure; may be empty."""
    height: int
    """Height in pixels."""


def escape_label(text: str) -> str:
    """Shorten a label and escape it, because plotly interprets HTML tags in text."""
    shown = text if len(text) <= NAME_LENGTH else f"{text[: NAME_LENGTH - 1]}…"
    return html.escape(shown, quote=False)


def series_color(number: int) -> str:
    """Return the color of the run or curve with this index."""
    return COLORS[number % len(COLORS)]


def base_figure(traces: Sequence[Any], **layout: Any) -> go.Figure:
    """Return a figure with a transparent background and the legend above it."""
    return go.Figure(data=list(traces), layout={**BASE, **layout})


AXIS: dict[str, Any] = {
    "automargin": True,
    "gridcolor": GRAY,
    "zeroline": False,
    "exponentformat": "power",
    "separatethousands": True,
    "ticks": "",
}
"""Layout of all axes."""
STEPS: dict[str, Any] = {
    **AXIS,
    "showgrid": False,
    "tickformat": ",d",
    "title": {"text": "steps", "standoff": 6},
}
"""Layout of an axis of training steps."""
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
"""Layout of all figures."""
