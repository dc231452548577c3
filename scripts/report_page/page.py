"""Pieces of HTML. All texts are escaped here; only `section`'s body is taken as it is."""

from collections.abc import Iterable, Sequence
from html import escape

from scripts.report_page.charts import Chart, Record, Series
from scripts.report_page.drawing import draw

_MARKERS = {
    "o": '<circle cx="14" cy="6" r="4"/>',
    "s": '<rect x="10" y="2" width="8" height="8"/>',
    "^": '<path d="M14 1l5 9h-10z"/>',
}
_DASHES = {"dashed": ' stroke-dasharray="7 4"', "dotted": ' stroke-dasharray="2 3"'}


def section(title: str, body: str, note: str = "") -> str:
    """Put HTML under a heading, and a note below it."""
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{body}{below}</section>"


def bullets(texts: Iterable[str]) -> str:
    """List sentences."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def definitions(rows: dict[str, str]) -> str:
    """List names and values."""
    items = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows.items())
    return f"<dl>{''.join(items)}</dl>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table whose first column names its rows."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(value)}</td>" for value in values)
        + "</tr>"
        for name, *values in rows
    )
    whole = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{whole}</div>'


def chart_figure(chart: Chart, records: list[Record]) -> str:
    """Draw a chart, with its legend and the sentence on how to read it."""
    return (
        f'<figure class="panel"><h3>{escape(chart.title)}</h3>{draw(chart, records)}'
        f"{_legend(chart)}<figcaption>{escape(chart.reading)}</figcaption></figure>"
    )


def _legend(chart: Chart) -> str:
    if len(chart.series) == 1:  # the title says it
        return ""
    entries = "".join(f"<li>{_swatch(s)}{escape(s.label)}</li>" for s in chart.series)
    return f'<ul class="legend">{entries}</ul>'


def _swatch(series: Series) -> str:
    """Draw a legend's sample of a line or marker."""
    thickness = 1 if series.kind == "raw" else 2.5
    line = f'<path d="M0 6h28" stroke-width="{thickness}"{_DASHES.get(series.kind, "")}/>'
    shape = _MARKERS[series.marker] if series.kind == "points" else line
    colour = f"var(--{series.colour})"
    look = f'style="fill: {colour}; stroke: {colour}"'
    return f'<svg viewBox="0 0 28 12" {look} aria-hidden="true">{shape}</svg>'
