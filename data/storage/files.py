"""Opening, reading and listing files, on this machine or behind a URL."""

import os
from contextlib import AbstractContextManager
from pathlib import Path

from data.storage.locations import (
    Missing,
    RangeFile,
    Storage,
    Version,
    check_location,
    is_remote,
    public_name,
)
from data.storage.remote import RemoteFile, connections

_CHUNK = 8 << 20  # bytes of a request


class LocalFile:
    """A file of this machine."""

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def num_bytes(self) -> int:
        """The file's size."""
        return os.fstat(self._descriptor).st_size

    @property
    def version(self) -> Version:
        """The file's size, without an etag."""
        return Version(self.num_bytes, None)

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`; fewer only where the file ends."""
        return os.pread(self._descriptor, size, offset)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def __del__(self) -> None:
        self.close()


def open_file(location: str, storage: Storage, expected: Version | None = None) -> RangeFile:
    """Open a file for reading by range; of a remote one, nothing is asked yet.

    Args:
        location: An absolute path or a URL.
        storage: How remote files are read.
        expected: The version that was indexed; any other is refused when it is read. Without it,
            all reads must see the version that the first one saw. Local files are not checked.

    Raises:
        OSError: If a local file cannot be opened.
        UserError: For a URL that `check_location` refuses, or without the driver for it.
    """
    if not is_remote(location):
        return LocalFile(Path(location))
    check_location(location, "shards")
    return RemoteFile(location, storage, expected)


def read_file(location: str, storage: Storage, max_bytes: int) -> bytes:
    """Read a whole file.

    Raises:
        OSError: If a local file cannot be read.
        RunStopped: If a remote one cannot; `Missing` if it is not there, or has more bytes.
        UserError: As for `open_file`.
    """
    file = open_file(location, storage)
    try:
        size = file.num_bytes
        if size > max_bytes:
            raise Missing(f"{public_name(location)} has {size} bytes, more than {max_bytes}")
        return b"".join(file.read(start, _CHUNK) for start in range(0, size, _CHUNK))
    finally:
        file.close()


def probe(location: str, storage: Storage) -> Version:
    """Return a file's version; of a local file, the size alone.

    Raises:
        OSError: If a local file cannot be read.
        RunStopped: If a remote one cannot, also after retries.
        UserError: As for `open_file`.
    """
    if not is_remote(location):
        return Version(Path(location).stat().st_size, None)
    file = open_file(location, storage)
    try:
        return file.version
    finally:
        file.close()


def keep_connections() -> AbstractContextManager[None]:
    """Keep connections of this process between files that are opened and closed meanwhile.

    Without it they close with the last open file. It may be entered in any thread, and nested.
    """
    return connections.held()
