"""A text file of paths of images, one a line, in place of the folder that holds them.

A path counts from the folder of the list. What is listed has to be there: a list says what is
meant.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from data.disks import explain
from data.folder.images import Listing, is_image_name, list_names
from data.folder.walk import Found
from data.settings import UserError, require
from data.text import count, name_some, printable

_MAX_LINE = 1 << 16  # bytes: no path is as long
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TABLE_MARKS = ",;\t "  # between a path and what a table has beside it


def read_list(path: Path, key: str) -> Listing:
    """Read a list, and look at the files that it names; no image is opened.

    Args:
        path: The list.
        key: The configuration's key, for messages.

    Returns:
        The images; their paths are as in the list, without `./`.

    Raises:
        UserError: It is no list, is empty, or names what is not there, no file, or a file twice.
    """
    what = f"{key}={printable(str(path))}"
    names = list(_names(path, what))
    require(len(names) > 0, f"{what} is empty; write the path of an image a line")
    found, missing, folders = Found(), list[str](), list[str]()
    files: dict[tuple[int, int], str] = {}
    for name in names:
        try:
            status = os.stat(path.parent / name)  # noqa: PTH116 - many files
        except FileNotFoundError:
            missing.append(name)
            continue
        except (OSError, ValueError) as error:
            found.unreadable[name] = _reason(error)
            continue
        if stat.S_ISDIR(status.st_mode):
            folders.append(name)
            continue
        if not stat.S_ISREG(status.st_mode):
            found.special.append(name)
            continue
        twin = files.setdefault((status.st_dev, status.st_ino), name)
        require(
            twin is name or status.st_ino == 0,
            f"{what} names one file twice: {printable(twin)} and {printable(name)}; name each once",
        )
        found.sizes[name], found.mtimes[name] = status.st_size, status.st_mtime_ns
    _require_there(missing, len(names), what)
    require(
        not folders,
        f"{what} names {count(len(folders), 'folder')} ({name_some(folders)}), and a list names "
        "files; to read a folder, name the folder itself in place of the list",
    )
    return list_names(path.parent, found)


def _names(path: Path, what: str) -> Iterator[str]:
    """Yield the paths of a list as this system writes them."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), start=1):
                own = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                _require_path(own, f"{what}, line {number}")
                name = os.fsdecode(own.rstrip(b"\r\n"))
                if name.strip():
                    yield _plain(name)
    except OSError as error:
        raise UserError(f"{what} cannot be read: {explain(error)}") from error


def _require_path(line: bytes, where: str) -> None:
    require(
        b"\0" not in line and len(line) < _MAX_LINE,
        f"{where} is no path; a list is a text file in UTF-8 with the path of an image a line",
    )
    require(
        b"://" not in line,
        f"{where} is a URL; images are read from this machine alone: fetch them, or make shards, "
        "which may lie on a server",
    )


def _plain(name: str) -> str:
    """Write a path as it is found below a folder, if it leads down alone."""
    return name if ".." in name.split("/") else os.path.normpath(name)


def _require_there(missing: list[str], number: int, what: str) -> None:
    if not missing:
        return
    verb = "is" if len(missing) == 1 else "are"
    is_table = all(_is_row(name) for name in missing)
    remedy = (
        "a line holds one path and nothing beside it"
        if is_table
        else "mend the paths, which count from the folder of the list, or leave them out"
    )
    raise UserError(
        f"{what}: {len(missing):,} of {count(number, 'file')} {verb} not there "
        f"({name_some(missing)}); {remedy}"
    )


def _is_row(line: str) -> bool:
    """Tell whether a line is rather a row of a table that begins with a path."""
    return not is_image_name(line) and any(
        is_image_name(line.split(mark)[0]) for mark in _TABLE_MARKS if mark in line
    )


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
