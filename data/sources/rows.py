"""Rows of a table as images with labels: what tables of paths and datasets have in common."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from data.folder.classes import number_classes
from data.folder.images import Listing
from data.folder.plan import Reader, SourceImage, SourceImages, unique_keys
from data.settings import UserError, require
from data.sources.captions import require_captions
from data.sources.options import SourceOptions
from data.text import count, is_text, name_some, printable

IMAGE_COLUMNS = (
    *("image", "img", "path", "file", "filename", "file_name", "filepath", "image_path"),
    *("picture", "photo", "jpg", "jpeg", "png", "image_bytes", "bytes"),
)
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "sentence", "sentences", "description")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "fine_label", "target", "category")
_VAL = re.compile(r"(val|valid|validation|dev)(?![a-z])", re.IGNORECASE)
_TRAIN = re.compile(r"train(ing)?(?![a-z])", re.IGNORECASE)
_TEST = re.compile(r"test(ing)?(?![a-z])", re.IGNORECASE)
SPLITS = {"train": _TRAIN, "validation": _VAL, "test": _TEST}


@dataclass(frozen=True)
class Row:
    """A row of a table that holds an image.

    Attributes:
        where: Its place, for messages, such as "line 7".
        name: The image's path as the table says it, or a name that is made for it.
        label: As the table says it; None where it says none.
        is_val: Whether the dataset has it for validation; None where it does not say.
        captions: As the table says them, a line each.
    """

    where: str
    name: str
    label: str | int | None
    is_val: bool | None = None
    captions: tuple[str, ...] = ()


def choose_column(
    columns: Sequence[str], given: str | None, known: Sequence[str], option: str, source: Path
) -> str | None:
    """Return the column that the user names, or the first of the known names; None for none.

    Raises:
        UserError: The table has no column of the given name.
    """
    if given is not None:
        require(
            given in columns,
            f"{option}={given} is no column of SOURCE={printable(str(source))}, which has "
            f"{name_some(columns, 12)}",
        )
        return given
    by_name = {name.strip().lower(): name for name in reversed(columns)}
    return next((by_name[name] for name in known if name in by_name), None)


def choose_caption_column(
    columns: Sequence[str], options: SourceOptions, source: Path
) -> str | None:
    """Return the column of the captions; None where none are taken.

    Raises:
        UserError: Captions are to be taken, and there is no such column.
    """
    if not options.captions:
        return None
    given, option = options.caption_column, "--caption-column"
    chosen = choose_column(columns, given, CAPTION_COLUMNS, option, source)
    require(
        chosen is not None,
        f"SOURCE={printable(str(source))} has no column caption or text for --captions, but "
        f"{name_some(columns, 12)}; give the one with the captions as --caption-column NAME",
    )
    return chosen


def read_caption(value: object, where: str, column: str, source: Path) -> tuple[str, ...]:
    """Return the captions of a cell, one or a list of them, each on one line; blank ones are none.

    Raises:
        UserError: It holds no text.
    """
    values = cast(list[object], value) if isinstance(value, list) else [value]
    texts = [text for text in values if isinstance(text, str)]
    require(
        len(texts) == sum(text is not None for text in values) and all(map(is_text, texts)),
        f"SOURCE={printable(str(source))}, {where}: {printable(column)} is no text, nor a list of "
        "texts; give the column of the captions as --caption-column NAME",
    )
    lines = (" ".join(text.replace("\ufeff", " ").split()) for text in texts)
    return tuple(line for line in lines if line)


def split_of(name: str) -> str | None:
    """Return the split that a name begins with: "train", "validation", "test" or None."""
    return next((split for split, words in SPLITS.items() if words.match(name)), None)


def label_rows(
    listing: Listing,
    rows: Sequence[Row],
    read: Reader,
    options: SourceOptions,
    names: Sequence[str] | None = None,
) -> SourceImages:
    """Make the images of a source of the rows of a table.

    Args:
        listing: What the rows' files are; of rows that are not among its images nothing is taken.
        rows: In the table's order, each with a name of its own.
        read: Reads the images.
        options: How the source is looked at.
        names: The classes' names where labels are numbers; None: the labels are the names.

    Raises:
        UserError: There is no image, some have a label and others none, or a label is no class.
    """
    listing.require_images("SOURCE")
    taken = set(listing.images)
    own = [row for row in rows if row.name in taken]
    why = _why_unlabelled(listing.folder, own, options)
    require(
        why is None or options.classes is None,
        "--classes numbers the classes of a SOURCE with labels, and "
        f"SOURCE={printable(str(listing.folder))} has none: {why}",
    )
    texts = [] if why else list(_texts(listing.folder, own, names))
    order = _order(texts) if names is None else list(names)
    source = printable(str(listing.folder))
    numbers = {} if why else number_classes(order, options.classes, "class name", source)
    labels = [numbers[text] for text in texts] if not why else [None] * len(own)
    keys = unique_keys([row.name for row in own])
    images = tuple(
        SourceImage(row.name, key, listing.found.sizes[row.name], label, row.is_val, row.captions)
        for row, key, label in zip(own, keys, labels, strict=True)
    )
    classes = tuple(numbers if options.classes is None else options.classes)
    source = SourceImages(images, classes, tuple(listing.left_out()), why, read)
    return require_captions(listing.folder, source, options)


def _why_unlabelled(source: Path, rows: Sequence[Row], options: SourceOptions) -> str | None:
    if options.is_unlabelled:
        require(
            options.label_column is None,
            f"--label-column={options.label_column} takes labels, and --unlabelled none; leave "
            "one of them out",
        )
        return "--unlabelled"
    bare = [f"{row.where}: {row.name}" for row in rows if row.label is None]
    if len(bare) == len(rows):
        return "the table gives none"
    require(
        not bare,
        f"SOURCE={printable(str(source))} gives no label to {count(len(bare), 'image')} of "
        f"{len(rows):,} ({name_some(bare)}); label them, take their rows out, or give --unlabelled",
    )
    return None


def _texts(source: Path, rows: Sequence[Row], names: Sequence[str] | None) -> Iterator[str]:
    """Yield the name of each row's class."""
    for row in rows:
        label = row.label
        if names is None or isinstance(label, str):
            yield str(label)
            continue
        assert label is not None
        require(
            0 <= label < len(names),
            f"SOURCE={printable(str(source))}, {row.where}: the label {label} is none of the "
            f"{count(len(names), 'class')} that the dataset names; mend it, or give --unlabelled",
        )
        yield names[label]


def _order(texts: Sequence[str]) -> list[str]:
    """Sort classes: by number where all are numbers, else by name."""
    names = set(texts)
    if all(re.fullmatch(r"-?\d{1,18}", name, re.ASCII) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def require_one_label(source: Path, first: Row, second: Row) -> None:
    """Raise `UserError` where two rows give an image two labels."""
    if first.label != second.label:
        raise UserError(
            f"SOURCE={printable(str(source))}: {first.where} and {second.where} give "
            f"{printable(first.name)} the labels {printable(str(first.label))} and "
            f"{printable(str(second.label))}, and an image has one; take one of them out"
        )
