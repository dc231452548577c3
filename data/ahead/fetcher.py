"""The process that reads ahead: it fetches parts of remote shards whole, a few at a time."""

import logging
import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import replace
from time import monotonic
from typing import Any

from data.ahead.lookahead import Fetch, LookAhead, ReadPlan
from data.processes import Parent, leave_signals_to_parent
from data.storage.cache import CacheWriter
from data.storage.files import keep_connections, open_file
from data.storage.locations import Storage

STOP = -1  # in place of a step
_NUM_THREADS = 8
_CHUNK = 4 << 20  # bytes a request; with 8 threads, 32 MiB are in flight
_POLL = 0.1  # seconds
_PATIENCE = 3.0  # seconds in which an earlier run's process may still be ending
_LAST_PAUSE = 30.0  # seconds without a request after failures; they double from `_POLL`
_logger = logging.getLogger(__name__)


def read_ahead(plan: ReadPlan, storage: Storage, step: Any, last: int) -> None:
    """Fill the cache until the parent says stop, or is gone."""
    leave_signals_to_parent()
    parent = _Parent(step)
    status = 0
    try:
        _fill(plan, storage, parent, last)
    except OSError as error:
        _logger.warning("the cache %s is not filled: %s", storage.cache_dir, error)
    except Exception:
        _logger.exception("reading ahead failed")
        status = 1
    os._exit(status)  # threads may still wait for a server


class _Parent:
    """The training process, as seen from the one that it started."""

    def __init__(self, step: Any) -> None:
        self._step = step
        self._parent = Parent()

    @property
    def step(self) -> int | None:
        """The first step that it has not read yet; None when it has stopped or died."""
        step = int(self._step.value)
        return None if self._parent.is_gone or step == STOP else step


def _fill(plan: ReadPlan, storage: Storage, parent: _Parent, last: int) -> None:
    ahead = LookAhead(plan, storage, last)
    writer = _wait_for_writer(storage, ahead, parent)
    if writer is None:
        return
    # without retries: a part that fails is asked for again after a pause
    with writer, keep_connections():
        fetcher = _Fetcher(writer, replace(storage, retry_seconds=0))
        while (step := parent.step) is not None:
            is_complete = ahead.advance(step)
            # nothing goes before it is known what coming steps need; one step's grace for ranks
            before = max(step - 1, 0) if is_complete else -1
            fetcher.dispatch(ahead, before)
            if is_complete:
                fetcher.wait(_POLL)
        fetcher.stop()


def _wait_for_writer(storage: Storage, ahead: LookAhead, parent: _Parent) -> CacheWriter | None:
    """Become the cache's writer; None if the parent ends before."""
    assert storage.cache_dir is not None
    wait = threading.Event()
    report_at = monotonic() + _PATIENCE
    while parent.step is not None:
        try:
            return CacheWriter(storage.cache_dir, storage.cache_bytes, ahead.last_need)
        except BlockingIOError as error:
            if monotonic() > report_at:
                report_at = float("inf")
                _logger.warning("%s; until it ends, this one reads only what is there", error)
            wait.wait(_POLL)
    return None


class _Fetcher:
    """Threads that fetch parts; failures are told once, and followed by a growing pause."""

    def __init__(self, writer: CacheWriter, storage: Storage) -> None:
        self._writer = writer
        self._storage = storage
        self._jobs: queue.SimpleQueue[Fetch] = queue.SimpleQueue()
        self._failed: queue.SimpleQueue[Fetch] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_changed = threading.Event()
        self._num_running = 0
        self._pause, self._resume_at = _POLL, 0.0
        self._has_failed = False
        self._is_stopped = False
        for _ in range(_NUM_THREADS):
            threading.Thread(target=self._work, daemon=True).start()

    def dispatch(self, ahead: LookAhead, before: int) -> None:
        """Hand out what there is room for; the rest is read directly, or waits for room."""
        self._is_changed.clear()
        while not self._failed.empty():
            ahead.queue.append(self._failed.get())
        while ahead.queue and monotonic() >= self._resume_at:
            with self._lock:
                if self._num_running >= _NUM_THREADS:
                    return
            fetch = ahead.queue[0]
            is_here = fetch.part in self._writer
            if not is_here and not self._writer.reserve(fetch.part, len(fetch.offsets), before):
                return
            ahead.queue.popleft()
            if not is_here:
                with self._lock:
                    self._num_running += 1
                self._jobs.put(fetch)

    def wait(self, timeout: float) -> None:
        """Wait until a thread is done, at most `timeout` seconds."""
        self._is_changed.wait(timeout)

    def stop(self) -> None:
        """Let the threads end at their next chunk, which removes unfinished files."""
        self._is_stopped = True
        deadline = monotonic() + 0.5
        while self._num_running and monotonic() < deadline:
            self._is_changed.clear()
            self._is_changed.wait(_POLL)

    def _work(self) -> None:
        while True:
            fetch = self._jobs.get()
            try:
                self._writer.write(fetch.part, self._chunks(fetch))
                self._pause = _POLL
            except _Stopped:
                pass
            except Exception as error:  # whatever it is, the others go on
                self._fail(fetch, error)
            with self._lock:
                self._num_running -= 1
            self._is_changed.set()

    def _chunks(self, fetch: Fetch) -> Iterator[bytes]:
        file = open_file(fetch.location, self._storage, fetch.version)
        try:
            for start in fetch.offsets[::_CHUNK]:
                if self._is_stopped:
                    raise _Stopped
                yield file.read(start, min(_CHUNK, fetch.offsets.stop - start))
        finally:
            file.close()

    def _fail(self, fetch: Fetch, error: Exception) -> None:
        with self._lock:
            self._failed.put(fetch)
            if monotonic() >= self._resume_at:  # not for each thread
                self._resume_at = monotonic() + self._pause
                self._pause = min(2 * self._pause, _LAST_PAUSE)
            is_first, self._has_failed = not self._has_failed, True
        if is_first:
            _logger.warning("reading ahead: %s; the run itself goes on", error)


class _Stopped(Exception):  # noqa: N818 - an order, not an error
    pass
