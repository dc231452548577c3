"""Listing a folder of images, or a list of paths, into a table; and what changed since.

A table lies in the user's cache and never in the folder, under its own sha256. So the former table
is still there when a file has changed, and it can be said which.
"""

import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, NoReturn

from data.disks import explain, network_disk
from data.folder.classes import class_names, in_no_class, label_folders
from data.folder.images import Listing, list_images
from data.folder.lists import read_list
from data.folder.plan import order_key
from data.index.files import NO_CLASS, TABLE_SUFFIX, File, FileTable
from data.settings import RunStopped, UserError
from data.storage.locations import is_list, is_remote
from data.text import count, name_some, printable

_NUM_KEPT = 8  # tables of one folder
_MANY = 1_000_000  # files: from here on a start takes long
_PAGE = "docs/how-to/read-folders.md"
_logger = logging.getLogger(__name__)


class Listed(NamedTuple):
    """A folder or list, and the table of its files.

    Attributes:
        table: Its images.
        path: Where the table lies.
    """

    table: FileTable
    path: Path


def is_images(location: str) -> bool:
    """Tell whether a location is a folder of images, or a list of them, and no shard."""
    if location.endswith(".tar") or is_remote(location):
        return False
    return is_list(location) or os.path.isdir(location)  # noqa: PTH112 - 1e5 locations


def folder_of(location: str) -> Path:
    """Return the folder from which the paths of a table count."""
    return Path(location).parent if is_list(location) else Path(location)


def list_files(location: str, key: str, folder: Path, begun: Path | None = None) -> Listed:
    """List the images of a folder or list, and say what is left out and what has changed.

    Args:
        location: The absolute path of the folder or list.
        key: The configuration's key, for messages.
        folder: For tables of this location.
        begun: The table on which a run was begun, to which that run keeps while most of its files
            are as they were.

    Raises:
        RunStopped: The table cannot be written.
        UserError: There is no image, or something that cannot be read.
    """
    listing = _list(location, key)
    table = _tabulate(listing)
    name = printable(location)
    _say_what_is_there(name, table, listing)
    _advise(name, len(table), network_disk(folder_of(location)))
    former = _load(begun) if begun is not None else None
    if former is not None and begun is not None and _keeps_to(former, table, name):
        return Listed(former, begun)
    return Listed(table, _kept(table, folder, name))


def refuse_unlabelled(location: str, key: str) -> NoReturn:
    """Raise `UserError`: the folders of these images are no classes; it says why."""
    listing = _list(location, key)
    why = in_no_class(listing)
    if why is None:
        label_folders(listing, None, key)
    name = printable(location)
    example = f"{name}/cat/1.jpg" if not is_list(location) else "cat/1.jpg"
    raise UserError(
        f"{key}={name} has no labels, as images lie {why}; put each image into a folder of its "
        f"class, as in {example}"
    )


def differences(old: FileTable, new: FileTable) -> str:
    """Say which files were changed, came, and went; empty if none."""
    before, now = old.states, new.states
    changed = [path for path, state in now.items() if before.get(path, state) != state]
    come = [path for path in now if path not in before]
    gone = [path for path in before if path not in now]
    parts = [
        f"{count(len(paths), 'file')} {'is' if len(paths) == 1 else 'are'} {what} "
        f"({name_some(sorted(paths))})"
        for what, paths in (("changed", changed), ("new", come), ("gone", gone))
        if paths
    ]
    if not parts and old.sha256 != new.sha256:
        parts = ["the classes have other names"]
    return "; ".join(parts)


# ---------------------------------------------------------------- listing


def _list(location: str, key: str) -> Listing:
    path = Path(location)
    listing = read_list(path, key) if is_list(location) else list_images(path)
    listing.require_readable(key)
    listing.require_images(key)
    return listing


def _tabulate(listing: Listing) -> FileTable:
    """Make a table of a listing, with classes if its folders can be classes."""
    labels, classes = _classes(listing)
    sizes, mtimes = listing.found.sizes, listing.found.mtimes
    files = [
        File(path, sizes[path], mtimes[path], labels.get(path.partition("/")[0], NO_CLASS))
        for path in sorted(listing.images, key=order_key)
    ]
    return FileTable.of(files, classes)


def _classes(listing: Listing) -> tuple[dict[str, int], Sequence[str]]:
    """Number the folders as classes; none where they cannot be, which only labels need."""
    if in_no_class(listing) is not None:
        return {}, ()
    try:
        labels = label_folders(listing, None, "")
    except UserError:
        return {}, ()
    return labels, class_names(list(labels))


def _say_what_is_there(name: str, table: FileTable, listing: Listing) -> None:
    parts = [count(len(table), "image")]
    if table.classes:
        parts.append(f"in {count(len(table.classes), 'folder')}")
    if links := len(listing.found.links):
        parts.append(f"({count(links, 'link')} among the files)")
    left_out = listing.left_out()
    tail = f"; left out: {'; '.join(left_out)}" if left_out else ""
    _logger.info("%s: %s%s", name, " ".join(parts), tail)


@cache
def _advise(name: str, number: int, disk: str | None) -> None:
    """Say once when shards are worth making."""
    reasons = [f"lies on a network disk ({disk})"] * (disk is not None)
    reasons += [f"has {count(number, 'file')}"] * (number > _MANY)
    if reasons:
        _logger.warning(
            "%s %s: shards are read faster there, and start at once; see %s",
            name,
            " and ".join(reasons),
            _PAGE,
        )


# ---------------------------------------------------------------- keeping


def _keeps_to(former: FileTable, table: FileTable, name: str) -> bool:
    """Tell whether a run goes on with the table on which it was begun, and say what differs."""
    if former.sha256 == table.sha256:
        return True
    now = table.states
    num_same = sum(now.get(path) == state for path, state in former.states.items())
    if 2 * num_same < len(former):
        return False
    _logger.warning(
        "%s: since the run was begun, %s; the run keeps to the images with which it began, and "
        "those that are changed or gone are named as bad samples",
        name,
        differences(former, table),
    )
    return True


def _kept(table: FileTable, folder: Path, name: str) -> Path:
    """Return where a table lies, writing it if it is not there; say what changed since the last."""
    path = folder / f"{table.sha256[:32]}{TABLE_SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tables = sorted(folder.glob(f"*{TABLE_SUFFIX}"), key=lambda file: file.stat().st_mtime_ns)
        is_there = _load(path) is not None
        last = _load(tables[-1]) if tables and not is_there else None
        if last is not None:
            _logger.info("%s: since it was listed last, %s", name, differences(last, table))
        if is_there:
            os.utime(path)
        else:
            table.save(path)
        for old in tables[: -(_NUM_KEPT - 1)]:
            if old != path:
                old.unlink(missing_ok=True)
    except OSError as error:
        raise RunStopped(
            f"the table of {name} goes to {folder}, which cannot be written: {explain(error)}; "
            "XDG_CACHE_HOME can name another folder"
        ) from error
    return path


def _load(path: Path) -> FileTable | None:
    """Load a table; None if it is none."""
    try:
        return FileTable.load(path)
    except (UserError, OSError):
        return None
