"""A table of paths and labels as a source: CSV, TSV or JSON lines."""

import csv
import json
import posixpath
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from data.disks import one_line
from data.folder.images import extension_of, is_image_name, list_names
from data.folder.plan import SourceImages, read_files
from data.folder.walk import Found, is_readable
from data.labels.classes import decode
from data.settings import UserError, require
from data.sources.options import SourceOptions
from data.sources.rows import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    Row,
    choose_caption_column,
    choose_column,
    label_rows,
    read_caption,
    require_one_label,
)
from data.text import count, name_some, printable

TABLE_ENDINGS = ("csv", "tsv", "jsonl", "ndjson")
_AGAIN = ("row that repeats an earlier one", "rows that repeat earlier ones")
_NO_PATH = ("row without a path", "rows without a path")


class _Columns(NamedTuple):
    """The columns that are used; None where there is none."""

    image: str
    label: str | None
    caption: str | None


class _Table(NamedTuple):
    """A table: its columns, and its rows, each with its line and a value for each column."""

    columns: list[str]
    rows: list[tuple[int, dict[str, Any]]]


def find_in_table(source: Path, options: SourceOptions) -> SourceImages:
    """List the images that a table names.

    Args:
        source: The table, by its ending: .csv, .tsv or .jsonl.
        options: How it is looked at. Paths are below `root`, or the table's own folder.

    Raises:
        UserError: It is no such table, names what is not there, or gives an image two labels.
    """
    root = options.root or source.parent
    require(
        root.is_dir(), f"--root={printable(str(root))} is not a folder; give the images' folder"
    )
    table = _read_table(source)
    columns = _columns(source, table, options)
    found = Found()
    rows = _rows(source, table, columns, found)
    for row in rows:
        _look_at(root, row, found)
    listing = list_names(source, found)
    if not options.skip_unreadable:
        _require_all(source, root, found, len(rows))
    images = label_rows(listing, rows, partial(read_files, root), options)
    label = None if options.is_unlabelled else columns.label
    used = f"{extension_of(source.name)} table, images by {printable(columns.image)}"
    used += f", labels by {printable(label)}" if label else ""
    used += f", captions by {printable(columns.caption)}" if columns.caption else ""
    parts = (images.images, images.classes, images.left_out, images.why_unlabelled, images.read)
    return SourceImages(*parts, used)


def _columns(source: Path, table: _Table, options: SourceOptions) -> _Columns:
    columns = table.columns
    image = choose_column(columns, options.image_column, IMAGE_COLUMNS, "--image-column", source)
    label = choose_column(columns, options.label_column, LABEL_COLUMNS, "--label-column", source)
    if image is None:
        held = f"but {name_some(columns, 12)}" if columns else "as it is empty"
        raise UserError(
            f"SOURCE={printable(str(source))} has no column path, file, filename or image, {held}; "
            "its first line must name the columns: give the one with the paths as --image-column "
            "NAME"
        )
    return _Columns(image, label, choose_caption_column(columns, options, source))


def _rows(source: Path, table: _Table, columns: _Columns, found: Found) -> list[Row]:
    """Return the rows, each image once, with the captions of all of its rows."""
    first: dict[str, Row] = {}
    image = columns.image
    for line, values in table.rows:
        path, own = values.get(image), values.get(columns.label) if columns.label else None
        require(
            path is None or isinstance(path, str),
            f"SOURCE={printable(str(source))}, line {line}: {printable(image)} is no path but "
            f"{printable(json.dumps(path))}; give the column of the paths as --image-column NAME",
        )
        if not (path or "").strip():
            found.refuse(_NO_PATH, f"line {line}")
            continue
        where, own_captions = f"line {line}", ()
        if columns.caption:
            text = values.get(columns.caption)
            own_captions = read_caption(text, where, columns.caption, source)
        row = Row(where, _normal(str(path)), _label(source, line, own), captions=own_captions)
        before = first.setdefault(row.name, row)
        if before is row:
            continue
        require_one_label(source, before, row)
        if own_captions:
            first[row.name] = replace(before, captions=before.captions + own_captions)
        else:
            found.refuse(_AGAIN, f"line {line}: {row.name}")
    return list(first.values())


def _normal(path: str) -> str:
    """Return a path with one spelling; those of Windows have "/" too."""
    path = path.strip()
    if "://" in path:
        return path
    return posixpath.normpath(path.replace("\\", "/") if "/" not in path else path)


def _label(source: Path, line: int, value: object) -> str | int | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        return value.strip()
    require(
        isinstance(value, int) and not isinstance(value, bool),
        f"SOURCE={printable(str(source))}, line {line}: the label "
        f"{printable(json.dumps(value))} is neither a name nor a whole number; give another "
        "--label-column, or --unlabelled",
    )
    return value if isinstance(value, int) else None


def _look_at(root: Path, row: Row, found: Found) -> None:
    """Note the size of a row's file, or why it cannot be read."""
    path = root / row.name
    where = f"{row.name} ({row.where})"
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        is_address = "://" in row.name
        found.unreadable[where] = "an address, not a file" if is_address else _why(error)
        return
    if not path.is_file():
        found.unreadable[where] = "no file"
    elif is_image_name(row.name) and not is_readable(str(path)):
        found.unreadable[where] = "Permission denied"
    else:
        found.sizes[row.name] = status.st_size


def _why(error: OSError | ValueError) -> str:
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or one_line(error)


def _require_all(source: Path, root: Path, found: Found, num_rows: int) -> None:
    lost = [f"{where}: {reason}" for where, reason in found.unreadable.items()]
    require(
        not lost,
        f"SOURCE={printable(str(source))} names {count(len(lost), 'image')} of {num_rows:,} that "
        f"cannot be read below {printable(str(root))} ({name_some(lost)}); give the folder of the "
        "images as --root, or leave such rows out by --skip-unreadable",
    )


# ---------------------------------------------------------------- reading


def _read_table(source: Path) -> _Table:
    ending = extension_of(source.name)
    text = decode(source.read_bytes(), f"SOURCE={printable(str(source))}")
    text = text.removeprefix("\ufeff")
    if ending in ("jsonl", "ndjson"):
        return _of_json_lines(source, text)
    return _of_csv(source, text, "\t" if ending == "tsv" else None)


def _of_csv(source: Path, text: str, delimiter: str | None) -> _Table:
    header = text.partition("\n")[0]
    delimiter = delimiter or max(",;\t", key=header.count)
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, values) for values in reader if values]
    except csv.Error as error:
        raise UserError(
            f"SOURCE={printable(str(source))}, line {reader.line_num}: {one_line(error)}; mend the "
            "line, or save the table as JSON lines"
        ) from error
    require(
        len(set(columns)) == len(columns),
        f"SOURCE={printable(str(source))} names a column twice ({name_some(columns, 12)}); its "
        "first line must give each column a name of its own",
    )
    for line, values in rows:
        require(
            len(values) == len(columns),
            f"SOURCE={printable(str(source))}, line {line} has {count(len(values), 'value')} for "
            f"{count(len(columns), 'column')}; quote what holds a {_shown(delimiter)}",
        )
    return _Table(columns, [(line, dict(zip(columns, own, strict=True))) for line, own in rows])


def _shown(delimiter: str) -> str:
    return {",": "comma", ";": "semicolon"}.get(delimiter, "tab")


def _of_json_lines(source: Path, text: str) -> _Table:
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append((number, _object(source, number, line)))
    return _Table(list(dict.fromkeys(name for _, row in rows for name in row)), rows)


def _object(source: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"SOURCE={printable(str(source))}, line {number} is no JSON ({one_line(error)}); each "
            'line is an object, such as {"path": "a.jpg", "label": "cat"}'
        ) from error
    require(
        isinstance(value, dict),
        f"SOURCE={printable(str(source))}, line {number} is no object; each line is one, such as "
        '{"path": "a.jpg", "label": "cat"}',
    )
    return value
