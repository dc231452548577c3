"""Ranged reads, local and remote: exact bytes, or a line that says why not; never a hang."""

import gc
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest
from fsspec.registry import _registry

from data.settings import RunStopped, UserError
from data.storage import http
from data.storage import remote as files
from data.storage.files import keep_connections, open_file, probe
from data.storage.locations import Missing, Storage, Version, check_location, public_name
from data.storage.remote import RemoteFile, connections, list_remote, retry
from data.storage.transport import Transient
from tests.servers import (
    PASSING,
    Fault,
    FlakyServer,
    at_random,
    flaky_http,
    make_certificate,
    needs_nginx,
    nginx,
    s3,
)

CONTENT = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
STORAGE = Storage(timeout_seconds=0.2, retry_seconds=20)
ONCE = Storage(timeout_seconds=0.2, retry_seconds=0)
SLOW = Storage(timeout_seconds=10, retry_seconds=0)  # moto takes half a second to wake
RANGES = [(0, 1), (0, 100_000), (99_999, 1), (12_345, 678), (99_000, 5_000), (100_000, 1), (3, 0)]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.tar").write_bytes(CONTENT)
    (folder / "empty.tar").write_bytes(b"")
    (folder / "a b%+.tar").write_bytes(b"name")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[FlakyServer]:
    with flaky_http(folder) as server:
        yield server


@pytest.fixture(autouse=True)
def _all_is_closed() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """Fail a test after which connections are still held that it found not held."""
    _settle()
    before = connections._num_holders  # by a test that failed, whose frames pytest keeps
    yield
    _settle()
    assert connections._num_holders == before
    assert before or connections._transports == {}


def _settle() -> None:
    """Collect files that nobody closed, whose connections go when others are next used."""
    gc.collect()
    with keep_connections():
        pass


def read(url: str, offset: int = 0, size: int = 10, storage: Storage = ONCE) -> bytes:
    file = open_file(url, storage, None)
    try:
        return file.read(offset, size)
    finally:
        file.close()


def refusal(url: str, storage: Storage = ONCE, expected: Version | None = None) -> str:
    """Return the line with which reading stops."""
    file = open_file(url, storage, expected)
    try:
        with pytest.raises(RunStopped) as caught:
            file.read(5, 10)
    finally:
        file.close()
    assert "\n" not in str(caught.value)
    assert url.partition("?")[0] in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- locations


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("/data/a?b#c@d.tar", "/data/a?b#c@d.tar"),
        ("https://host:1/a.tar?X-Signature=secret#secret", "https://host:1/a.tar"),
        ("HTTPS://host/a@v1/b.tar", "https://host/a@v1/b.tar"),
        ("https://user:secret@host/a.tar", "https://***"),
        ("https://user:sec/ret@host/a.tar", "https://***"),
        ("http://[::1]:80/a.tar", "http://[::1]:80/a.tar"),
        ("s3://bucket/a?b#c.tar", "s3://bucket/a?b#c.tar"),
        ("s3://KEY:secret@bucket/a.tar", "s3://***"),
    ],
)
def test_public_name_holds_no_secret(location: str, name: str) -> None:
    assert public_name(location) == name


@pytest.mark.parametrize("url", ["https://host/a.tar", "http://[::1]:8/a", "s3://b/a@b:c.tar"])
def test_check_location_lets_urls_pass(url: str) -> None:
    check_location(url, "data.shards")


@pytest.mark.parametrize(
    ("url", "module", "remedy"),
    [
        ("s3://bucket/a.tar", "s3fs", r"pip install -e '.\[remote\]' here"),
        ("gs://bucket/a.tar", "gcsfs", "pip install gcsfs"),
    ],
)
def test_a_missing_driver_names_the_extra(url: str, module: str, remedy: str) -> None:
    with mock.patch.dict(_registry), mock.patch.dict(sys.modules, {module: None}):
        _registry.pop("s3", None)  # as if it had not been met before
        with pytest.raises(UserError, match=rf"^{url[:2]}:// shards need .*; {remedy}$"):
            probe(url, ONCE)


def test_local_files_import_no_driver() -> None:
    code = (
        "import sys, data.shards\n"
        "from data.storage.files import probe\n"
        "from data.storage.locations import Storage\n"
        "probe('/dev/null', Storage())\n"
        "print(sorted({'fsspec', 'aiohttp', 's3fs', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "[]\n"


def test_a_local_file_ends_where_it_ends(folder: Path) -> None:
    file = open_file(str(folder / "a.tar"), ONCE, Version(3, "other"))
    assert [file.read(*place) for place in RANGES] == [CONTENT[o : o + n] for o, n in RANGES]
    assert file.version == probe(str(folder / "a.tar"), ONCE) == Version(100_000, None)
    file.close()


# ---------------------------------------------------------------- sound servers


def check_reads(url: str, storage: Storage = STORAGE) -> None:
    """Read ranges, and files with other names, through one server."""
    version = probe(f"{url}/a.tar", storage)
    assert version.num_bytes == 100_000
    assert version.etag
    for expected in (version, None):
        file = open_file(f"{url}/a.tar", storage, expected)
        assert [file.read(*place) for place in RANGES] == [CONTENT[o : o + n] for o, n in RANGES]
        assert file.version == version
        assert file.num_bytes == 100_000
        file.close()
    assert probe(f"{url}/empty.tar", storage).num_bytes == 0
    assert read(f"{url}/empty.tar", storage=storage) == b""
    assert "a.tarr does not exist (status 404)" in refusal(f"{url}/a.tarr", storage)
    with pytest.raises(Missing):
        probe(f"{url}/a.tarr", storage)


def test_http(server: FlakyServer) -> None:
    check_reads(server.url)
    for name in ("a b%25+.tar", "a%20b%25%2B.tar"):
        assert read(f"{server.url}/{name}?key=%2Fsecret") == b"name"
        assert server.seen[-1].path.endswith("?key=%2Fsecret")


@needs_nginx
def test_nginx(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with nginx(folder, tmp_path / "work") as url:
        check_reads(url)
        version = probe(f"{url}/a.tar", ONCE)
        os.utime(folder / "a.tar", (1, 1))  # its etag is made of time and size
        text = refusal(f"{url}/a.tar", STORAGE, version)
        assert f"since it was indexed (etag {version.etag} -> " in text


@needs_nginx
def test_nginx_without_ranges(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with nginx(folder, tmp_path / "work", "max_ranges 0;") as url:
        began = time.monotonic()
        text = refusal(f"{url}/a.tar", STORAGE)
        assert "does not serve ranges; use a server that does, copy the shards to disk" in text
        assert time.monotonic() - began < 15  # it would be asked again for 20


@needs_nginx
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_https(folder: Path, tmp_path: Path, server: FlakyServer) -> None:
    """A certificate that does not hold stops at once, and so does a redirect to plain http."""
    (tmp_path / "work").mkdir()
    certificate = make_certificate(tmp_path / "work")
    extra = f"rewrite ^/moved(.*)$ {server.url}$1 redirect;"
    with nginx(folder, tmp_path / "work", extra, certificate) as url:
        assert "the server's certificate does not hold" in refusal(f"{url}/a.tar", STORAGE)
        code = (
            "from data.storage.locations import Storage; from data.storage.files import probe\n"
            "from data.settings import RunStopped\n"
            f"print(probe('{url}/a.tar', Storage()).num_bytes)\n"
            f"try: probe('{url}/moved/a.tar', Storage())\n"
            "except RunStopped as error: print(error)\n"
        )
        environment = {**os.environ, "SSL_CERT_FILE": str(certificate)}
        command = [sys.executable, "-W", "error", "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    expected = f"{url}/moved/a.tar redirects to unencrypted http; refused"
    assert (done.stdout.splitlines(), done.stderr) == (["100000", expected], "")


@pytest.mark.slow
def test_s3(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3() as bucket:
        bucket.upload(folder)
        check_reads(bucket.url, SLOW)
        assert list_remote(f"{bucket.url}/*.tar", SLOW) == [
            f"{bucket.url}/{name}" for name in ("a b%+.tar", "a.tar", "empty.tar")
        ]
        version = probe(f"{bucket.url}/a.tar", SLOW)
        assert version.etag is not None
        file = open_file(f"{bucket.url}/a.tar", SLOW, version)
        assert file.read(7, 3) == CONTENT[7:10]
        (folder / "a.tar").write_bytes(CONTENT[::-1])
        bucket.upload(folder)
        with pytest.raises(RunStopped, match=r"a.tar changed on the server since it was indexed"):
            file.read(7, 3)
        file.close()
        assert "does not exist (status 404)" in refusal("s3://other/a.tar", SLOW)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # it would be asked for a login
    text = refusal(f"{bucket.url}/a.tar", SLOW, version)
    assert "wants a login (status 401); give it in AWS_PROFILE, ~/.aws or" in text


# ---------------------------------------------------------------- faults that pass


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_tried_again(
    server: FlakyServer, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    version = probe(f"{server.url}/a.tar", STORAGE)
    file = open_file(f"{server.url}/a.tar?key=secret", STORAGE, version)
    server.faults.extend([fault, None])
    with keep_connections():
        assert file.read(1000, 5000) == CONTENT[1000:6000]
    file.close()
    assert not server.faults
    if fault is not Fault.RESET:  # aiohttp asks once more by itself
        [record] = caplog.records
        assert record.getMessage().startswith(f"{server.url}/a.tar: ")
        assert "trying again for 20.0 s at most" in record.getMessage()
    assert "secret" not in caplog.text


@pytest.mark.parametrize("fault", [fault for fault in PASSING if fault is not Fault.WHOLE])
def test_a_fault_that_stays_stops_the_run(server: FlakyServer, fault: Fault) -> None:
    version = probe(f"{server.url}/a.tar", STORAGE)
    server.pick = lambda: fault
    storage = Storage(timeout_seconds=0.1, retry_seconds=0.3)
    text = refusal(f"{server.url}/a.tar?key=secret", storage, version)
    assert "(data.retry_minutes=0.005, data.timeout_seconds=0.1)" in text
    assert "secret" not in text
    assert 2 <= server.num_faults() <= 8


def test_reads_are_exact_while_faults_come_at_random(server: FlakyServer) -> None:
    server.pick = at_random(seed=1, ratio=0.4)
    file = open_file(f"{server.url}/a.tar", Storage(timeout_seconds=0.1, retry_seconds=30))
    generator = np.random.default_rng(2)
    for offset, size in generator.integers(1, 50_000, (40, 2)).tolist():
        assert file.read(offset, size) == CONTENT[offset : offset + size]
    file.close()
    assert server.num_faults() > 10


def test_retry_after_is_heeded(server: FlakyServer) -> None:
    server.faults.extend([Fault.RETRY_AFTER, None])
    began = time.monotonic()
    assert read(f"{server.url}/a.tar", storage=STORAGE) == CONTENT[:10]
    assert time.monotonic() - began >= 1


def test_pauses_and_warnings_become_rarer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, pauses = 0.0, list[float]()

    def sleep(seconds: float) -> None:
        nonlocal now
        pauses.append(seconds)
        now += seconds

    def attempt() -> None:
        raise Transient("status 503")

    monkeypatch.setattr(files.time, "sleep", sleep)
    monkeypatch.setattr(files.time, "monotonic", lambda: now)
    with pytest.raises(RunStopped, match=r"http://h/a: status 503; tried for 600.0 s") as caught:
        retry(attempt, "http://h/a?secret", Storage())
    assert "data.retry_minutes=10, data.timeout_seconds=30" in str(caught.value)
    assert max(pauses[:3]) < 0.5
    assert 10 < max(pauses) <= 30
    assert sum(pauses) == pytest.approx(600)
    assert 3 <= len(caplog.records) <= 4  # after about 0, 15, 60 and 240 s


def test_an_outage_that_ends_is_told(server: FlakyServer, caplog: pytest.LogCaptureFixture) -> None:
    with mock.patch.object(files, "_FIRST_REPORT", 0.05):
        server.faults.extend([Fault.UNAVAILABLE] * 3)
        assert read(f"{server.url}/a.tar", storage=STORAGE) == CONTENT[:10]
    assert "answers again after" in caplog.records[-1].getMessage()


def test_a_server_that_starts_late_is_waited_for(folder: Path) -> None:
    with flaky_http(folder) as server:
        port = server.server_port
        version = probe(f"{server.url}/a.tar", ONCE)
    assert "Connect call failed" in refusal(f"http://127.0.0.1:{port}/a.tar", expected=version)


@pytest.mark.parametrize("fault", [Fault.STALL, Fault.MUTE])
def test_silence_is_given_up_long_before_the_time_for_a_large_body(
    server: FlakyServer, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(http, "longest_seconds", mock.Mock(return_value=3600))
    version = probe(f"{server.url}/a.tar", ONCE)
    server.faults.append(fault)
    assert "no answer within 0.2 s" in refusal(f"{server.url}/a.tar", ONCE, version)


def test_a_body_that_drips_is_given_up(
    server: FlakyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then never falls silent, so only the time in all can end it."""
    monkeypatch.setattr(http, "longest_seconds", mock.Mock(return_value=0.3))
    version = probe(f"{server.url}/a.tar", ONCE)
    server.faults.append(Fault.STALL)
    storage = Storage(timeout_seconds=30, retry_seconds=0)
    assert "no answer within" in refusal(f"{server.url}/a.tar", storage, version)


# ---------------------------------------------------------------- answers that stop at once


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault.FORBIDDEN, "is refused (status 403); check the permissions, and the login in ~/.n"),
        (Fault.UNAUTHORIZED, "wants a login (status 401); give it in ~/.netrc"),
        (Fault.TO_FILE, "redirects away from http; refused"),
        (Fault.TO_ITSELF, "redirects in a circle; correct the location"),
    ],
)
def test_what_cannot_pass_stops_at_once(server: FlakyServer, fault: Fault, text: str) -> None:
    server.faults.append(fault)
    assert text in refusal(f"{server.url}/a.tar", STORAGE)
    assert server.num_faults() == (10 if fault is Fault.TO_ITSELF else 1)


def test_a_server_without_ranges_is_refused_soon(server: FlakyServer) -> None:
    server.pick = lambda: Fault.WHOLE
    assert "does not serve ranges" in refusal(f"{server.url}/a.tar", STORAGE)
    assert len(server.seen) == 3


def test_a_whole_file_is_not_downloaded_in_answer_to_a_range(
    folder: Path, server: FlakyServer
) -> None:
    with (folder / "large.tar").open("wb") as file:
        file.truncate(64 << 20)
    server.pick = lambda: Fault.WHOLE
    storage = Storage(timeout_seconds=10, retry_seconds=20)
    assert "does not serve ranges" in refusal(f"{server.url}/large.tar", storage)
    assert len(server.seen) == 3
    assert server.num_bytes_sent < 64 << 20


def test_a_whole_file_is_fine_where_it_is_what_was_asked(server: FlakyServer) -> None:
    version = probe(f"{server.url}/a.tar", ONCE)
    server.faults.append(Fault.WHOLE)
    file = open_file(f"{server.url}/a.tar", ONCE, version)
    assert file.read(0, 200_000) == CONTENT
    file.close()


# ---------------------------------------------------------------- versions


def test_a_changed_etag_is_refused(folder: Path, server: FlakyServer) -> None:
    version = probe(f"{server.url}/a.tar", ONCE)
    (folder / "a.tar").write_bytes(CONTENT[::-1])
    text = refusal(f"{server.url}/a.tar?key=secret", STORAGE, version)
    new = probe(f"{server.url}/a.tar", ONCE)
    assert text == (
        f"{server.url}/a.tar changed on the server since it was indexed (etag {version.etag} -> "
        f"{new.etag}); index it again with scripts/index_shards.py, or restore it"
    )
    assert all(seen.headers["If-Match"] == version.etag for seen in server.seen[1:2])


def test_a_changed_etag_is_noticed_where_if_match_is_ignored(server: FlakyServer) -> None:
    version = probe(f"{server.url}/a.tar", ONCE)
    server.has_etags = False  # neither compared nor sent
    server.faults.append(None)
    file = open_file(f"{server.url}/a.tar", ONCE, version._replace(etag='W/"weak"'))
    assert "changed on the server" in refusal(
        f"{server.url}/a.tar", ONCE, version._replace(etag='W/"weak"')
    )
    file.close()
    assert "If-Match" not in server.seen[-1].headers  # it never matches weak ones


def test_a_changed_size_is_refused(folder: Path, server: FlakyServer) -> None:
    (folder / "a.tar").write_bytes(CONTENT[:-1])
    text = refusal(f"{server.url}/a.tar", STORAGE, Version(100_000, None))
    assert "since it was indexed (100000 -> 99999 bytes, etag None -> " in text
    (folder / "a.tar").write_bytes(b"abc")
    text = refusal(f"{server.url}/a.tar", STORAGE, Version(100_000, None))
    assert "(100000 -> 3 bytes" in text


@pytest.mark.parametrize("expected", [None, Version(100_000, None)])
def test_without_an_index_all_reads_see_one_version(
    server: FlakyServer, expected: Version | None
) -> None:
    file = open_file(f"{server.url}/a.tar", STORAGE, expected)
    assert file.read(0, 5) == CONTENT[:5]
    os.utime(server.folder / "a.tar", (1, 1))
    with pytest.raises(RunStopped, match=r"a.tar changed on the server while it was read \(etag"):
        file.read(0, 5)
    file.close()


def test_a_server_without_etags_tells_the_time(folder: Path, server: FlakyServer) -> None:
    server.has_etags = False
    version = probe(f"{server.url}/a.tar", ONCE)
    assert version.etag is not None
    assert version.etag.startswith("mtime:")
    os.utime(folder / "a.tar", (1, 1))
    text = refusal(f"{server.url}/a.tar", STORAGE, version)
    assert "-> mtime:Thu, 01 Jan 1970 00:00:01 GMT" in text


def test_a_412_without_a_change_is_tried_again(server: FlakyServer) -> None:
    version = probe(f"{server.url}/a.tar", ONCE)
    server.faults.append(Fault.NEW_ETAG)  # one machine of several that knows another etag
    file = open_file(f"{server.url}/a.tar", STORAGE, version)
    assert file.read(3, 5) == CONTENT[3:8]
    file.close()


# ---------------------------------------------------------------- logins


def test_a_login_comes_from_netrc(
    server: FlakyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert read(f"{server.url}/a.tar") == CONTENT[:10]
    assert server.seen[-1].headers["Authorization"] == "Basic bWU6c2VjcmV0"


# ---------------------------------------------------------------- processes, threads, signals


def _read_in_child(file: RemoteFile, results: Connection) -> None:
    results.send(file.read(500, 5))
    file.close()
    results.send(connections._num_holders)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_connects_anew(server: FlakyServer, method: str) -> None:
    version = probe(f"{server.url}/a.tar", ONCE)
    file = RemoteFile(f"{server.url}/a.tar", STORAGE, version)
    if method == "fork":  # else it would be pickled with what it holds
        assert file.read(0, 5) == CONTENT[:5]
    receiver, sender = multiprocessing.Pipe(duplex=False)
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=_read_in_child, args=(file, sender))
    child.start()
    assert receiver.poll(30)
    assert receiver.recv() == CONTENT[500:505]
    assert receiver.recv() == 0
    child.join()
    assert file.read(7, 5) == CONTENT[7:12]  # the parent's connection still works
    file.close()


def test_a_file_collected_under_the_lock_does_not_wait_for_it(server: FlakyServer) -> None:
    files = [open_file(f"{server.url}/a.tar", STORAGE) for _ in range(2)]
    assert [file.read(0, 5) for file in files] == [CONTENT[:5]] * 2
    before = connections._num_holders
    with connections._lock:  # the collector may run at any allocation
        del files[:]
    _settle()
    assert connections._num_holders == before - 2


def test_a_file_collected_on_the_loop_does_not_wait_for_it(server: FlakyServer) -> None:
    """fsspec's own thread cannot wait for the closing that it would have to do."""
    files = [open_file(f"{server.url}/a.tar", STORAGE)]
    assert files[0].read(0, 5) == CONTENT[:5]
    transport = next(iter(connections._transports.values()))
    is_done = threading.Event()

    def collect() -> None:
        files.clear()
        is_done.set()

    cast(Any, transport)._files.loop.call_soon_threadsafe(collect)
    assert is_done.wait(20)
    assert read(f"{server.url}/a.tar") == CONTENT[:10]


def test_threads_share_connections(server: FlakyServer) -> None:
    results: list[bytes] = []

    def read_some(start: int) -> None:
        file = open_file(f"{server.url}/a.tar", STORAGE)
        results.extend(file.read(start + i, 1) for i in range(20))
        file.close()

    threads = [threading.Thread(target=read_some, args=(20 * i,)) for i in range(8)]
    with keep_connections():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(results) == sorted(CONTENT[i : i + 1] for i in range(160))
    assert len(server.connections) <= 9


def test_ctrl_c_ends_a_read_at_once(server: FlakyServer, folder: Path) -> None:
    """It comes while the server says nothing; nothing is left behind, not even a warning."""
    server.pick = lambda: Fault.MUTE
    code = (
        "import signal\n"
        "from data.storage.files import open_file\n"
        "from data.storage.locations import Storage\n"
        # what is started in the background may have been told to ignore it
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print('ready', flush=True)\n"
        f"open_file('{server.url}/a.tar', Storage()).read(0, 5)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    while not server.seen:
        time.sleep(0.01)
    child.send_signal(2)
    _, errors = child.communicate(timeout=60)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "Unclosed" not in errors
    assert "never" not in errors
