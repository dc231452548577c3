"""A Hugging Face dataset as a source: parquet files, a folder of them, or `save_to_disk`'s Arrow.

Files are read in batches of rows, once to list the images, and once for each window of images that
fits into memory.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from data.disks import explain, one_line
from data.folder.images import extension_of, is_image_name, list_names
from data.folder.plan import SourceImage, SourceImages
from data.folder.walk import Found
from data.reading.bad import MAX_MEMBER_BYTES
from data.settings import RunStopped, UserError, require
from data.sources.arrow import ArrowFile, class_names, open_file
from data.sources.options import TOO_LARGE, SourceOptions, windows
from data.sources.rows import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    Row,
    choose_caption_column,
    choose_column,
    label_rows,
    read_caption,
    split_of,
)
from data.text import count, name_some, printable

DATASET_ENDINGS = ("parquet", "arrow")
_NO_IMAGE = ("row without an image", "rows without an image")
_NO_FORMAT = ("row whose bytes are no image", "rows whose bytes are no image")
_ENDINGS = {"JPEG": "jpg", "JPEG2000": "jp2"}
_logger = logging.getLogger(__name__)


class _File(NamedTuple):
    """A file of a dataset, and the split that its name says."""

    path: Path
    split: str | None


class _Columns(NamedTuple):
    """The columns that are used; None where there is none."""

    image: str
    label: str | None
    caption: str | None


class _Found(NamedTuple):
    """An image that was listed: its row, its size, and its place (its file's number, its row)."""

    row: Row
    num_bytes: int
    place: tuple[int, int] | Path  # a path where the table holds none of its bytes


def dataset_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """Choose the parquet and Arrow files among the files below a folder."""
    paths = [folder / name for name in names if extension_of(name) in DATASET_ENDINGS]
    return [path for path in paths if not path.name.startswith(("cache-", "tmp"))]


def find_in_dataset(source: Path, paths: Sequence[Path], options: SourceOptions) -> SourceImages:
    """List the images of a dataset.

    Args:
        source: A parquet or Arrow file, or a folder that holds some.
        paths: Its files, in their order. Those of the split validation go to val-*.tar; those of
            the split test are left out where there is another split.
        options: How it is looked at.

    Raises:
        UserError: It holds no images, or they or their labels are of a kind that is not read.
    """
    root = source if source.is_dir() else source.parent
    files = _splits(source, paths)
    tests = [file.path for file in files if file.split == "test"]
    files = [file for file in files if file.split != "test"]
    found = Found()
    images, columns, names = _list(source, root, files, options, found)
    for image in images:
        found.sizes[image.row.name] = image.num_bytes
    places = {image.row.name: image.place for image in images}
    listing = list_names(source, found)
    if not options.skip_unreadable:
        listing.require_none_unreadable(
            "SOURCE", "mend it, or leave such rows out by --skip-unreadable"
        )
    rows = [image.row for image in images]
    read = partial(_read, [file.path for file in files], columns.image, places)
    own = label_rows(listing, rows, read, options, names)
    used = f"{count(len(files), 'file')} of a dataset, images by {printable(columns.image)}"
    used += f", labels by {printable(columns.label)}" if columns.label and own.classes else ""
    used += f", captions by {printable(columns.caption)}" if columns.caption else ""
    left_out = (*own.left_out, *([_describe_tests(tests)] if tests else []))
    return SourceImages(own.images, own.classes, left_out, own.why_unlabelled, own.read, used)


def _describe_tests(paths: Sequence[Path]) -> str:
    return (
        f"{count(len(paths), 'file')} of the split test ({name_some([p.name for p in paths])}): "
        "a SOURCE of its own, with an OUT of its own"
    )


def _splits(source: Path, paths: Sequence[Path]) -> list[_File]:
    """Tell the split of each file, by its name or its folder's."""
    top = source if source.is_dir() else source.parent
    files = [_File(path, split_of(path.name) or split_of(path.parent.name)) for path in paths]
    configurations = sorted(
        {str(path.relative_to(top).parent) for path in paths if source.is_dir()}
    )
    by_split: dict[str | None, set[Path]] = {}
    for file in files:
        is_split = split_of(file.path.parent.name) is not None
        folder = file.path.parent.parent if is_split else file.path.parent
        by_split.setdefault(file.split, set()).add(folder)
    require(
        all(len(folders) == 1 for folders in by_split.values()),
        f"SOURCE={printable(str(source))} holds several datasets, or configurations of one "
        f"({name_some(configurations, 6)}); give one of these folders as SOURCE",
    )
    if not {split for split in by_split if split != "test"}:
        return [_File(path, None) for path in paths]  # a SOURCE of test images alone
    if set(by_split) == {"validation"}:
        return [_File(path, None) for path in paths]
    return files


def _list(
    source: Path, root: Path, files: Sequence[_File], options: SourceOptions, found: Found
) -> tuple[list[_Found], _Columns, list[str] | None]:
    """List all rows; return the images, the columns used, and the classes' names if it has them."""
    images: list[_Found] = []
    columns: _Columns | None = None
    names: list[str] | None = None
    has_val = any(file.split == "validation" for file in files)
    for number, file in enumerate(files):
        with open_file(file.path) as table:
            own = _columns(file.path, table, options)
            require(
                columns in (None, own),
                f"SOURCE={printable(str(source))}: {file.path.name} has other columns than "
                f"{files[0].path.name}; give files of one table",
            )
            columns = own
            own_names = class_names(table, own.label, root) if own.label else None
            require(
                names is None or own_names == names,
                f"SOURCE={printable(str(source))}: {file.path.name} names other classes than the "
                "files before it; make shards of each by itself, the second with --classes",
            )
            names = own_names
            is_val = file.split == "validation" if has_val else None
            images += _rows(file.path, table, number, own, is_val, found)
    assert columns is not None
    return _with_names(images), columns, names


def _columns(path: Path, table: ArrowFile, options: SourceOptions) -> _Columns:
    """Choose the columns of images, labels and captions, and refuse those of other types."""
    source, names = printable(str(path)), table.columns
    image = choose_column(names, options.image_column, IMAGE_COLUMNS, "--image-column", path)
    if image is None:
        raise UserError(
            f"SOURCE={source} has no column image or img, but {name_some(names, 12)}; give the one "
            "with the images as --image-column NAME, if there is one"
        )
    require(
        table.is_image(image),
        f"SOURCE={source}: the column {printable(image)} holds {table.type_of(image)}, no images: "
        "those are encoded files, as bytes or as a struct of bytes and path; give another "
        "--image-column, or save decoded arrays as .png or .npy files",
    )
    caption = choose_caption_column(names, options, path)
    require(
        caption is None or table.is_caption(caption),
        f"SOURCE={source}: the column {printable(str(caption))} holds no texts, nor lists of them; "
        "give another --caption-column",
    )
    label = choose_column(names, options.label_column, LABEL_COLUMNS, "--label-column", path)
    if label is None or options.is_unlabelled:
        return _Columns(image, label if options.label_column else None, caption)
    require(
        table.is_label(label),
        f"SOURCE={source}: the column {printable(label)} holds {table.type_of(label)}, no label an "
        "image, which is a whole number or a name; give another --label-column, or --unlabelled",
    )
    return _Columns(image, label, caption)


def _rows(
    path: Path,
    table: ArrowFile,
    number: int,
    columns: _Columns,
    is_val: bool | None,
    found: Found,
) -> Iterator[_Found]:
    """Yield the images of a file; a name that is not the dataset's own begins with "<"."""
    for index, image, label, text in table.rows(*columns):
        where = f"{path.name} row {index}"
        content, name = image
        captions = read_caption(text, where, str(columns.caption), path) if columns.caption else ()
        row = Row(where, name or "", _label(label), is_val, captions)
        if not content and (name is None or content is not None):
            found.refuse(_NO_IMAGE, where)
        elif content is None:
            yield from _elsewhere(path, row, found)
        elif len(content) > MAX_MEMBER_BYTES:
            found.refuse(TOO_LARGE, where)
        else:
            ending = "" if is_image_name(row.name) else _sniff(content)
            if ending is None:
                found.refuse(_NO_FORMAT, where)
                continue
            yield _Found(replace(row, name=row.name + ending), len(content), (number, index))


def _label(value: object) -> str | int | None:
    """Return a label; -1 and an empty name are none, as in splits without labels."""
    if isinstance(value, str):
        return value.strip() or None
    return value if isinstance(value, int) and value != -1 else None


def _elsewhere(path: Path, row: Row, found: Found) -> Iterator[_Found]:
    """Yield an image of which the table says the path alone, relative to the table's own folder."""
    place = path.parent / row.name
    try:
        num_bytes = place.stat().st_size
    except (OSError, ValueError) as error:
        found.unreadable[f"{row.where}: {row.name}"] = one_line(error)
        return
    yield _Found(row, num_bytes, place)


def _sniff(content: bytes) -> str | None:
    """Return the ending of an image's format, with its dot; None if it is none that is known."""
    if content.startswith(b"\xff\xd8\xff"):
        return ".jpg"
    if content.startswith(b"\x93NUMPY"):
        return ".npy"
    try:
        with Image.open(BytesIO(content)) as image:
            kind = str(image.format)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    ending = "." + _ENDINGS.get(kind, kind.lower())
    return ending if is_image_name(ending.replace(".", "x.")) else None


def _with_names(images: Sequence[_Found]) -> list[_Found]:
    """Give each image a name of its own: the dataset's where it has one for each, else its row."""
    names = Counter(image.row.name for image in images)
    is_named = all(times == 1 and not name.startswith(".") for name, times in names.items())
    if is_named:
        return list(images)
    return [
        _Found(_named(image.row, place), image.num_bytes, image.place)
        for place, image in enumerate(images)
    ]


def _named(row: Row, place: int) -> Row:
    return replace(row, name=f"{place:08d}{Path('x' + row.name).suffix}")


# ---------------------------------------------------------------- reading


def _read(
    paths: Sequence[Path],
    column: str,
    places: dict[str, tuple[int, int] | Path],
    images: Sequence[SourceImage],
) -> Iterator[bytes]:
    """Read a window of images in one passage over the files, then give them in their order."""
    own = list(windows(images))
    if len(own) > 1:
        _logger.info(
            "the dataset is read %s, as its images go to shards in a drawn order; with "
            "--no-shuffle it is read once",
            count(len(own), "time"),
        )
    for window in own:
        by_file: dict[int, set[int]] = {}
        for image in window:
            place = places[image.path]
            if isinstance(place, tuple):
                by_file.setdefault(place[0], set()).add(place[1])
        contents = {
            (number, index): content
            for number, rows in by_file.items()
            for index, content in _contents(paths[number], column, rows)
        }
        for image in window:
            place = places[image.path]
            yield _file(place) if isinstance(place, Path) else contents.pop(place, b"")


def _contents(path: Path, column: str, rows: set[int]) -> Iterator[tuple[int, bytes]]:
    with open_file(path) as table:
        for row in table.rows(column, wanted=rows):
            yield row.number, row.image[0] or b""


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise RunStopped(f"{path}: {explain(error)}; then the same command goes on") from error
