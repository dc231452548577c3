"""The lock of a run's folder: who holds it, and how the last one that did ended."""

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from data.storage.locations import take_lock

NAME = ".lock"
FINISHED = "finished"
_HELD = "process "  # how the text of one that has not ended begins
_MOST = 2000  # bytes that are read


class Holder(NamedTuple):
    """What a run's lock tells.

    Attributes:
        is_alive: Whether a process holds it.
        text: Of one that lives or was killed, which process on which machine; else how it ended.
    """

    is_alive: bool
    text: str

    @property
    def was_killed(self) -> bool:
        """Whether it ended without a word."""
        return not self.is_alive and self.text.startswith(_HELD)


def lock_run(folder: Path) -> int:
    """Take a run's lock; it is given back when the descriptor is closed.

    Raises:
        BlockingIOError: Another process holds it; the text says which.
        OSError: It cannot be made.
    """
    descriptor = take_lock(folder / NAME)
    _write(descriptor, f"{_HELD}{os.getpid()} on {socket.gethostname()}")
    return descriptor


def unlock_run(descriptor: int, outcome: str) -> None:
    """Give a run's lock back, with a line on how the run ended."""
    _write(descriptor, outcome)
    os.close(descriptor)


def _write(descriptor: int, text: str) -> None:
    with suppress(OSError):  # only a message, for whoever comes second
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{text}\n".encode(), 0)


def read_holder(folder: Path) -> Holder | None:
    """Read a run's lock from outside; None if the folder has none. It holds the lock for a moment.

    Raises:
        OSError: It cannot be read.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        is_alive = not _is_free(descriptor)
        text = os.read(descriptor, _MOST).decode(errors="replace").strip()
    finally:
        os.close(descriptor)
    return Holder(is_alive, text)


def _is_free(descriptor: int) -> bool:
    """Tell whether nobody holds it; a shared lock needs no right to write."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError | PermissionError)  # a disk without locks
    return True
