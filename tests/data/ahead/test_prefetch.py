"""Reading ahead: the same bytes with it, without it, and while it is killed."""

import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from data.ahead import fetcher, lookahead, prefetch
from data.ahead.lookahead import LookAhead, ReadPlan
from data.ahead.prefetch import Prefetcher, node_slots
from data.batch import Batch
from data.index.manifest import Manifest
from data.index.offsets import ShardIndex
from data.index.open import open_manifest
from data.order import Order
from data.reading.reader import ShardReader
from data.samples import Samples
from data.settings import RunStopped
from data.shards import ImageFile, write_shard
from data.storage import cache
from data.storage.locations import Storage
from data.stream import Share, TrainingStream
from tests.conftest import make_png
from tests.servers import Fault, FlakyServer, at_random, flaky_http, s3

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

BATCH = 8
COUNTS = (14, 9, 13, 12)  # 48 samples: 6 steps an epoch
PART = 8_192
WANTED = frozenset({"png", "cls"})
PATIENT = Storage(timeout_seconds=20, retry_seconds=30)  # for a machine that is busy
HASTY = Storage(timeout_seconds=0.3, retry_seconds=30)  # for a server that is silent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write four shards with equal names in two folders."""
    folder = tmp_path_factory.mktemp("served")
    numbers = iter(range(sum(COUNTS)))
    for name, count in zip(("a/0", "a/1", "b/0", "b/1"), COUNTS, strict=True):
        path = folder / f"{name}.tar"
        path.parent.mkdir(exist_ok=True)
        samples = [(n, make_png(n, (40, 40))) for n in islice(numbers, count)]
        write_shard(path, (ImageFile(f"{n:03d}", "png", png, n % 3) for n, png in samples))
    return folder


@pytest.fixture(scope="module")
def local(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    copy = tmp_path_factory.mktemp("local") / "shards"
    shutil.copytree(folder, copy)
    return open_manifest([f"{copy}/{name}" for name in ("a", "b")], "data.shards")


@dataclass
class Remote:
    """Shards behind a server that fails as it is told.

    Attributes:
        server: The server.
        manifest: The shards there.
        storage: With a cache for all of them.
        num_bytes: The shards' size.
    """

    server: FlakyServer
    manifest: Manifest
    storage: Storage
    num_bytes: int

    def plan(self) -> ReadPlan:
        return ReadPlan(self.manifest, 3, BATCH, 0, BATCH)

    @property
    def cache(self) -> Path:
        assert self.storage.cache_dir is not None
        return self.storage.cache_dir

    def with_cache(self, num_bytes: int) -> Storage:
        return replace(PATIENT, cache_dir=self.cache, cache_bytes=num_bytes)


@pytest.fixture
def server(folder: Path) -> Iterator[FlakyServer]:
    with flaky_http(folder) as server:
        yield server


@pytest.fixture
def shards(server: FlakyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    monkeypatch.setattr(cache, "PART_BYTES", PART)
    monkeypatch.setattr(fetcher, "_CHUNK", PART // 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    storage = replace(PATIENT, cache_dir=tmp_path / "cache", cache_bytes=1 << 30)
    manifest = open_manifest(f"{server.url}/{{a,b}}/{{0,1}}.tar", "data.shards", storage)
    server.seen.clear()
    server.num_bytes_sent = 0
    return Remote(server, manifest, storage, sum(s.num_bytes for s in manifest.shards))


def samples_of(manifest: Manifest, storage: Storage | None = None) -> Samples:
    if storage is not None:
        manifest = replace(manifest, storage=storage)
    return Samples(manifest, (16, 16), seed=3, crop_area=(0.2, 1.0), labelled=True)


def stream_of(shards: Remote, storage: Storage, workers: int = 0) -> TrainingStream:
    samples = samples_of(shards.manifest, storage)
    return TrainingStream(samples, BATCH, Share(0, 1, BATCH // 2), workers)


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.places, one.bad) == (other.places, other.bad)
        for name, value in one.tensors.items():
            assert torch.equal(value, other.tensors[name]), name


def batches_of(stream: TrainingStream, first: int, last: int) -> list[Batch]:
    return [batch for step in stream.steps(first, last) for batch in step]


@pytest.fixture(scope="module")
def expected(local: Manifest) -> list[Batch]:
    """Give the micro-batches of three epochs, from local shards."""
    stream = TrainingStream(samples_of(local), BATCH, Share(0, 1, BATCH // 2), 0)
    return batches_of(stream, 0, 18)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def cached(folder: Path) -> dict[Path, int]:
    """Return the sizes of all files of a cache, unfinished ones included."""
    sizes: dict[Path, int] = {}
    for path in folder.rglob("*"):
        try:
            if path.is_file() and path.name != "lock":
                sizes[path] = path.stat().st_size
        except FileNotFoundError:
            continue
    return sizes


def has_all(shards: Remote, steps: range = range(6)) -> Callable[[], bool]:
    """Return whether every part that steps need is in the cache; tars' ends hold no sample."""
    return is_cached(shards.plan(), shards.storage, steps)


def is_cached(plan: ReadPlan, storage: Storage, steps: range) -> Callable[[], bool]:
    assert storage.cache_dir is not None
    ahead = LookAhead(plan, storage, 18)
    while not ahead.advance(steps.start):
        pass
    parts = {fetch.part for fetch in ahead.queue if fetch.step in steps}
    paths = [storage.cache_dir / part.folder / str(part.number) for part in parts]
    return lambda: all(path.exists() for path in paths)


@pytest.fixture
def child_log(tmp_path: Path) -> Iterator[Path]:
    """Give the file of what is logged, in processes that are started too."""
    handler = logging.FileHandler(tmp_path / "log")
    logging.getLogger().addHandler(handler)
    yield tmp_path / "log"
    logging.getLogger().removeHandler(handler)
    handler.close()


def read_all(reader: ShardReader) -> list[dict[str, bytes]]:
    return [
        reader.read(shard, sample, WANTED)
        for shard, count in enumerate(COUNTS)
        for sample in range(count)
    ]


# ---------------------------------------------------------------- the same batches


def test_remote_shards_have_the_fingerprint_of_local_ones(shards: Remote, local: Manifest) -> None:
    assert shards.manifest.fingerprint == local.fingerprint
    assert [s.name for s in shards.manifest.shards] == ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_batches_are_those_of_local_shards(
    shards: Remote, expected: list[Batch], workers: int, ratio: float
) -> None:
    shards.server.pick = at_random(seed=5, ratio=ratio)
    storage = replace(shards.storage, timeout_seconds=HASTY.timeout_seconds)
    assert_same(batches_of(stream_of(shards, storage, workers), 0, 18), expected)
    assert (shards.server.num_faults() > 5) == (ratio > 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_without_a_cache_too(shards: Remote, expected: list[Batch], workers: int) -> None:
    shards.server.pick = at_random(seed=6, ratio=0.2)
    assert_same(batches_of(stream_of(shards, HASTY, workers), 0, 6), expected[:12])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_stays_away_stops_the_run_with_a_line(shards: Remote, workers: int) -> None:
    shards.server.pick = lambda: Fault.UNAVAILABLE
    storage = Storage(0.3, 0.3, shards.cache, 1 << 20)
    with pytest.raises(RunStopped, match=r"^http://.*\.tar: status 503; tried for .*\)?") as caught:
        batches_of(stream_of(shards, storage, workers), 0, 6)
    assert "\n" not in str(caught.value)


def test_a_shard_replaced_on_the_server_stops_the_run(
    shards: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(shards.server.folder, other)
    monkeypatch.setattr(shards.server, "folder", other)
    for path in other.rglob("*.tar"):
        os.utime(path, (1, 1))
    with pytest.raises(RunStopped, match=r"changed on the server since it was indexed \(etag"):
        batches_of(stream_of(shards, shards.storage), 0, 6)


@pytest.mark.slow
def test_s3(
    folder: Path, expected: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "PART_BYTES", PART)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with s3() as bucket:
        bucket.upload(folder)
        storage = replace(PATIENT, cache_dir=tmp_path / "cache", cache_bytes=1 << 30)
        spec = [f"{bucket.url}/a", f"{bucket.url}/b/*.tar"]
        manifest = open_manifest(spec, "data.shards", storage)
        samples = samples_of(manifest, storage)
        stream = TrainingStream(samples, BATCH, Share(0, 1, BATCH // 2), 0)
        assert_same(batches_of(stream, 0, 18), expected)
        plan = ReadPlan(manifest, 3, BATCH, 0, BATCH)
        with Prefetcher(plan, storage, 0, 18):
            wait_until(is_cached(plan, storage, range(6)))
        assert_same(batches_of(stream, 0, 18), expected)
        assert samples.reader.num_hits > 48
        samples.reader.close()


# ---------------------------------------------------------------- what it spares


def test_each_shard_is_downloaded_once(shards: Remote, local: Manifest) -> None:
    reader = ShardReader(replace(shards.manifest, storage=shards.storage))
    with Prefetcher(shards.plan(), shards.storage, 0, 18):
        wait_until(has_all(shards))
    assert shards.server.num_bytes_sent <= shards.num_bytes
    num_requests = len(shards.server.seen)
    for _ in range(3):
        assert read_all(reader) == read_all(ShardReader(local))
    assert (reader.num_hits, reader.num_misses) == (3 * 48, 0)
    assert len(shards.server.seen) == num_requests


def test_without_it_each_sample_is_one_request(shards: Remote, local: Manifest) -> None:
    reader = ShardReader(replace(shards.manifest, storage=PATIENT))
    assert read_all(reader) == read_all(ShardReader(local))
    assert len(shards.server.seen) == reader.num_misses == 48  # image and label together
    assert shards.server.num_bytes_sent < shards.num_bytes


@pytest.mark.slow
def test_the_size_holds_all_the_time(shards: Remote, expected: list[Batch]) -> None:
    limit = shards.num_bytes // 3
    largest = 0
    is_done = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not is_done.is_set():
            largest = max(largest, sum(cached(shards.cache).values()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    stream = stream_of(shards, shards.with_cache(limit))
    found: list[Batch] = []
    for step in stream.steps(0, 18):
        found += step
        wait_until(lambda: sum(cached(shards.cache).values()) > limit - 2 * PART)
    is_done.set()
    watcher.join()
    assert_same(found, expected)
    assert limit - 2 * PART < largest <= limit
    # each sample read directly, and the cache filled: more would be thrashing
    assert shards.server.num_bytes_sent < 3 * shards.num_bytes + limit + 18 * PART


def test_a_full_cache_of_needed_parts_is_left_as_it_is(shards: Remote) -> None:
    """Every step needs every shard, so nothing may go, and what does not fit is not fetched."""
    limit = shards.num_bytes // 3
    with Prefetcher(shards.plan(), shards.with_cache(limit), 0, 18) as prefetcher:
        wait_until(lambda: sum(cached(shards.cache).values()) > limit - PART)
        before, sent = cached(shards.cache), shards.server.num_bytes_sent
        for step in range(3):
            prefetcher.advance(step)
            time.sleep(0.15)  # nothing should happen, so there is no event to wait for
        assert cached(shards.cache) == before
        assert shards.server.num_bytes_sent == sent <= limit


def test_it_reads_no_further_than_the_look_ahead(
    shards: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookahead, "LOOK_AHEAD", BATCH)  # but at least two steps
    ahead = LookAhead(shards.plan(), shards.storage, 18)
    while not ahead.advance(3):
        pass
    assert {fetch.step for fetch in ahead.queue} == {3, 4}
    assert ahead.advance(3)
    while not ahead.advance(17):
        pass
    assert {fetch.step for fetch in ahead.queue} == {17}


def test_parts_are_those_of_the_positions(shards: Remote) -> None:
    manifest = shards.manifest
    order = Order(manifest.starts, 3)
    reader = ShardReader(replace(manifest, storage=shards.storage))
    whole = ReadPlan(manifest, 3, 10, 0, 10)  # the last batch of an epoch has 8 samples
    for plan in (whole, ReadPlan(manifest, 3, 10, 0, 5), ReadPlan(manifest, 3, 10, 5, 10)):
        ahead = LookAhead(plan, shards.storage, 20)
        for step in range(12):
            epoch, batch = divmod(step, 5)
            slots = range(10 * batch + plan.first_slot, 10 * batch + plan.last_slot)
            ids = order.samples(epoch, np.array([slot for slot in slots if slot < 48], np.int64))
            needed: dict[tuple[int, int], None] = {}
            for shard, sample in map(order.locate, ids.tolist()):
                index = reader._opened(shard).samples
                assert isinstance(index, ShardIndex)
                members = index.members(sample).values()
                start = min(member.offset for member in members)
                stop = max(member.offset + member.size for member in members)
                for number in range(start // PART, (stop - 1) // PART + 1):
                    needed[shard, number] = None
            assert ahead.parts(step) == list(needed)


def test_needs_are_forgotten(shards: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookahead, "LOOK_AHEAD", 2 * BATCH)
    ahead = LookAhead(shards.plan(), shards.with_cache(2 * PART), 1 << 40)
    part = cache.Part("x", 1)
    for step in range(20_000):
        ahead._needs[cache.Part("x", step)] = step
        ahead._forget_before(step)
    assert len(ahead._needs) < 10_000
    assert ahead.last_need(part) is None
    assert ahead.last_need(cache.Part("x", 19_999)) == 19_999


@pytest.mark.parametrize(
    ("environment", "rank", "slots"),
    [
        ({}, 0, (0, 4)),
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "8"}, 8, (32, 64)),
        ({"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}, 11, (32, 64)),
    ],
)
def test_a_node_reads_the_slots_of_its_ranks(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    rank: int,
    slots: tuple[int, int],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert node_slots(rank, 4) == slots


# ---------------------------------------------------------------- what it must not do


def test_it_starts_only_where_it_helps(
    shards: Remote, local: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Prefetcher(ReadPlan(local, 3, BATCH, 0, BATCH), shards.storage, 0, 9) as prefetcher:
        assert prefetcher.pid is None
    with Prefetcher(shards.plan(), Storage(), 0, 9) as prefetcher:
        assert prefetcher.pid is None
    monkeypatch.setenv("LOCAL_RANK", "1")
    with Prefetcher(shards.plan(), shards.storage, 0, 9) as prefetcher:
        assert prefetcher.pid is None
    assert multiprocessing.active_children() == []


def test_it_may_be_spawned(shards: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("spawn")
    monkeypatch.setattr(multiprocessing, "get_context", lambda: context)
    with Prefetcher(shards.plan(), shards.storage, 0, 18):
        # parts have their real size there, and each shard is smaller
        wait_until(lambda: len([p for p in cached(shards.cache) if p.name == "0"]) == 4)


def test_signals_are_the_trainers(shards: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookahead, "LOOK_AHEAD", 2 * BATCH)
    with Prefetcher(shards.plan(), shards.storage, 0, 18) as prefetcher:
        pid = prefetcher.pid
        assert pid is not None
        wait_until(has_all(shards, range(2)))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(pid, number)
        for step in range(1, 6):
            prefetcher.advance(step)
        wait_until(has_all(shards, range(5, 7)))
        assert prefetcher.pid == pid
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_it_is_started_again_a_few_times(
    shards: Remote, expected: list[Batch], caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    stream = stream_of(shards, shards.storage, workers)
    found: list[Batch] = []
    for step in stream.steps(0, 18):
        found += step
        for child in multiprocessing.active_children():
            if child.name == "read-ahead":
                child.kill()
                child.join()
    assert_same(found, expected)
    texts = [
        record.getMessage() for record in caplog.records if record.name == "data.ahead.prefetch"
    ]
    assert texts == ["the process that reads ahead ended with status -9; it is started again"] * (
        prefetch._MAX_STARTS - 1
    ) + ["the process that reads ahead ended with status -9; the run goes on without it"]


def test_a_corrupted_part_gives_the_same_bytes(shards: Remote, local: Manifest) -> None:
    with Prefetcher(shards.plan(), shards.storage, 0, 18):
        wait_until(has_all(shards))
    for path in cached(shards.cache):
        content = bytearray(path.read_bytes())
        content[::50] = bytes(len(content[::50]))
        path.write_bytes(content)
    reader = ShardReader(replace(shards.manifest, storage=shards.storage))
    assert read_all(reader) == read_all(ShardReader(local))
    assert reader.num_hits > 0
    assert len(cached(shards.cache)) <= 4  # whose samples all lie in a part before them, too


def test_bytes_that_a_proxy_spoils_are_asked_for_again(shards: Remote, local: Manifest) -> None:
    reader = ShardReader(replace(shards.manifest, storage=PATIENT))
    shards.server.faults.append(Fault.OTHER_BYTES)
    assert reader.read(1, 3, WANTED) == ShardReader(local).read(1, 3, WANTED)
    assert len(shards.server.seen) == 2


def test_two_runs_share_a_folder(
    shards: Remote, monkeypatch: pytest.MonkeyPatch, child_log: Path
) -> None:
    """One writes; when it ends, the other does."""
    monkeypatch.setattr(fetcher, "_PATIENCE", 0.2)
    with Prefetcher(shards.plan(), shards.storage, 0, 18) as one:
        wait_until(has_all(shards))
        with Prefetcher(shards.plan(), shards.storage, 0, 18) as other:
            assert other.pid is not None
            assert one.pid != other.pid
            sent = shards.server.num_bytes_sent
            wait_until(lambda: "another run writes to" in child_log.read_text())
            assert shards.server.num_bytes_sent == sent
            os.kill(
                other.pid, signal.SIGSTOP
            )  # or it could find the cache full before it is emptied
            one.__exit__(None, None, None)
            for path in cached(shards.cache):
                path.unlink()
            os.kill(other.pid, signal.SIGCONT)
            wait_until(has_all(shards))
            assert shards.server.num_bytes_sent == 2 * sent


def test_a_server_that_fails_is_told_once_and_waited_for(shards: Remote, child_log: Path) -> None:
    shards.server.pick = lambda: Fault.UNAVAILABLE
    with Prefetcher(shards.plan(), shards.storage, 0, 18):
        wait_until(lambda: len(shards.server.seen) > 10)
        shards.server.pick = lambda: None
        wait_until(has_all(shards))
        wait_until(lambda: "reading ahead: http://" in child_log.read_text())
    assert child_log.read_text().count("reading ahead: http://") == 1


def test_a_folder_that_cannot_be_written_is_told(
    shards: Remote, tmp_path: Path, expected: list[Batch], child_log: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    storage = replace(PATIENT, cache_dir=tmp_path / "file" / "cache", cache_bytes=1 << 20)
    assert_same(batches_of(stream_of(shards, storage), 0, 6), expected[:12])
    assert f"the cache {storage.cache_dir} is not filled" in child_log.read_text()


# ---------------------------------------------------------------- how it ends

SCRIPT = """
import multiprocessing, sys, time
from data.index.open import open_manifest
from data.ahead.lookahead import ReadPlan
from data.ahead.prefetch import Prefetcher
from data.storage.locations import Storage
from pathlib import Path
manifest = open_manifest(sys.argv[1], "data.shards")
print("indexed", flush=True)
sys.stdin.readline()
storage = Storage(5, 5, Path(sys.argv[2]), 1 << 30)
prefetcher = Prefetcher(ReadPlan(manifest, 3, 8, 0, 8), storage, 0, 18).__enter__()
print(prefetcher.pid, flush=True)
if sys.argv[3] == "wait":
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    other.start()
    print(other.pid, flush=True)
    time.sleep(60)
"""


def start_script(
    shards: Remote, then: str, fault: Fault | None = None
) -> tuple["subprocess.Popen[str]", int]:
    """Start a process that reads ahead; return it, and the process that it started."""
    url = f"{shards.server.url}/{{a,b}}/{{0,1}}.tar"
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT, url, str(shards.cache), then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "indexed\n"
    shards.server.pick = lambda: fault
    child.stdin.write("\n")
    child.stdin.flush()
    return child, int(child.stdout.readline())


def is_gone(pid: int) -> Callable[[], bool]:
    """Return whether a process has ended; nobody may wait for an orphan but init."""

    def check() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    return check


def test_it_ends_with_its_parent(shards: Remote) -> None:
    """Also while a loader process, forked later, keeps the parent's pipes open."""
    child, pid = start_script(shards, "wait")
    assert child.stdout is not None
    other = int(child.stdout.readline())
    assert not is_gone(pid)()
    child.kill()
    child.wait()
    began = time.monotonic()
    wait_until(is_gone(pid))
    assert time.monotonic() - began < 20  # the other one would keep it for 60
    os.kill(other, signal.SIGKILL)
    child.communicate()


def test_a_run_that_is_left_in_the_middle_ends_at_once(shards: Remote) -> None:
    """Nobody closed the context; multiprocessing would wait for the process for ever."""
    child, pid = start_script(shards, "leave", Fault.MUTE)
    _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (0, "")
    wait_until(is_gone(pid))
