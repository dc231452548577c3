"""Walking a folder: each real folder once; what cannot be read as a file is named."""

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_LINK_TO_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
# What systems leave beside a user's files; names in lower case.
_DROPPINGS = frozenset({".ds_store", ".trashes", ".fseventsd", "icon\r", "__macosx"}).union(
    ("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    ("@eadir", "lost+found"),
)
_Identity = tuple[int, int] | str  # device and inode; the path where a disk has no inodes


@dataclass(frozen=True)
class Found:
    """The files below a folder; names are paths below it, with "/".

    Attributes:
        sizes: The size of each file.
        mtimes: When each was changed last, in ns.
        links: Files that are links to files.
        folders: Each folder that was entered, and links to folders.
        broken: Links to nothing.
        special: Pipes, sockets and devices, which are never opened.
        repeated: Folders that were reached before; and as what: "" is the top or one above it.
        droppings: What macOS or Windows left, such as ._a.jpg; such folders are not entered.
        hidden: Other names that begin with a dot; such folders are not entered.
        unreadable: Folders and files that cannot be looked at, and why.
        refused: What a source other than a folder does not give; the names by what they are, in
            the singular and in the plural.
    """

    sizes: dict[str, int] = field(default_factory=dict[str, int])
    mtimes: dict[str, int] = field(default_factory=dict[str, int])
    links: list[str] = field(default_factory=list[str])
    folders: list[str] = field(default_factory=list[str])
    broken: list[str] = field(default_factory=list[str])
    special: list[str] = field(default_factory=list[str])
    repeated: dict[str, str] = field(default_factory=dict[str, str])
    droppings: list[str] = field(default_factory=list[str])
    hidden: list[str] = field(default_factory=list[str])
    unreadable: dict[str, str] = field(default_factory=dict[str, str])
    refused: dict[tuple[str, str], list[str]] = field(
        default_factory=dict[tuple[str, str], list[str]]
    )

    def refuse(self, nouns: tuple[str, str], name: str) -> None:
        """Note a name under what it is."""
        self.refused.setdefault(nouns, []).append(name)


def walk(top: Path) -> Found:
    """List what lies below a folder. Links to folders are followed, but after all real folders.

    So a folder is listed under its own path rather than a link's, and a link to a folder that
    holds it ends there.
    """
    found = Found()
    seen = dict.fromkeys(_above(top), "")
    real, linked = [""], deque[str]()
    while real or linked:
        path = real.pop() if real else linked.popleft()
        if path and not _is_new(top, path, seen, found):
            continue
        inside = list(_entries(top, path, found))
        linked += [name for name, is_link in inside if is_link]
        real += [name for name, is_link in reversed(inside) if not is_link]
        found.folders.extend(name for name, _ in inside)
    return found


def _above(top: Path) -> Iterator[_Identity]:
    """Identify a folder and all that it lies in."""
    yield _identify(top)
    for folder in top.resolve().parents:
        with contextlib.suppress(OSError):  # a link that leads there is closed, too
            yield _identify(folder)


def _identify(folder: Path) -> _Identity:
    status = folder.stat()
    return (status.st_dev, status.st_ino) if status.st_ino else str(folder.resolve())


def _is_new(top: Path, path: str, seen: dict[_Identity, str], found: Found) -> bool:
    """Tell whether a folder is reached for the first time; note it either way."""
    identity = _identify(top / path)
    if identity in seen:
        found.repeated[path] = seen[identity]
        return False
    seen[identity] = path
    return True


def _entries(top: Path, path: str, found: Found) -> Iterator[tuple[str, bool]]:
    """Note what lies in a folder; yield its folders in order, and whether each is a link."""
    try:
        with os.scandir(top / path) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        found.unreadable[path] = error.strerror or str(error)
        return
    for entry in entries:
        name = f"{path}/{entry.name}" if path else entry.name
        if is_noted_by_name(entry.name, name, found):
            continue
        mode = _note(entry, name, found)
        if stat.S_ISDIR(mode):
            yield name, entry.is_symlink()


def is_noted_by_name(own: str, name: str, found: Found) -> bool:
    """Note what is hidden, or what a system left; tell whether it was that."""
    if own.startswith("._") or own.lower() in _DROPPINGS:
        found.droppings.append(name)
    elif own.startswith("."):
        found.hidden.append(name)
    else:
        return False
    return True


def _note(entry: os.DirEntry[str], name: str, found: Found) -> int:
    """Note a file by what it is; return its mode, 0 if it cannot be looked at."""
    try:
        status = entry.stat()
    except OSError as error:
        if entry.is_symlink() and error.errno in _LINK_TO_NOTHING:
            found.broken.append(name)
        else:
            found.unreadable[name] = error.strerror or str(error)
        return 0
    if stat.S_ISREG(status.st_mode):
        found.sizes[name], found.mtimes[name] = status.st_size, status.st_mtime_ns
        if entry.is_symlink():
            found.links.append(name)
    elif not stat.S_ISDIR(status.st_mode):
        found.special.append(name)
    return status.st_mode


def is_readable(path: str | Path) -> bool:
    """Tell whether this process may read a file, without opening it."""
    return os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)
