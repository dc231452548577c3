"""Read remote shards ahead: a process a node fills the cache in the order of the coming steps.

The order is known, so the parts that coming samples lie in are fetched whole (`fetcher`). The run
never waits for that process and never depends on it: what is not there is read directly.
"""

import logging
import multiprocessing
import os
from ctypes import c_int64
from multiprocessing.sharedctypes import RawValue
from multiprocessing.util import Finalize
from typing import Any, Self

from data.ahead.fetcher import STOP, read_ahead
from data.ahead.lookahead import ReadPlan
from data.storage.locations import Storage, is_remote

_MAX_STARTS = 4
_logger = logging.getLogger(__name__)


def node_slots(rank: int, rank_size: int) -> tuple[int, int]:
    """Return the slots of a global batch that this node's ranks read; each reads `rank_size`.

    Launchers number the ranks of a node in a row, and tell a process its place among them.
    """
    first = rank - _local("LOCAL_RANK", 0)
    return first * rank_size, (first + _local("LOCAL_WORLD_SIZE", 1)) * rank_size


def _local(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


class Prefetcher:
    """Starts and watches the process that reads ahead; a context manager.

    It does nothing where nothing is remote, without a cache, and in all but a node's first process.

    Args:
        plan: What the node reads.
        storage: How it is read, and where the cache is.
        first: The first step that will be read.
        last: The step after the last.
    """

    def __init__(self, plan: ReadPlan, storage: Storage, first: int, last: int) -> None:
        self._plan = plan
        self._storage = storage
        self._last = last
        self._first = first
        self._step: Any = None  # shared memory is a file: none is made where none is needed
        self._process: Any = None
        self._num_starts = 0
        self._finalizer: Any = None

    @property
    def is_needed(self) -> bool:
        """Whether this process is the one that should read ahead."""
        return (
            self._storage.cache_dir is not None
            and _local("LOCAL_RANK", 0) == 0
            and any(map(is_remote, self._plan.manifest.shards.locations))
        )

    @property
    def pid(self) -> int | None:
        """The process's number; None without one."""
        return None if self._process is None else self._process.pid

    def advance(self, step: int) -> None:
        """Tell that all steps before `step` have been read; start the process again if it died."""
        if self._step is None:
            return
        self._step.value = step
        if self._process is None or self._process.is_alive():
            return
        status, self._process = self._process.exitcode, None
        if status == 0:  # it ended by itself, and said why
            return
        again = self._num_starts < _MAX_STARTS
        then = "it is started again" if again else "the run goes on without it"
        _logger.warning("the process that reads ahead ended with status %s; %s", status, then)
        if again:
            self._start()

    def __enter__(self) -> Self:
        if self.is_needed:
            # before multiprocessing's own end, which would wait for a process that knows no SIGTERM
            self._step = RawValue(c_int64, self._first)
            self._finalizer = Finalize(self, _end, (self._step,), exitpriority=10)
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._finalizer is not None:
            self._finalizer()
        if self._process is not None:
            self._process.join(2)
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        self._num_starts += 1
        arguments = (self._plan, self._storage, self._step, self._last)
        process = multiprocessing.get_context().Process(
            target=read_ahead, args=arguments, name="read-ahead", daemon=True
        )
        try:
            process.start()
        except OSError as error:
            _logger.warning("no process reads ahead: %s; the run goes on without it", error)
            return
        self._process = process


def _end(step: Any) -> None:
    step.value = STOP
