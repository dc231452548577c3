"""Sections, figures and legends as HTML. Texts are escaped here; pictures are taken as they are."""

from html import escape

from pretrain.pictures.page import make_section
from scripts._report.figures import Figure, Line, Plot, Section

_MARKERS = {
    "o": '<circle cx="14" cy="6" r="4"/>',
    "s": '<path d="M10 2h8v8h-8z"/>',
    "^": '<path d="M14 1l5 9h-10z"/>',
    "v": '<path d="M14 11l5 -9h-10z"/>',
    "D": '<path d="M14 1l5 5l-5 5l-5 -5z"/>',
    "X": '<path d="M10 2l8 8m0 -8l-8 8" stroke-width="3"/>',
}
_DASHES = {"dashed": ' stroke-dasharray="7 4"', "dotted": ' stroke-dasharray="2 3"'}


def render(section: Section) -> str:
    """Put a section under its heading; an empty text for an empty one."""
    if section.is_empty:
        return ""
    figures = "".join(map(_figure, section.figures))
    grid = f'<div class="grid charts">{figures}</div>' if figures else ""
    return make_section(section.title, section.body + grid, section.notes)


def _figure(figure: Figure) -> str:
    look = "panel wide" if figure.is_wide else "panel"
    return (
        f'<figure class="{look}"><h3>{escape(figure.title)}</h3>{figure.picture}'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


# ---------------------------------------------------------------- legends


def legend(plot: Plot) -> str:
    """Name a chart's lines; an empty text where its title does."""
    if not plot.has_legend:
        return ""
    entries = "".join(f"<li>{_swatch(line)}{escape(line.label)}</li>" for line in plot.lines)
    return f'<ul class="legend">{entries}</ul>'


def _swatch(line: Line) -> str:
    """Draw a legend's sample of a line or marker."""
    thickness = 1 if line.kind in ("raw", "joined") else 2.5
    stroke = f'<path d="M0 6h28" stroke-width="{thickness}"{_DASHES.get(line.kind, "")}/>'
    shape = _MARKERS[line.marker] if line.kind in ("points", "joined") else ""
    if line.kind != "points":
        shape = stroke + shape
    colour = f"var(--{line.colour})"
    look = f'style="fill: {colour}; stroke: {colour}"'
    return f'<svg viewBox="0 0 28 12" {look} aria-hidden="true">{shape}</svg>'
