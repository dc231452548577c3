"""matplotlib's figures as elements of a page, and as files for papers.

On the page, colours are CSS variables: the page decides them for light and dark.
"""

import re
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

from pretrain.pictures.draw import GREY, render
from pretrain.pictures.page import as_image
from scripts._report.figures import PALETTE, Figure, Line, Plot, Suffix, file_name
from scripts._report.page import legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

Make = Callable[[], "Drawing"]

_INK, _FAINT = "#010203", "#010204"  # nothing else has these colours
_ON_PAGE = {_INK: "currentColor", _FAINT: "var(--line)"} | {
    colour: f"var(--{name})" for name, colour in PALETTE.items()
}
_ON_PAPER = {"grid.color": "#d5d9de", "svg.fonttype": "path"}
_SIZE = (5.4, 3.1)  # inches; small, so that the text is still readable on a phone
_DPI = 150  # of pictures on the page
_SMALL = 40_000  # bytes of SVG that are not worth a second drawing
_MOST_TICKS = 6  # at steps of six digits they do not touch
_STYLES = {"points": "none", "dashed": "--", "dotted": ":"}


# ---------------------------------------------------------------- onto the page, into files


def as_element(make: Make, alt: str) -> str:
    """Return a figure as `<svg>`, or as `<img>` where that is smaller.

    Args:
        make: Draws it, in the colours that it finds set.
        alt: The same in words, for those who cannot see it.
    """
    look = {"grid.color": _FAINT, "svg.fonttype": "none"}
    svg = _embeddable(render(make, "svg", ink=_INK, look=look), alt)
    if len(svg) < _SMALL:
        return svg
    png = render(make, "png", dpi=_DPI, look={"grid.color": GREY})
    return min(svg, as_image(on_palette(png), alt), key=len)


def as_file(make: Make, suffix: Suffix) -> bytes:
    """Return a figure for a paper: black on white, the same bytes at each call."""
    return render(make, suffix, ink="black", is_clear=False, look=_ON_PAPER)


def drawn(title: str, make: Make, alt: str, reading: str) -> Figure:
    """Return a figure that matplotlib draws, alike on the page and in files."""
    picture = as_element(make, f"{title}: {alt}")
    return Figure(title, file_name(title), picture, reading, partial(as_file, make))


def wrapped(png: bytes) -> bytes:
    """Return an SVG file that holds a picture of pixels."""
    width, height = Image.open(BytesIO(png)).size
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<image width="{width}" height="{height}" style="image-rendering: pixelated" '
        f'xlink:href="data:image/png;base64,{b64encode(png).decode()}"/></svg>\n'
    ).encode()


def _embeddable(content: bytes, alt: str) -> str:
    """Cut a whole SVG file down to an element: one name, the page's colours, few ids."""
    svg = content.decode()
    svg = svg[svg.index("<svg") :]
    used = set(re.findall(r"#([\w.-]+)[\")]", svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r' xmlns(:xlink)?="[^"]+"', "", svg)  # HTML knows them
    for colour, value in _ON_PAGE.items():
        svg = svg.replace(colour, value)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)


def on_palette(png: bytes) -> bytes:
    """Write a PNG with 256 colours, its clear ground kept."""
    content = BytesIO()
    picture = Image.open(BytesIO(png)).quantize(256, Image.Quantize.FASTOCTREE)
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()


# ---------------------------------------------------------------- charts


def chart(plot: Plot) -> Figure:
    """Return a chart with its legend and the sentence on how to read it."""
    picture = as_element(lambda: draw(plot), describe(plot)) + legend(plot)
    export = partial(as_file, lambda: draw(plot, has_legend=True))
    return Figure(plot.title, file_name(plot.title), picture, plot.reading, export)


def draw(plot: Plot, *, has_legend: bool = False) -> "Drawing":
    """Draw a chart; the page has a legend of its own."""
    from matplotlib.figure import Figure as Drawing

    figure = Drawing(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    for line in plot.lines:
        _draw_line(axes, line)
    _finish(axes, plot)
    if has_legend and plot.has_legend:
        columns = 2 if len(plot.lines) > 3 else len(plot.lines)
        figure.legend(loc="outside lower center", ncols=columns, fontsize=8.5, frameon=False)
    return figure


def _draw_line(axes: "Axes", line: Line) -> None:
    x, y = [x for x, _ in line.points], [y for _, y in line.points]
    colour, is_points = PALETTE[line.colour], line.kind == "points"
    if line.spread:
        axes.errorbar(x, y, line.spread, fmt="none", color=colour, elinewidth=1, capsize=3)
    # a line of one point would not be seen
    has_markers = is_points or line.kind == "joined" or len(y) == 1
    axes.plot(
        x,
        y,
        color=colour,
        linestyle=_STYLES.get(line.kind, "-"),
        linewidth=1.0 if line.kind in ("raw", "joined") else 2.0,
        drawstyle="steps-post" if line.kind == "steps" else "default",
        marker=line.marker if has_markers else "",
        markersize=5.5,
        zorder=3 if is_points else 2,
        label=line.label,
    )


def _finish(axes: "Axes", plot: Plot) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(plot.across)
    axes.set_ylabel(plot.axis)
    axes.grid(linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    places = {x for line in plot.lines for x, _ in line.points}
    axes.xaxis.set_major_locator(MaxNLocator(_MOST_TICKS, integer=True))
    if len(places) == 1:  # matplotlib's own axis would show steps that never were
        axes.set_xticks([*places])
    if plot.start_at_zero:
        axes.set_ylim(bottom=0)
    if plot.least_top is not None:
        axes.set_ylim(top=max(axes.get_ylim()[1], plot.least_top))


def describe(plot: Plot) -> str:
    """Return a chart in words, for those who cannot see it."""
    last = {line.label: f"{line.label} {line.points[-1][1]:.4g}" for line in plot.lines}
    return f"{plot.title}: {plot.axis} over {plot.across}; last values: {', '.join(last.values())}"
