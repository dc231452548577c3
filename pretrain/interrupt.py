"""Signals that ask a run to leave: Slurm's warning, a cloud's notice, a user's `kill`."""

import signal
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interrupt:
    """Notes, while it is entered, that this process was asked to leave; the loop decides when.

    A second signal changes nothing: neither a commit nor the way out is cut short by it, and the
    process leaves with the status that it chose.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if self.name is None else signal.SIG_IGN)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.name = signal.Signals(number).name
