"""Locations of files, and the protocols that are read (`PROTOCOLS`).

A location is an absolute path or a URL. What reads shards sees only `RangeFile`. Messages name a
URL by `public_name` alone: what could be a password or a signature appears in no log.
"""

import argparse
import errno
import fcntl
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from data.settings import RunStopped, UserError, require

_logger = logging.getLogger(__name__)

PROTOCOLS = ("http", "https", "s3", "gs", "hf")
_LIST_ENDINGS = (".txt", ".lst", ".list")
_URL = re.compile(r"([A-Za-z0-9+.:_-]*?)://(.*)", re.DOTALL)
# A host with a port, a bucket, or an S3 access point; nothing before an "@".
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.~%-]+)(:\d+)?|arn:[\w:.-]+")


@dataclass(frozen=True)
class Storage:
    """How remote files are read.

    Attributes:
        timeout_seconds: Silence after which a request is given up.
        retry_seconds: How long a request that fails is tried again before the run stops.
        cache_dir: Folder for what is read ahead; None reads nothing ahead.
        cache_bytes: The cache's largest size.
    """

    timeout_seconds: float = 30.0
    retry_seconds: float = 600.0
    cache_dir: Path | None = None
    cache_bytes: int = 0


class Version(NamedTuple):
    """Which content a location holds.

    Attributes:
        num_bytes: Its size.
        etag: As the server gives it; "mtime:" and its Last-Modified where it gives none; else None.
    """

    num_bytes: int
    etag: str | None


class Missing(RunStopped):
    """A remote file that is not there, or that the server hides (status 403, 404 or 410)."""


class RangeFile(Protocol):
    """A file of which any part can be read; for one thread of one process."""

    @property
    def num_bytes(self) -> int:
        """The file's size."""
        ...

    @property
    def version(self) -> Version:
        """The file's version: the one expected, or else the one first seen."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`; fewer only where the file ends."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


def take_lock(path: Path) -> int:
    """Lock a file, which is made if it is missing; the lock ends with the descriptor.

    POSIX locks belong to the process alone. Those of `flock` would pass to its children, which
    outlive a killed run for some seconds. On a disk that knows no locks a warning is all.

    Raises:
        BlockingIOError: Another process holds it; the file's first 200 bytes are the text.
        OSError: The file cannot be made or locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            _logger.warning("%s: this disk knows no locks; see that nothing else writes here", path)
            return descriptor
        content = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        if isinstance(error, BlockingIOError | PermissionError):  # POSIX allows either
            raise BlockingIOError(content) from error
        raise
    return descriptor


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def user_cache(kind: str) -> Path:
    """Return the folder in which this project keeps one kind of thing for the user."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # noqa: PTH117 - as its specification has it; "" among them
        base = expand_home("~/.cache", missing="/nonexistent")
    return Path(base, "masked-patch-pretraining", kind)


def user_path(text: str) -> Path:
    """Read a path among a script's arguments, with `~` for the home folder."""
    try:
        return Path(expand_home(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def expand_home(path: str, missing: str | None = None) -> str:
    """Replace a `~` in front of a path by the home folder.

    Args:
        path: As a user typed it.
        missing: What stands for the home folder of a user that has none, as in some containers;
            None refuses.

    Raises:
        UserError: There is no such home folder.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111 - pathlib's raises where there is none
    if expanded.startswith("~") and missing is not None:
        return missing + path.removeprefix("~")
    name = path.split("/")[0]
    require(
        not (expanded.startswith("~") and (name == "~" or "/" in path)),
        f"{path}: {name} has no home folder here; write the whole path, or ./{path}",
    )
    return expanded


# ---------------------------------------------------------------- locations


def is_remote(location: str) -> bool:
    """Tell whether a location is a URL."""
    return "://" in location


def is_list(location: str) -> bool:
    """Tell whether a location is a text file of paths of images, by its ending."""
    is_named_so = not is_remote(location) and location.lower().endswith(_LIST_ENDINGS)
    return is_named_so and not os.path.isdir(location)  # noqa: PTH112


def protocol_of(location: str) -> str:
    """Return a URL's protocol in lower case."""
    return location.partition("://")[0].lower()


def public_name(location: str) -> str:
    """Return a location as messages may show it: without a user, a password or a signed query."""
    match = _URL.match(location)
    if match is None:
        return location
    protocol, rest = match.group(1).lower(), match.group(2)
    if protocol in ("http", "https"):
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    authority, slash, path = rest.partition("/")
    if _AUTHORITY.fullmatch(authority) is None:  # a password may hold a "/" and so reach the path
        return f"{protocol}://***"
    return f"{protocol}://{authority}{slash}{path}"


def check_location(location: str, key: str) -> None:
    """Refuse a URL that is not read: other protocols, chains of them, and credentials.

    Args:
        location: A path or a URL.
        key: The configuration's key, for error texts.

    Raises:
        UserError: With where credentials belong, or which protocols are read.
    """
    if not is_remote(location):
        return
    match = _URL.match(location)
    protocol = match.group(1) if match else ""
    known = ", ".join(f"{name}://" for name in PROTOCOLS)
    require(
        protocol.lower() in PROTOCOLS,
        f"{key}: {protocol or 'this'}:// is not read; give a path, or a URL of {known}",
    )
    rest = location.partition("://")[2]
    authority = rest.partition("/")[0].partition("?")[0]
    if "@" in authority or (":" in authority and _AUTHORITY.fullmatch(authority) is None):
        raise UserError(
            f"{key}: a {protocol}:// URL holds a user or a password, which every user of the "
            "machine can see; put it into ~/.netrc (http), or ~/.aws or the environment (s3)"
        )
    if _AUTHORITY.fullmatch(authority) is None or rest == authority:
        name = public_name(location)
        raise UserError(f"{key}: {name} is no URL of a file, as in https://host/a.tar")
    if "::" in rest and re.search(r"::\w+://", rest) is not None:
        raise UserError(f"{key}: {public_name(location)} chains URLs with '::'; give one alone")
