"""Pieces of HTML. All texts are escaped here; only bodies and pictures are taken as they are."""

from collections.abc import Mapping, Sequence
from html import escape

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
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in section.notes)
    return f"<section><h2>{escape(section.title)}</h2>{section.body}{grid}{notes}</section>"


def _figure(figure: Figure) -> str:
    look = "panel wide" if figure.is_wide else "panel"
    return (
        f'<figure class="{look}"><h3>{escape(figure.title)}</h3>{figure.picture}'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def panels(texts: dict[str, list[str]]) -> str:
    """Set lists of sentences side by side, each in a box with a heading."""
    boxes: list[str] = []
    for title, sentences in texts.items():
        items = "".join(f"<li>{escape(text)}</li>" for text in sentences)
        boxes.append(f'<div class="panel"><h3>{escape(title)}</h3><ul>{items}</ul></div>')
    return f'<div class="grid">{"".join(boxes)}</div>'


def definitions(rows: dict[str, str]) -> str:
    """List names and values."""
    items = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows.items())
    return f"<dl>{''.join(items)}</dl>"


def details(summary: str, text: str) -> str:
    """Fold a file's text away."""
    code = f'<pre tabindex="0"><code>{escape(text)}</code></pre>'
    return f"<details><summary>{escape(summary)}</summary>{code}</details>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, is_text: bool = False) -> str:
    """Write a table whose first column names its rows; numbers stand to the right, texts left."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(value)}</td>" for value in values)
        + "</tr>"
        for name, *values in rows
    )
    look = ' class="texts"' if is_text else ""
    whole = f"<table{look}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{whole}</div>'


def lead(*texts: str) -> str:
    """Say, above pictures, how to read them."""
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def quote(text: str) -> str:
    """Set a text apart as somebody else's words."""
    return f"<blockquote>{escape(text)}</blockquote>"


def card(title: str, picture: str, body: str) -> str:
    """Put a picture in a box, under its name and above what is said of it."""
    return f'<article class="panel"><h3>{escape(title)}</h3>{picture}{body}</article>'


def cards(boxes: Sequence[str]) -> str:
    """Set boxes side by side."""
    return f'<div class="grid charts">{"".join(boxes)}</div>'


def pictures_table(header: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Write a table of pictures, which are taken as they are; the names of rows come first."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{picture}</td>" for picture in pictures)
        + "</tr>"
        for name, pictures in rows.items()
    )
    return f'<table class="pictures"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


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
