"""Parts of remote files in a folder of this machine, up to a total size.

A part is `PART_BYTES` of a file, the last one less, in `FOLDER/<sha256 of URL and etag>/<number>`.
It appears by a rename. Any process may read; one alone writes, which holds a lock on the folder.
Nothing here is trusted: a part of the wrong size is a miss, and who reads a member checks it.
"""

import os
import re
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self

from data.storage.locations import Version, public_name, take_lock

PART_BYTES = 8 << 20
_LOCK = "lock"
_TEMPORARY = ".tmp"
_FOLDER = re.compile(r"[0-9a-f]{64}")


class Part(NamedTuple):
    """A part's file: its folder's name, and its number from 0."""

    folder: str
    number: int


def folder_name(location: str, version: Version) -> str:
    """Return the name of a file's folder: equal names elsewhere, or new contents, have another."""
    text = f"{public_name(location)}\n{version.etag}\n{version.num_bytes}"
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def parts_of(offset: int, size: int) -> range:
    """Return the numbers of the parts that hold a range of `size` > 0 bytes."""
    return range(offset // PART_BYTES, (offset + size - 1) // PART_BYTES + 1)


def part_range(number: int, num_bytes: int) -> range:
    """Return the offsets that a part holds of a file of `num_bytes`."""
    return range(number * PART_BYTES, min((number + 1) * PART_BYTES, num_bytes))


class CachedFile:
    """The cached parts of one remote file, for reading.

    Args:
        cache_dir: The cache's folder; it need not exist.
        location: The file's URL.
        version: Its version.
    """

    def __init__(self, cache_dir: Path, location: str, version: Version) -> None:
        self._folder = cache_dir / folder_name(location, version)
        self._num_bytes = version.num_bytes

    def read(self, offset: int, size: int) -> bytes | None:
        """Return `size` > 0 bytes from `offset`, or None unless all of them are here."""
        pieces: list[bytes] = []
        for number in parts_of(offset, size):
            start = max(offset - number * PART_BYTES, 0)
            stop = min(offset + size - number * PART_BYTES, PART_BYTES)
            piece = self._read_part(number, start, stop - start)
            if piece is None:
                return None
            pieces.append(piece)
        return b"".join(pieces) if len(pieces) > 1 else pieces[0]

    def _read_part(self, number: int, start: int, size: int) -> bytes | None:
        try:
            descriptor = os.open(self._folder / str(number), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # not there yet, or evicted
            return None
        try:
            if os.fstat(descriptor).st_size != len(part_range(number, self._num_bytes)):
                return None
            piece = os.pread(descriptor, size, start)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return piece if len(piece) == size else None

    def drop(self, offset: int, size: int) -> None:
        """Remove the parts that hold a range: their content was found wrong."""
        for number in parts_of(offset, size):
            with suppress(OSError):
                (self._folder / str(number)).unlink()


class CacheWriter:
    """The one writer of a cache's folder; for use by several threads.

    It keeps the folder's files, those being written included, below a total size. `last_need` says
    which may go: parts whose last known need is past, in the order of that need; before them those
    of earlier runs, the oldest first.

    Args:
        cache_dir: The folder; made if it is missing.
        max_bytes: The largest total size.
        last_need: The last known need of a part, as a step; None without one.

    Raises:
        BlockingIOError: Another process writes there.
        OSError: The folder cannot be written.
    """

    def __init__(
        self, cache_dir: Path, max_bytes: int, last_need: Callable[[Part], int | None]
    ) -> None:
        self._root = cache_dir
        self._max_bytes = max_bytes
        self._last_need = last_need
        self._lock = threading.Lock()
        cache_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._descriptor = take_lock(cache_dir / _LOCK)
        except BlockingIOError as error:
            raise BlockingIOError(f"another run writes to {cache_dir}") from error
        self._sizes = self._found()  # by part, the oldest first
        self._num_bytes = sum(self._sizes.values())
        self._writing: set[Part] = set()
        self._next_to_go: deque[tuple[int, Part]] = deque()
        self._make_room(0, before=0)

    def __contains__(self, part: Part) -> bool:
        """Tell whether a part is here, or being written."""
        with self._lock:
            is_here = part in self._sizes
            if is_here and part not in self._writing and not self._path(part).exists():
                self._num_bytes -= self._sizes.pop(part)  # a reader dropped it
                return False
            return is_here

    @property
    def num_bytes(self) -> int:
        """The size of all parts, those being written included."""
        return self._num_bytes

    def reserve(self, part: Part, size: int, before: int) -> bool:
        """Make room for a part, which `write` must follow.

        Args:
            part: A part that is not here.
            size: Its size in bytes.
            before: Parts with a need from this step on stay; below 0, all do.

        Returns:
            False if there is no room.
        """
        with self._lock:
            if not self._make_room(size, before):
                return False
            self._sizes[part] = size
            self._num_bytes += size
            self._writing.add(part)
            return True

    def write(self, part: Part, chunks: Iterable[bytes]) -> None:
        """Write a reserved part, whole or not at all.

        Raises:
            OSError: If it cannot be written; what `chunks` raises passes, too.
        """
        folder = self._root / part.folder
        temporary = folder / f"{part.number}.{secrets.token_hex(4)}{_TEMPORARY}"
        is_written = False
        try:
            folder.mkdir(exist_ok=True)
            with temporary.open("xb", buffering=0) as file:
                for chunk in chunks:
                    file.write(chunk)
            temporary.replace(folder / str(part.number))
            is_written = True
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            with self._lock:
                self._writing.discard(part)
                if not is_written:
                    self._num_bytes -= self._sizes.pop(part)

    def close(self) -> None:
        """Let another process write."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _path(self, part: Part) -> Path:
        return self._root / part.folder / str(part.number)

    def _make_room(self, size: int, before: int) -> bool:
        """Remove unneeded parts until `size` more bytes fit."""
        while self._num_bytes + size > self._max_bytes:
            part = self._pop_unneeded(before)
            if part is None:
                self._next_to_go = deque(self._by_need())
                part = self._pop_unneeded(before)
            if part is None:
                return False
            self._path(part).unlink(missing_ok=True)
            self._num_bytes -= self._sizes.pop(part)
        return True

    def _pop_unneeded(self, before: int) -> Part | None:
        """Take the next part from a list that may be out of date."""
        while self._next_to_go and self._next_to_go[0][0] < before:
            need, part = self._next_to_go.popleft()
            if part in self._sizes and part not in self._writing and self._need(part) == need:
                return part
        return None

    def _by_need(self) -> list[tuple[int, Part]]:
        """List the parts, least recently needed first; of those without a need, the oldest."""
        needs = [(self._need(part), part) for part in self._sizes]
        return sorted(needs, key=lambda pair: pair[0])  # stable: parts found here are in that order

    def _need(self, part: Part) -> int:
        need = self._last_need(part)
        return -1 if need is None else need

    def _found(self) -> dict[Part, int]:
        """List the parts that lie here, the oldest first; remove what an ended writer left."""
        parts: list[tuple[int, Part, int]] = []
        for folder in self._root.iterdir():
            # never a file that is not ours, whatever folder this is
            if _FOLDER.fullmatch(folder.name) is None or not folder.is_dir():
                continue
            for path in folder.iterdir():
                if path.name.endswith(_TEMPORARY):
                    path.unlink(missing_ok=True)
                elif path.name.isdecimal():
                    stat = path.stat()
                    parts.append(
                        (stat.st_mtime_ns, Part(folder.name, int(path.name)), stat.st_size)
                    )
            with suppress(OSError):
                folder.rmdir()  # if nothing is left
        return {part: size for _, part, size in sorted(parts)}
