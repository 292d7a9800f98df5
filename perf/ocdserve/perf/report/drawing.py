# SPDX-License-Identifier: Apache-2.0
"""Figures in one style, and their SVG to put into a page, whose style sheet gives colours and font."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

__all__ = [
    "CARD",
    "COLOURS",
    "MUTED",
    "SERIES",
    "Palette",
    "from_zero",
    "in_style",
    "legend_above",
    "new_axes",
    "ticks_at",
    "to_svg",
]

# Series colours of the style sheet: --series-0 and so on.
COLOURS = 8

# Stand for the style sheet's variables while matplotlib draws; no plot may use these colours for anything else.
_INK, MUTED, _GRID, CARD = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0000{index + 16:02x}" for index in range(COLOURS))
_VARIABLES = {
    _INK: "--ink",
    MUTED: "--muted",
    _GRID: "--rule",
    CARD: "--card",
    **{colour: f"--series-{index}" for index, colour in enumerate(SERIES)},
}
_MARKERS = "osD^vPX*"
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_WIDTH = 6.4
# Where an axis from 0 would press most points against it.
_LOGARITHMIC_FROM = 30


@dataclass(frozen=True)
class Palette:
    """The same colour and marker for a subject in all plots of a section."""

    subjects: tuple[str, ...]

    def colour(self, subject: str) -> str:
        return SERIES[self.subjects.index(subject) % COLOURS]

    def marker(self, subject: str) -> str:
        return _MARKERS[self.subjects.index(subject) % len(_MARKERS)]


def in_style() -> Any:
    """A context in which figures get the style."""
    return matplotlib.rc_context(_STYLE)


def new_axes(height: float, left: float = 0.11) -> Any:
    """The axes of a new figure, `height` inches high; `left` is the share of its width for labels of the y axis."""
    figure = Figure(figsize=(_WIDTH, height))
    # In inches, so that plots of any height have the same room for their labels.
    return figure.add_axes((left, 0.55 / height, 0.97 - left, 1 - 0.75 / height))


def from_zero(axes: Any, values: Sequence[float]) -> None:
    """Let the y axis begin at 0, or be logarithmic where the values differ by orders of magnitude."""
    if min(values) > 0 and max(values) / min(values) > _LOGARITHMIC_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_ylim(bottom=0)


def ticks_at(axes: Any, levels: Sequence[float]) -> None:
    """Let the x axis tell these levels and no others."""
    axes.xaxis.set_major_locator(FixedLocator(levels))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def legend_above(axes: Any) -> None:
    """Above the plot, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels)) > 34 else 2 if len(labels) > 2 else len(labels)
    rows = -(-len(labels) // columns)
    figure = axes.figure
    extra = 0.24 * rows
    height = figure.get_figheight()
    figure.set_figheight(height + extra)
    box = axes.get_position()
    axes.set_position((box.x0, box.y0 * height / (height + extra), box.width, box.height * height / (height + extra)))
    figure.legend(handles, labels, ncols=columns, loc="upper left", bbox_to_anchor=(0, 1), borderaxespad=0.2)


def to_svg(figure: Figure, name: str, title: str) -> str:
    """The figure's SVG element, with ids of its own, scalable, coloured by the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    # A style element would style the whole page.
    svg = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(?<=\s)(width|height)="[0-9.]+pt"\s*', "", svg, count=2)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
