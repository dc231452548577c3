"""Pages of one file: the frame, with light and dark, and pieces of HTML that stand in it.

All texts are escaped here; only bodies and pictures are taken as they are. Nothing is requested
from anywhere.
"""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from string import Template

_TEMPLATE = Path(__file__).with_name("template.html")


def make_page(
    title: str,
    summary: str,
    sections: Iterable[str],
    seconds: int | None = None,
    script: str = "",
) -> bytes:
    """Return a whole page.

    Args:
        title: Its heading.
        summary: HTML below that.
        sections: HTML, one below the other.
        seconds: After which a browser loads the page anew; None: never.
        script: JavaScript, which runs once the page is there; a browser runs no other.
    """
    digest = b64encode(sha256(script.encode()).digest()).decode()
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        refresh="" if seconds is None else f'<meta http-equiv="refresh" content="{seconds}">',
        title=escape(title),
        summary=summary,
        sections="\n".join(filter(None, sections)),
        policy=f"; script-src 'sha256-{digest}'" if script else "",
        script=f"<script>{script}</script>" if script else "",
    )
    return page.encode()


def make_section(title: str, body: str, notes: Sequence[str] = ()) -> str:
    """Put HTML under a heading, and small print below it."""
    small = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return f"<section><h2>{escape(title)}</h2>{body}{small}</section>"


def as_image(content: bytes, alt: str, kind: str = "png") -> str:
    """Return an `<img>` that holds a picture, a PNG or a JPEG."""
    source = f"data:image/{kind};base64,{b64encode(content).decode()}"
    return f'<img src="{source}" alt="{escape(alt)}">'


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
