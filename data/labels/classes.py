"""Class names: the files that hold them, and one numbering for shards whose files differ.

A `cls` member holds a number, and `classes.txt` in the shard's folder says which class that is. Two
folders may number differently, such as a test folder that lacks classes. So labels are compared by
name wherever there are names, and renumbered where they are read.
"""

import codecs
import json
import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.disks import explain
from data.index.files import FileTable
from data.index.manifest import Manifest, Shard, split_location
from data.settings import UserError, require
from data.storage.files import read_file
from data.storage.locations import Missing, is_remote, public_name
from data.text import printable

CLASSES_NAME = "classes.txt"
_MAX_BYTES = 64 << 20  # of a list of classes that is taken from a server
_MARKS = (  # of encodings that say what they are; the longer ones first
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_logger = logging.getLogger(__name__)


# ---------------------------------------------------------------- files of names


def read_classes(path: Path, source: str | None = None) -> list[str]:
    """Read a file of class names: one a line, the first line is class 0.

    Args:
        path: The file.
        source: What messages call it; default: its path.

    Raises:
        UserError: It cannot be read, or it is none; the line is named.
    """
    source = source or str(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{source}: no such file") from error
    except OSError as error:
        raise UserError(f"{source} cannot be read: {explain(error)}") from error
    return parse_classes(content, source)


def parse_classes(content: bytes, source: str) -> list[str]:
    """Return the class names of a file's content.

    A byte order mark, blanks around a name and blank lines at the end mean nothing. Letters with
    accents have one spelling (NFC): macOS writes them in two parts.

    Args:
        content: In UTF-8, or in UTF-16 or UTF-32 with a byte order mark.
        source: What messages call the file.

    Raises:
        UserError: A line is not text, blank or there twice, or there is none.
    """
    text = decode(content, source).replace("\r\n", "\n").replace("\r", "\n").rstrip()
    names = [unicodedata.normalize("NFC", line.strip()) for line in text.split("\n")]
    require(text != "", f"{source} is empty; write a class name a line")
    lines: dict[str, int] = {}
    for line, name in enumerate(names, start=1):
        _check_name(name, f"{source}, line {line}")
        require(
            name not in lines,
            f"{source}: lines {lines.get(name)} and {line} both say {printable(name)}; each class "
            "has one line and a name of its own",
        )
        lines[name] = line
    return names


def _check_name(name: str, where: str) -> None:
    require(
        name != "",
        f"{where} is blank, but each line is a class and the first is class 0; take it out, or "
        "name the class",
    )
    require(
        "\0" not in name,
        f"{where} holds NUL bytes, as a table or UTF-16 without its mark does; save it as UTF-8",
    )


def decode(content: bytes, source: str) -> str:
    """Return a file's text: UTF-8, or what its byte order mark says.

    Raises:
        UserError: It is not; the line is named.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{source}, line {line} is not {encoding}; save the file as UTF-8"
        ) from error


# ---------------------------------------------------------------- the lists beside shards


class ClassList(NamedTuple):
    """The classes of a file, in order of their numbers."""

    file: str
    names: list[str]


class Beside(NamedTuple):
    """The lists of classes beside a split's shards.

    Attributes:
        lists: One a folder; None where there is none.
        folders: int32 (number of shards,), the place of each shard's folder there.
    """

    lists: list[ClassList | None]
    folders: np.ndarray

    @property
    def named(self) -> list[ClassList]:
        """Those that there are."""
        return [entry for entry in self.lists if entry is not None]

    @property
    def union(self) -> list[str]:
        """All names, in the order in which they first occur."""
        return list(dict.fromkeys(name for entry in self.named for name in entry.names))


def lists_beside(manifest: Manifest) -> Beside:
    """Read the list of classes in each folder of shards, on this machine or a server.

    Of a folder of images, they are the folders in it.

    Raises:
        RunStopped: A server cannot be asked.
        UserError: A list is none.
    """
    places: dict[str, int] = {}
    lists: list[ClassList | None] = []
    folders = np.empty(len(manifest.shards), np.int32)
    for shard, location in enumerate(manifest.shards.locations):
        is_tar = shard not in manifest.shards.tables
        folder = split_location(location).folder if is_tar else location
        if folder not in places:
            places[folder] = len(places)
            lists.append(
                _list_beside(location, manifest) if is_tar else _folders_of(manifest.shards[shard])
            )
        folders[shard] = places[folder]
    return Beside(lists, folders)


def _folders_of(shard: Shard) -> ClassList | None:
    """Return the classes of a folder or list of images, or None."""
    classes = FileTable.load(shard.index_path).classes
    return ClassList(f"the folders of {shard.location}", list(classes)) if classes else None


def _list_beside(location: str, manifest: Manifest) -> ClassList | None:
    """Return the list beside a shard, or None."""
    if not is_remote(location):
        path = Path(location).with_name(CLASSES_NAME)
        return ClassList(str(path), read_classes(path)) if path.is_file() else None
    place = split_location(location)
    file = f"{place.folder}/{CLASSES_NAME}{place.query}"
    try:
        content = read_file(file, manifest.storage, _MAX_BYTES)
    except Missing:
        return None
    return ClassList(public_name(file), parse_classes(content, public_name(file)))


# ---------------------------------------------------------------- one numbering


@dataclass(frozen=True, eq=False)
class Numbering:
    """From the numbers in each shard to those of the common list.

    Attributes:
        beside: The lists that the numbers in the shards follow.
        tables: One a list, int64: number -> common number, -1 of a class that is not common; None
            where the numbers are the common ones.
    """

    beside: Beside
    tables: list[np.ndarray | None]

    @property
    def fingerprint(self) -> str:
        """The sha256 (hex) of what it makes of the numbers in each shard."""
        tables = [None if table is None else table.tolist() for table in self.tables]
        digest = sha256(json.dumps(tables).encode())
        digest.update(self.beside.folders.tobytes())
        return digest.hexdigest()

    def __call__(self, shard: int, number: int) -> int:
        """Return the common number.

        Raises:
            UnknownClass: There is none.
        """
        place = int(self.beside.folders[shard])
        table, entry = self.tables[place], self.beside.lists[place]
        if table is None or entry is None:
            return number
        if number >= len(table):
            raise UnknownClass(number, None, entry)
        if table[number] < 0:
            raise UnknownClass(number, entry.names[number], entry)
        return int(table[number])


def as_it_is(_: int, number: int) -> int:
    """Return a shard's number where it is the common one."""
    return number


class UnknownClass(Exception):  # noqa: N818 - whoever reads labels says what it means
    """A class number of a shard that has no common one.

    Args:
        number: In the shard.
        name: In its list; None where the list is too short.
        found: That list.
    """

    def __init__(self, number: int, name: str | None, found: ClassList) -> None:
        super().__init__(number, name, found)
        self.number, self.name, self.found = number, name, found


class Classes(NamedTuple):
    """The classes of two splits under one numbering.

    Attributes:
        names: In order of the common numbers; None where nothing names them.
        file: Where the names stand, for messages.
        train: The numbering of the training shards; None where theirs is the common one.
        val: Of the validation shards, likewise.
    """

    names: list[str] | None
    file: str
    train: Numbering | None
    val: Numbering | None


def match_classes(train: Manifest, val: Manifest, path: str | None, group: str) -> Classes:
    """Bring the classes of two splits under one numbering, by their names.

    The common list is `classes`, else that beside the training shards; of several, all their
    names in the order in which they first occur. A list that shares no name with those beside the
    shards gives their classes other names, line by line.

    Args:
        train: The training shards.
        val: The validation shards.
        path: The configuration's file of names, or None.
        group: Where the keys `train`, `val` and `classes` are, for messages.

    Raises:
        RunStopped: A server cannot be asked.
        UserError: A list is none, or one split has names and the other has not.
    """
    given = None
    if path is not None:
        given = read_classes(Path(path).expanduser(), f"{group}.classes={path}")
    own = {"train": lists_beside(train), "val": lists_beside(val)}
    union = own["train"].union
    common = names = given if given is not None else union
    if given is not None and union and not set(union) & set(given):
        common = union
        first = f"{printable(union[0])} is called {printable(given[0])}, and so on, line by line"
        _logger.info("%s.classes gives other names to the classes: %s", group, first)
    if given is None:
        _refuse_half_named(own, group)
    file = f"{group}.classes={path}" if path else _files(own["train"])
    numberings = [_numbering(beside, common) for beside in own.values()]
    return Classes(names or None, file, *numberings)


def _files(beside: Beside) -> str:
    return " and ".join(entry.file for entry in beside.named[:2])


def _numbering(beside: Beside, common: Sequence[str]) -> Numbering | None:
    numbers = {name: number for number, name in enumerate(common)}
    tables = [
        None
        if entry is None or entry.names == common
        else np.array([numbers.get(name, -1) for name in entry.names], np.int64)
        for entry in beside.lists
    ]
    return None if all(table is None for table in tables) else Numbering(beside, tables)


def _refuse_half_named(own: dict[str, Beside], group: str) -> None:
    """Raise `UserError` where some of the folders of shards have a list and others have none."""
    named = [(key, entry) for key, beside in own.items() for entry in beside.named]
    bare = [key for key, beside in own.items() if None in beside.lists]
    if not (named and bare):
        return
    [(with_names, entry), without] = named[0], bare[0]
    what = "other shards have" if with_names == without else f"shards of {group}.{without} have"
    raise UserError(
        f"{entry.file} names the classes of {group}.{with_names}, but {what} no {CLASSES_NAME} "
        f"beside them, so their class numbers may mean others; put one there, or set "
        f"{group}.classes=FILE to a list that holds for all of them"
    )
