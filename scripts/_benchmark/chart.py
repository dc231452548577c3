"""A record as a chart: its ratios with their spread, and what was measured of each variant.

Needs matplotlib (extra `report`).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.shards import atomic_write
from pretrain.pictures.draw import GREY, render, require_matplotlib
from scripts._benchmark.records import RATIO, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE = "#0072b2", "#d55e00"  # Okabe and Ito's
_WIDTH, _ROW, _HEAD = 6.4, 0.3, 0.75  # inches: of all, of a bar, of a panel without bars
_DPI = 150
_ROOM = 1.18  # of the longest bar, for the numbers


def draw(record: dict[str, Any], path: Path) -> None:
    """Write a chart of what `make_record` made, as PNG.

    A panel for the ratios and one for each unit, a bar a median with a whisker from the lowest to
    the highest round; ratios of which lower is better are in another colour.

    Raises:
        UserError: matplotlib is not installed.
    """
    require_matplotlib()
    with atomic_write(path) as file:
        file.write(render(lambda: make_figure(record), "png", dpi=_DPI))


def make_figure(record: dict[str, Any]) -> "Figure":
    """Draw the panels, one below the other, in the colours that it finds set."""
    from matplotlib.figure import Figure

    shown = panels(record)
    heights = [_HEAD + _ROW * len(values) for _, values in shown]
    figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    grid = figure.subplots(len(shown), 1, height_ratios=heights, squeeze=False)
    for axes, (title, values) in zip(grid[:, 0], shown, strict=True):
        _bars(axes, title, values, record["lower_is_better"])
    return figure


def _bars(axes: "Axes", title: str, values: dict[str, Any], lower_is_better: list[str]) -> None:
    """Draw a panel, the first bar on top."""
    from matplotlib.ticker import MaxNLocator

    names = list(values)
    medians = [values[name]["median"] for name in names]
    lows = [values[name]["median"] - values[name]["min"] for name in names]
    highs = [values[name]["max"] - values[name]["median"] for name in names]
    is_cost = [name in lower_is_better for name in names]
    axes.barh(
        range(len(names)),
        medians,
        xerr=[lows, highs],
        color=[_ORANGE if cost else _BLUE for cost in is_cost],
        ecolor=GREY,
        capsize=3,
    )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    longest = max(values[name]["max"] for name in names)
    axes.set_xlim(0, longest * _ROOM)
    for row, name in enumerate(names):
        text = f"{values[name]['median']:.3g}"
        axes.text(values[name]["max"] + 0.01 * longest, row, text, va="center")
    if title == RATIO:
        axes.axvline(1, color=GREY, linewidth=1, linestyle="--")
    axes.set_xlabel(f"{title} (orange: lower is better)" if any(is_cost) else title)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.spines[["top", "right"]].set_visible(False)
