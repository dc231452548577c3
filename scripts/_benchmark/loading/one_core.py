"""Sources of images that are held to one core, each in a process of its own, and take turns.

All that a source runs shares that core: its worker, whatever threads its library starts, and the
caller's side, which takes the batches. So the wall clock says what a core gives, and the processes'
CPU clocks say the same where other programs want the core, too.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sized
from typing import NamedTuple

from pretrain.machine.apart import Apart, fork_workers

Source = Iterator[Sized]  # batches of images, without end

# What nearly all sources import, once: the server that they are forked from does not know where the
# checkout lies (Python's issue 126631).
PRELOAD = ["torchvision.transforms", "webdataset.compat"]
_READ_AHEAD = 2  # batches that each worker makes while nobody asks


class Turn(NamedTuple):
    """The images of a source in its turn, in seconds of the wall and of the CPU."""

    num_images: int
    seconds: float
    cpu_seconds: float


def start_on_one_core(name: str, make: Callable[..., Source], *arguments: object) -> Apart[Source]:
    """Start a process that makes a source; the arguments are those of `Apart`."""
    core = max(os.sched_getaffinity(0))
    return Apart(name, _on_core, core, make, *arguments, preload=PRELOAD)


def _on_core(core: int, make: Callable[..., Source], *arguments: object) -> Source:
    os.sched_setaffinity(0, {core})  # before it starts a thread or a process
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nothing is pinned for a GPU
    fork_workers()
    source = make(*arguments)
    next(source)
    return source


def take_turn(source: Source, seconds: float, workers: int = 1) -> Turn:
    """Let a source of so many workers work for about some seconds, for one batch at least."""
    for _ in range(_READ_AHEAD * workers):
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
