"""Charts as SVG, to be set into a page. Needs matplotlib.

Colours are written as CSS variables, so that the page decides them for light and dark.
"""

import importlib.util
import math
import re
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

from data.settings import require
from scripts.report_page.charts import Chart, Record, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart by colour-blind readers; the names are CSS variables
_PALETTE = {"blue": "#0072b2", "orange": "#d55e00", "green": "#009e73", "grey": "#6b7280"}
_INK = {"#010203": "currentColor", "#010204": "var(--line)"}
_SIZE = (5.4, 3.1)  # inches; small, so that the text is still readable on a phone
_SMOOTHING = (10, 50)  # a mean over a tenth of the records, 50 at most


def smoothing(num_records: int) -> int:
    """Return over how many records the smoothed lines are a mean."""
    part, most = _SMOOTHING
    return min(most, max(1, num_records // part))


def require_matplotlib() -> None:
    """Raise `UserError` unless matplotlib is installed."""
    require(
        importlib.util.find_spec("matplotlib") is not None,
        "the charts need matplotlib, which is not installed; run pip install -e '.[report]' here",
    )


def draw(chart: Chart, records: list[Record]) -> str:
    """Return a chart as an `<svg>` element without ids that another could repeat."""
    import matplotlib
    from matplotlib.figure import Figure

    look: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": chart.title, "font.size": 10.5}
    with matplotlib.rc_context(look):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        for series in chart.series:
            _draw_series(axes, series, records, chart.scale)
        _finish(axes, chart)
        content = StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=nothing)
    return _embeddable(content.getvalue(), _describe(chart, records))


def _draw_series(axes: "Axes", series: Series, records: list[Record], scale: float) -> None:
    points = [(r["step"], scale * r[series.key]) for r in records if series.key in r]
    steps, values = [step for step, _ in points], [value for _, value in points]
    colour = _PALETTE[series.colour]
    if series.kind == "points":
        axes.plot(steps, values, series.marker, color=colour, markersize=5.5, zorder=3)
        return
    style = {"dashed": "--", "dotted": ":"}.get(series.kind, "-")
    thickness = 1.0 if series.kind == "raw" else 2.0
    if series.is_smoothed:
        values = _smooth(values, smoothing(len(values)))
    alone = "o" if len(values) == 1 else ""  # a line of one point would not be seen
    axes.plot(steps, values, style, color=colour, linewidth=thickness, marker=alone)


def _smooth(values: list[float], width: int) -> list[float]:
    """Return the mean of each value and those before it, `width` at most."""
    windows = (values[max(0, end - width) : end] for end in range(1, len(values) + 1))
    return [math.fsum(window) / len(window) for window in windows]


def _finish(axes: "Axes", chart: Chart) -> None:
    ink, faint = _INK
    axes.set_xlabel("step", color=ink)
    axes.set_ylabel(chart.axis, color=ink)
    axes.tick_params(colors=ink)
    axes.grid(color=faint, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(ink)
    if chart.start_at_zero:
        axes.set_ylim(bottom=0)
    if chart.least_top is not None:
        axes.set_ylim(top=max(axes.get_ylim()[1], chart.least_top))


def _embeddable(svg: str, name: str) -> str:
    """Cut a whole SVG file down to an element: one name, the page's colours, few ids."""
    svg = svg[svg.index("<svg") :]
    used = set(re.findall(r"#([\w.-]+)[\")]", svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r' xmlns(:xlink)?="[^"]+"', "", svg)  # HTML knows them
    for colour, value in (_INK | {c: f"var(--{name})" for name, c in _PALETTE.items()}).items():
        svg = svg.replace(colour, value)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(name)}"', 1)


def _describe(chart: Chart, records: list[Record]) -> str:
    """Say in words what a chart shows, for those who cannot see it."""
    last: dict[str, str] = {}
    for series in chart.series:
        value = chart.scale * next(r[series.key] for r in reversed(records) if series.key in r)
        last[series.key] = f"{series.label} {value:.4g}"
    return f"{chart.title}: {chart.axis} over steps; last values: {', '.join(last.values())}"
