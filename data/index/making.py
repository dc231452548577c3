"""Making the index of shards: one job a shard, in threads or processes.

A shard that changed after it was indexed is judged in one place, `_judge`:

- the same content: only the row's time is renewed;
- a sound tar with other members than those indexed: it was replaced, and is indexed again;
- anything else: the old index stands as the truth, and the shard is damaged. Its samples keep their
  places, so a run resumes, and the reader names each one that was lost. To index such a shard anew
  all the same, delete its `NAME.tar.index`.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from data.disks import explain
from data.index.manifest import MANIFEST_NAME, Row, append_rows, split_location, tidy_rows
from data.index.offsets import ShardIndex
from data.index.scan import Beside, ScanResult, UnusableShard, scan
from data.settings import RunStopped, UserError
from data.shards import INDEX_SUFFIX
from data.storage.files import open_file, probe
from data.storage.locations import Storage, Version, is_remote
from data.text import count, printable

CHANGED = "changed since it was indexed"
_NUM_DOUBTFUL = 3  # shards of which is said what is doubtful
_WRITE_SECONDS = 2.0  # between two writes of rows: what a kill costs
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Known:
    """An earlier start's knowledge of a shard.

    Attributes:
        row: Its row.
        folder: Where its index lies.
        is_served: It came from the shards' server, with the shards.
    """

    row: Row
    folder: Path
    is_served: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One shard to index.

    Attributes:
        place: Its place among the shards that were named.
        name: The shard's name in messages.
        location: The tar.
        target: The folder for its index.
        known: What an earlier start knew of it.
        storage: How remote shards are read.
        again: Scan also what has not changed since.
    """

    place: int
    name: str
    location: str
    target: Path
    known: Known | None
    storage: Storage
    again: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a job.

    Attributes:
        job: The job.
        row: The shard's row; None where there is an error.
        folder: Where its index lies.
        is_new: The row is not the one that was known.
        note: What the user should hear beside the damage, if anything.
        error: Why the shard could not be indexed.
        beside: What reading it found beside samples.
    """

    job: Job
    row: Row | None
    folder: Path
    is_new: bool = True
    note: str | None = None
    error: UserError | RunStopped | None = None
    beside: Beside = Beside()


class Remarks:
    """Remarks on members that are no samples, made once for many shards."""

    def __init__(self) -> None:
        self._num_hidden, self._first_hidden = 0, ""
        self._num_doubtful, self._doubtful = 0, list[str]()

    def add(self, done: Done) -> None:
        """Take in what came of a job."""
        beside, name = done.beside, done.job.name
        if self._num_hidden == 0 and beside.num_hidden:
            self._first_hidden = f"{beside.first_hidden} in shard {name}"
        self._num_hidden += beside.num_hidden
        if beside.doubtful is not None:
            self._num_doubtful += 1
            if self._num_doubtful <= _NUM_DOUBTFUL:
                self._doubtful.append(f"shard {name}: {beside.doubtful}")

    @property
    def hidden(self) -> str | None:
        """How many hidden files were passed over."""
        if not self._num_hidden:
            return None
        number = count(self._num_hidden, "hidden file")
        return f"passed over {number}, which are no part of the data (first {self._first_hidden})"

    def lines(self) -> list[str]:
        """Say it, in a few lines."""
        lines = list(self._doubtful)
        if (rest := self._num_doubtful - len(lines)) > 0:
            lines.append(f"the same of {count(rest, 'more shard')}")
        return lines if self.hidden is None else [*lines, self.hidden]


class UnreadableShard(RunStopped):
    """A shard that this machine cannot read; others it may."""


def run_jobs(jobs: Iterable[Job], executor: Executor, num_workers: int) -> Iterator[Done]:
    """Index shards, and write their rows as they come: what is done stays done after a kill.

    Args:
        jobs: Consumed as workers are free, so that many cost no memory.
        executor: Threads or processes; it is not shut down.
        num_workers: How many it has.

    Yields:
        What came of each job, in any order.
    """
    with _rows_on_disk() as rows:
        for done in in_any_order(index_shard, jobs, executor, num_workers):
            if done.row is not None and done.is_new:
                rows.add(done.folder, done.row)
            yield done


def in_any_order(
    function: Callable[[_T], _R], items: Iterable[_T], executor: Executor, num_workers: int
) -> Iterator[_R]:
    """Yield what a function makes of items, of which only a few wait at a time."""
    items, window = iter(items), 4 * num_workers
    running = {executor.submit(function, item) for item in islice(items, window)}
    try:
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {executor.submit(function, item) for item in islice(items, len(finished))}
            for future in finished:
                yield future.result()
    finally:
        for future in running:
            future.cancel()


@contextmanager
def _rows_on_disk() -> Generator["_RowWriter"]:
    """Write rows every few seconds, and tidy their manifests at the end."""
    writer = _RowWriter()
    try:
        yield writer
    finally:
        writer.flush()
        writer.tidy()


class _RowWriter:
    def __init__(self) -> None:
        self._folders: set[Path] = set()
        self._rows: dict[Path, list[Row]] = {}
        self._written = time.monotonic()

    def add(self, folder: Path, row: Row) -> None:
        self._rows.setdefault(folder, []).append(row)
        if time.monotonic() - self._written >= _WRITE_SECONDS:
            self.flush()

    def flush(self) -> None:
        for folder, rows in self._rows.items():
            with _writing(folder / MANIFEST_NAME):
                append_rows(folder, rows)
            self._folders.add(folder)
        self._rows = {}
        self._written = time.monotonic()

    def tidy(self) -> None:
        for folder in self._folders:
            with _writing(folder / MANIFEST_NAME):
                tidy_rows(folder)


@contextmanager
def _writing(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise RunStopped(f"{path} cannot be written: {explain(error)}") from error


# ---------------------------------------------------------------- one shard


@dataclass(frozen=True, slots=True)
class _State:
    """A shard's file as it is now."""

    num_bytes: int
    mtime_ns: int | None
    etag: str | None

    def is_of(self, row: Row) -> bool:
        return (row.num_bytes, row.mtime_ns, row.etag) == (
            self.num_bytes,
            self.mtime_ns,
            self.etag,
        )


def _state(job: Job) -> _State:
    if is_remote(job.location):
        version = probe(job.location, job.storage)
        return _State(version.num_bytes, None, version.etag)
    stat = Path(job.location).stat()
    return _State(stat.st_size, stat.st_mtime_ns, None)


def index_shard(job: Job) -> Done:
    """Index one shard, unless it is still what an earlier start knew."""
    try:
        return _index_shard(job)
    except (UserError, RunStopped) as error:
        return Done(job, None, job.target, error=error)
    except OSError as error:
        reason = f"shard {job.name} cannot be read: {explain(error)}"
        return Done(job, None, job.target, error=UnreadableShard(reason))


def _index_shard(job: Job) -> Done:
    state = _state(job)
    known = job.known
    if known is not None and known.is_served and known.row.num_bytes != state.num_bytes:
        raise _other_than_served(job, f"{known.row.num_bytes} bytes there, {state.num_bytes} now")
    if known is not None and not job.again and (known.is_served or state.is_of(known.row)):
        return Done(job, known.row, known.folder, is_new=False)
    try:
        result = _scan(job, state)
    except UnusableShard as error:
        if known is None or (old := _load(known, job)) is None:
            raise
        return _damaged(job, known, old, state, error.finding)
    if _state(job) != state:
        raise UserError(f"shard {job.name} changed while it was indexed; start again when whole")
    if known is not None and known.is_served:
        return _compare_served(job, known, result)
    if known is not None and (old := _load(known, job)) is not None:
        return replace(_judge(job, known, old, state, result), beside=result.beside)
    return _indexed(job, state, result)


def _other_than_served(job: Job, finding: str) -> UnusableShard:
    finding = f"is not the one in the server's manifest.jsonl ({finding})"
    return UnusableShard(job.name, finding, "; upload it again with its manifest and index")


def _compare_served(job: Job, known: Known, result: ScanResult) -> Done:
    """Take the server's own index, which is what runs read, if it is of this content."""
    if result.sha256 != known.row.sha256:
        raise _other_than_served(job, "its sha256 differs")
    return Done(job, known.row, known.folder, is_new=False)


def _scan(job: Job, state: _State) -> ScanResult:
    file = open_file(job.location, job.storage, Version(state.num_bytes, state.etag))
    try:
        return scan(file, job.name)
    finally:
        file.close()


def _load(known: Known, job: Job) -> ShardIndex | None:
    """Load the index of an earlier start, if it is whole and the row's."""
    try:
        index = ShardIndex.load(index_path(known.folder, job.location))
    except (UserError, OSError):
        return None
    return index if is_index_of(index, known.row.num_samples, known.row.sha256) else None


def index_path(folder: Path, location: str) -> Path:
    """Return where the index of a shard lies in a folder of indexes."""
    return folder / (split_location(location).file + INDEX_SUFFIX)


def is_index_of(index: ShardIndex, num_samples: int, sha256: str) -> bool:
    """Tell whether an index is of the tar that a row describes."""
    return len(index) == num_samples and index.sha256 in (None, sha256)


def _indexed(job: Job, state: _State, result: ScanResult, note: str | None = None) -> Done:
    """Save a new index."""
    _save(result.index, job)
    row = Row(
        file=split_location(job.location).file,
        num_samples=len(result.index),
        num_bytes=state.num_bytes,
        mtime_ns=state.mtime_ns,
        sha256=result.sha256,
        damage=result.damage,
        etag=state.etag,
    )
    return Done(job, row, job.target, note=note, beside=result.beside)


def _save(index: ShardIndex, job: Job) -> None:
    path = index_path(job.target, job.location)
    with _writing(path):
        index.save(path)


def _kept(job: Job, known: Known, old: ShardIndex, state: _State, damage: str | None) -> Done:
    """Keep the old index, for the file as it is now."""
    if job.target != known.folder:
        _save(replace(old, sha256=known.row.sha256), job)
    row = replace(
        known.row,
        num_bytes=state.num_bytes,
        mtime_ns=state.mtime_ns,
        etag=state.etag,
        damage=damage,
    )
    is_new = row != known.row or job.target != known.folder
    return Done(job, row, job.target, is_new=is_new)


def _damaged(job: Job, known: Known, old: ShardIndex, state: _State, finding: str) -> Done:
    return _kept(job, known, old, state, f"{CHANGED}: {finding}")


def _judge(job: Job, known: Known, old: ShardIndex, state: _State, result: ScanResult) -> Done:
    """Judge a shard that changed after it was indexed; the module's text states the rule."""
    new = result.index
    if result.sha256 == known.row.sha256:
        return _kept(job, known, old, state, result.damage)
    if result.damage is not None:
        return _damaged(job, known, old, state, result.damage)
    if new.has_layout_of(old):
        return _judge_content(job, known, old, state, new)
    if state.num_bytes == known.row.num_bytes and new.is_start_of(old):
        lost = f"zeros from sample {len(new)} of {len(old)} on"
        return _damaged(job, known, old, state, lost)
    note = (
        f"shard {job.name} was replaced since it was indexed ({count(len(old), 'sample')} before, "
        f"{len(new)} now); indexed again"
    )
    return _indexed(job, state, result, note)


def _judge_content(job: Job, known: Known, old: ShardIndex, state: _State, new: ShardIndex) -> Done:
    """Judge a shard whose members lie where they did; only their checksums tell."""
    differ = np.flatnonzero(np.asarray(old.crc32s) != np.asarray(new.crc32s))
    if not len(differ):  # padding, owners or times: nothing that is read
        return _kept(job, known, old, state, None)
    first = int(np.searchsorted(old.member_ends, differ[0], side="right"))
    extension = old.extensions[old.extension_ids[differ[0]]]
    member = printable(f"{old.key(first)}.{extension}")
    verb = "has" if len(differ) == 1 else "have"
    finding = f"{count(len(differ), 'member')} {verb} other bytes, the first is {member}"
    return _damaged(job, known, old, state, finding)
