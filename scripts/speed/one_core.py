"""A source of images held to one core, in a process of its own that takes turns when it is told.

All that the source runs shares that core: its worker, whatever threads its library starts, and the
caller's side, which takes the batches. So the wall clock says what a core gives, and the processes'
CPU clocks say the same where other programs want the core, too.
"""

import atexit
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

# What nearly all sources import, once: the server that they are forked from does not know where the
# checkout lies (Python's issue 126631).
PRELOAD = ["torchvision.transforms", "webdataset.compat"]
_READ_AHEAD = 2  # batches that a worker makes while nobody asks


class Turn(NamedTuple):
    """What a source gave in its turn: so many images, in seconds of the wall and of the CPU."""

    num_images: int
    seconds: float
    cpu_seconds: float


class OneCore:
    """A process that makes a source and waits for its turns.

    Args:
        name: What to call it where it fails.
        make: A module's function that returns the source: batches of images, without end.
        arguments: What it is called with.
    """

    def __init__(self, name: str, make: Callable[..., Iterator[Sized]], *arguments: object) -> None:
        self._name = name
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._turns, answer = context.Pipe()
        core = max(os.sched_getaffinity(0))
        self._process = context.Process(target=_serve, args=(answer, core, make, arguments))
        self._process.start()
        answer.close()

    def wait_until_ready(self) -> None:
        """Return once the source has given its first batch.

        Raises:
            RuntimeError: The process ended; it has printed why.
        """
        self._answer()

    def take_turn(self, seconds: float) -> Turn:
        """Let the source work for about some seconds, for one batch at least.

        Raises:
            RuntimeError: The process ended; it has printed why.
        """
        self._turns.send(seconds)
        turn = self._answer()
        assert turn is not None
        return turn

    def close(self) -> None:
        """End the process."""
        self._turns.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _answer(self) -> Turn | None:
        try:
            return self._turns.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(f"{self._name} ended without an answer") from error


def _serve(
    turns: Connection,
    core: int,
    make: Callable[..., Iterator[Sized]],
    arguments: tuple[object, ...],
) -> None:
    os.sched_setaffinity(0, {core})  # before it starts a thread or a process
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nothing is pinned for a GPU
    multiprocessing.set_start_method("fork", force=True)  # workers: a server's child is asked
    source = make(*arguments)
    next(source)
    turns.send(None)
    with suppress(EOFError, ConnectionError):  # nobody asks any more
        while True:
            turns.send(_take_turn(source, turns.recv()))
    atexit._run_exitfuncs()  # not done in such a process; Streaming's shared memory waits for it


def _take_turn(source: Iterator[Sized], seconds: float) -> Turn:
    for _ in range(_READ_AHEAD):
        next(source)
    cpu = _cpu_seconds()
    begin = now = time.perf_counter()
    done = 0
    while not done or now - begin < seconds:
        done += len(next(source))
        now = time.perf_counter()
    return Turn(done, now - begin, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    """Return what this process and its workers have used, all of their threads."""
    workers = [worker.pid for worker in multiprocessing.active_children() if worker.pid]
    return time.process_time() + sum(map(_process_seconds, workers))


def _process_seconds(process: int) -> float:
    """Read another process's CPU clock, by the number that Linux gives it (clock_getcpuclockid)."""
    return time.clock_gettime((~process << 3) | 2)
