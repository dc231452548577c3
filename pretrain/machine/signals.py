"""Signals that ask a run to leave: Ctrl-C, Slurm's warning, a cloud's notice, a closed terminal."""

import os
import signal
import threading
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType
from typing import Any, Self

from data.processes import INTERRUPTED, has_launcher, heard_requests


class Interrupt:
    """Notes, while it is entered, that this process was asked to leave; the loop decides when.

    A second signal changes nothing: neither a commit nor the way out is cut short by it, and the
    process leaves with the status that it chose. But a second Ctrl-C ends the process at once,
    unless a launcher started it: that hands on what the terminal has sent to all. In a notebook,
    whose process lives on, it raises `KeyboardInterrupt`. One that comes before the first step is
    not noted: what it would do without this happens.

    Outside of the main thread, where Python lets nobody listen, no signal is noted.

    Attributes:
        name: The signal that came, or None.
        has_begun: Whether this process has begun a step.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.has_begun = False
        self._before: dict[signal.Signals, Any] = {}
        self._process = os.getpid()
        self._is_handed_on = has_launcher()

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._before = {number: signal.signal(number, self._note) for number in heard_requests()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            may_end = number == signal.SIGINT and not self._is_handed_on
            is_heard = self.name is None or may_end
            signal.signal(number, handler if is_heard else signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._process != os.getpid():  # a loader process that has not begun yet
            return
        if number == signal.SIGINT and not self.has_begun:  # there is nothing to commit
            self._before[signal.SIGINT](number, frame)
        is_second = self.name is not None
        if number == signal.SIGINT and is_second and not self._is_handed_on:
            if self._before[signal.SIGINT] is signal.default_int_handler:
                raise KeyboardInterrupt
            os._exit(INTERRUPTED)
        self.name = self.name or signal.Signals(number).name
        if not is_second and os.environ.get("RANK", "0") == "0":
            with suppress(OSError):
                os.write(2, self._text.encode())

    @property
    def _text(self) -> str:
        again = "; a second Ctrl-C ends it at once" if self.name == "SIGINT" else ""
        return f"{self.name} came: the run finishes its step, commits and leaves{again}\n"


def status_after(names: Iterable[str | None], requeue_status: int) -> tuple[str, int]:
    """Choose between the signals that came to the ranks, and the status that follows.

    Ctrl-C goes before: who stops a run by hand does not want it queued again.
    """
    known = sorted(name for name in names if name is not None)  # SIGINT is the first
    return known[0], INTERRUPTED if known[0] == "SIGINT" else requeue_status
