"""Remote files: failures that may pass are tried again, and a changed file is refused.

An answer of a server is checked before it counts: see `data.storage.transport` for one request.
"""

import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TypeVar

from data.settings import RunStopped, UserError
from data.storage.http import HttpTransport
from data.storage.locations import Storage, Version, protocol_of, public_name
from data.storage.other import OtherTransport
from data.storage.s3 import S3Transport
from data.storage.transport import Answer, Changed, Transient, Transport, is_same

_FIRST_DELAY, _LAST_DELAY = 0.1, 30.0  # seconds between attempts; they double
_FIRST_REPORT = 15.0  # seconds of failing until the second warning; then four times as many
_EXTRAS = {"gs": "pip install gcsfs", "hf": "pip install huggingface_hub"}
_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class Connections:
    """The connections of this process, which all its remote files share.

    They close when nobody holds them. A fork starts anew: fsspec's loop and its sockets belong to
    the parent, and what was inherited is left alone, not closed.
    """

    def __init__(self) -> None:
        self._inherited: list[dict[tuple[str, float], Transport]] = []
        self._start()
        os.register_at_fork(after_in_child=self._forked)

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._num_holders = 0
        self._left: SimpleQueue[None] = SimpleQueue()  # releases without a wait, still to be done
        self._transports: dict[tuple[str, float], Transport] = {}

    def _forked(self) -> None:
        self._inherited.append(self._transports)  # collecting them would close the parent's
        self._start()

    def hold(self) -> None:
        """Keep connections open until `release`."""
        self._settle()
        with self._lock:
            self._num_holders += 1

    def release(self) -> None:
        """Undo one `hold`; the last closes all."""
        if sys.is_finalizing():
            return  # fsspec's thread, which would close them, has ended: it would be waited for
        self._left.put(None)
        self._settle()

    def release_later(self) -> None:
        """Undo one `hold` when the connections are next used; the call never waits.

        A destructor runs in whichever thread collects it: it may be one that holds the lock, or
        fsspec's own, which could not wait for itself.
        """
        self._left.put(None)

    def _settle(self) -> None:
        """Do the releases that were left; who does the last closes all."""
        unused: list[Transport] = []
        with self._lock:
            while not self._left.empty():
                self._left.get()
                self._num_holders -= 1
            if self._num_holders == 0:
                unused, self._transports = list(self._transports.values()), {}
        for transport in unused:
            transport.close()

    @contextmanager
    def held(self) -> Generator[None]:
        """Hold the connections within a block."""
        self.hold()
        try:
            yield
        finally:
            self.release()

    def to(self, location: str, storage: Storage) -> Transport:
        """Return the transport for a location; only for who holds the connections."""
        protocol = protocol_of(location)
        key = ("http" if protocol == "https" else protocol, storage.timeout_seconds)
        with self._lock:
            assert self._num_holders > 0
            if key not in self._transports:
                self._transports[key] = make_transport(*key)
            return self._transports[key]


connections = Connections()


class RemoteFile:
    """A file behind a URL; for one thread. After a fork it connects anew."""

    def __init__(self, location: str, storage: Storage, expected: Version | None = None) -> None:
        self._location = location
        self._storage = storage
        self._expected = expected
        self._seen: Version | None = None
        self._holder: int | None = None  # the process for which connections are held

    @property
    def version(self) -> Version:
        """The version expected, or else the one first seen."""
        known = self._seen or self._expected
        if known is None:
            known = self._seen = self._ask(0, 1, None).version
        return known

    @property
    def num_bytes(self) -> int:
        """The file's size."""
        return self.version.num_bytes

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`; fewer only where the file ends.

        Raises:
            RunStopped: If the server refuses, or fails for `storage.retry_seconds`, or the file is
                no longer the one expected.
        """
        version = self.version
        size = min(size, version.num_bytes - offset)
        if size <= 0:
            return b""
        answer = self._ask(offset, size, version)
        if version.etag is None:
            self._seen = answer.version  # from now on, at least no other one
        return answer.data

    def close(self) -> None:
        """Let the connections go; a later read connects again."""
        if self._holder == os.getpid():
            connections.release()
        self._holder = None

    def __del__(self) -> None:
        if self._holder == os.getpid():
            connections.release_later()

    def _ask(self, offset: int, size: int, version: Version | None) -> Answer:
        if self._holder != os.getpid():
            connections.hold()
            self._holder = os.getpid()
        transport = connections.to(self._location, self._storage)

        def attempt() -> Answer:
            try:
                return transport.get(self._location, offset, size, version)
            except Changed as change:
                assert version is not None  # without one nothing is compared
                found = change.found or transport.get(self._location, 0, 1, None).version
                if is_same(found, version):
                    raise Transient("it is said to have changed, and has not") from change
                raise RunStopped(self._change(version, found)) from change

        return retry(attempt, self._location, self._storage)

    def _change(self, old: Version, new: Version) -> str:
        what = f"etag {old.etag} -> {new.etag}"
        if old.num_bytes != new.num_bytes:
            what = f"{old.num_bytes} -> {new.num_bytes} bytes, {what}"
        name = public_name(self._location)
        if old != self._expected:
            return f"{name} changed on the server while it was read ({what}); start again"
        return (
            f"{name} changed on the server since it was indexed ({what}); index it again with "
            "scripts/index_shards.py, or restore it"
        )


def list_remote(pattern: str, storage: Storage) -> list[str]:
    """List the files behind a glob of s3://, gs:// or hf://, sorted.

    Raises:
        RunStopped: If the server cannot be asked, also after retries.
        UserError: Without the driver for it.
    """
    with connections.held():
        transport = connections.to(pattern, storage)
        return sorted(retry(lambda: transport.list(pattern), pattern, storage))


def make_transport(protocol: str, timeout_seconds: float) -> Transport:
    """Make the transport of one of `data.storage.locations.PROTOCOLS`.

    Raises:
        UserError: If its driver is not installed.
    """
    kinds: dict[str, Callable[[float], Transport]] = {"http": HttpTransport, "s3": S3Transport}
    try:
        if protocol in kinds:
            return kinds[protocol](timeout_seconds)
        return OtherTransport(protocol)
    except ImportError as error:
        remedy = _EXTRAS.get(protocol, "pip install -e '.[remote]' here")
        message = f"{protocol}:// shards need a driver that is not installed ({error.name}); "
        raise UserError(f"{message}{remedy}") from error


# ---------------------------------------------------------------- retries


def retry(attempt: Callable[[], _T], location: str, storage: Storage) -> _T:
    """Attempt until it works, with growing pauses, for `storage.retry_seconds` from a failure on.

    The first failure is a warning in the log, and later ones at growing intervals.

    Raises:
        RunStopped: When the time is over, with the last reason.
    """
    began, report_at = None, 0.0
    for delay in _delays():
        try:
            answer = attempt()
        except Transient as failure:
            now = time.monotonic()
            began = now if began is None else began
            elapsed, left = now - began, began + storage.retry_seconds - now
            if left <= 0:
                raise RunStopped(_gave_up(location, failure, elapsed, storage)) from failure
            if elapsed >= report_at:
                _report(location, failure, left)
                report_at = max(_FIRST_REPORT, 4 * elapsed)
            time.sleep(min(max(delay, failure.retry_after), left))
        else:
            if report_at > _FIRST_REPORT and began is not None:
                seconds = time.monotonic() - began
                _logger.warning("%s answers again after %.0f s", public_name(location), seconds)
            return answer
    raise AssertionError("the delays never end")


def _delays() -> Iterator[float]:
    """Yield pauses that double, shortened at random so that ranks do not ask all at once."""
    jitter = random.Random()  # not the run's seed: it moves only times, and ranks must differ
    delay = _FIRST_DELAY
    while True:
        yield delay * jitter.uniform(0.5, 1)
        delay = min(2 * delay, _LAST_DELAY)


def _report(location: str, failure: Transient, left: float) -> None:
    name = public_name(location)
    _logger.warning("%s: %s; trying again for %.1f s at most", name, failure, left)


def _gave_up(location: str, failure: Transient, elapsed: float, storage: Storage) -> str:
    return (
        f"{public_name(location)}: {failure}; tried for {elapsed:.1f} s "
        f"(data.retry_minutes={storage.retry_seconds / 60:g}, "
        f"data.timeout_seconds={storage.timeout_seconds:g}); when the server answers again, "
        "the same command goes on"
    )
