"""Figures as inline SVG whose colours are the page's CSS variables, so that they follow light and dark.

matplotlib is imported when the first figure is drawn; nothing here touches pyplot or its global state.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sottovoce.reporting.run_files import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that are replaced by variables of the page's style after drawing; each must be unique.
INK, MUTED, GRID, SURFACE = "#111213", "#616263", "#d1d2d3", "#fdfefe"
SERIES: Final = ("#2166c1", "#d9580e", "#0b8a5f", "#9a4fb0")
BAD: Final = "#c9252d"
_VARIABLES: Final = {INK: "ink", MUTED: "muted", GRID: "line", SURFACE: "surface", BAD: "bad"} | {
    colour: f"series-{i}" for i, colour in enumerate(SERIES)
}
_MOST_POINTS: Final = 240

_RC: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sottovoce",
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "text.color": INK,
    "text.usetex": False,
    "text.parse_math": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    label: str
    curve: Curve
    colour: int
    """Index into `SERIES`, and into the page's `--series-N`."""


def draw(width: float, height: float, paint: Callable[[Figure], None], description: str) -> str:
    """An SVG element of `width` × `height` inches (it scales with the page) that `paint` has drawn into."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _themed(buffer.getvalue(), description)


def curves(
    lines: Sequence[Line],
    *,
    description: str,
    last_step: int,
    as_percent: bool = False,
    log: bool = False,
    limit: float | None = None,
    marked_steps: Sequence[int] = (),
    stages: Sequence[tuple[int, str]] = (),
) -> str:
    """Curves over steps; above 240 points a line is the mean of neighbours, with a band from least to most.

    The axis goes from 0 to `last_step`; `limit` is a dashed horizontal line, `marked_steps` are red ticks at the foot,
    `stages` are vertical lines with a name.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for line in lines:
            _plot(axes, line)
        if limit is not None:
            axes.axhline(limit, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for step, name in stages:
            axes.axvline(step, color=GRID, linewidth=1)
            top = axes.get_xaxis_transform()
            axes.text(step, 1.0, f" {name}", color=MUTED, fontsize=6.5, va="bottom", ha="left", transform=top)
        if marked_steps:
            foot = axes.get_xaxis_transform()
            axes.plot(marked_steps, [0.03] * len(marked_steps), "|", color=BAD, markersize=9, transform=foot)
        axes.set_xlim(-0.02 * last_step, 1.02 * max(last_step, 1))
        _format(axes, as_percent, log, max(max(line.curve[1]) for line in lines))

    return draw(4.3, 2.35, paint, description)


def _plot(axes: Axes, line: Line) -> None:
    steps, values = np.array(line.curve[0]), np.array(line.curve[1])
    colour = SERIES[line.colour]
    if len(steps) > _MOST_POINTS:
        groups = np.array_split(np.arange(len(steps)), _MOST_POINTS)
        low, high = ([pick(values[g]) for g in groups] for pick in (np.min, np.max))
        steps, values = (np.array([x[g].mean() for g in groups]) for x in (steps, values))
        axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
    marker = "o" if len(steps) < 40 else None
    axes.plot(steps, values, color=colour, marker=marker, markersize=2.6)


def _format(axes: Axes, as_percent: bool, log: bool, largest: float) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(visible=False, axis="x")
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
        return
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if as_percent:
        decimals = 0 if largest >= 0.05 else 1
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.{decimals}f} %"))


def _themed(svg: str, description: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)  # a page has one style
    body = body.replace("xlink:href", "href")
    body = re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', body, count=1)
    for colour, name in _VARIABLES.items():
        body = body.replace(colour, f"var(--{name})")
    body = body.replace("'DejaVu Sans'", "var(--sans)")
    title = description.replace("&", "&amp;").replace("<", "&lt;")
    return body.replace(">", f"><title>{title}</title>", 1)
