"""Servers on loopback for tests: one that fails as it is told, nginx, and a real S3 API.

Each is a context manager, and serves one folder. Nothing leaves the machine.
"""

import contextlib
import email.utils
import logging
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest import mock
from urllib.parse import unquote, urlsplit

import pytest

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
needs_nginx = pytest.mark.skipif(not Path(NGINX).exists(), reason="nginx is not installed")
BUCKET = "bucket"
_PIECE = 1 << 18  # bytes written at once


class Fault(Enum):
    """What goes wrong with one answer."""

    SHORT = auto()  # half of the body that Content-Length promises
    SHORT_UNSAID = auto()  # half of the body, without a Content-Length
    SHORT_SAID = auto()  # half of the body, and a Content-Length that says so
    LONG = auto()  # more than was asked, without a Content-Length
    OTHER_BYTES = auto()  # as a proxy that spoils them
    UNAVAILABLE = auto()
    RETRY_AFTER = auto()  # 503 and "Retry-After: 1"
    TOO_MANY = auto()
    STALL = auto()  # half of the body, then silence
    MUTE = auto()  # silence from the start
    WHOLE = auto()  # 200 and the whole file
    WRONG_RANGE = auto()  # the bytes before those asked for, and a Content-Range that says so
    UNSAID_RANGE = auto()  # 206 without a Content-Range
    RESET = auto()
    RESET_INSIDE = auto()  # after half of the body
    NEW_ETAG = auto()
    FORBIDDEN = auto()
    UNAUTHORIZED = auto()
    TO_FILE = auto()  # a redirect to file:///etc/passwd
    TO_ITSELF = auto()  # a redirect in a circle


# Those after which the same request may succeed.
PASSING = (
    Fault.SHORT,
    Fault.SHORT_UNSAID,
    Fault.SHORT_SAID,
    Fault.LONG,
    Fault.UNAVAILABLE,
    Fault.TOO_MANY,
    Fault.STALL,
    Fault.MUTE,
    Fault.WHOLE,
    Fault.WRONG_RANGE,
    Fault.UNSAID_RANGE,
    Fault.RESET,
    Fault.RESET_INSIDE,
)


class Seen(NamedTuple):
    """A request as the server saw it: its path, its headers, and what it was answered with."""

    path: str
    headers: dict[str, str]
    fault: Fault | None


def at_random(seed: int, ratio: float, faults: tuple[Fault, ...] = PASSING) -> Callable[[], Any]:
    """Return a `pick` that fails that part of the requests, drawn from a seed."""
    generator, lock = random.Random(seed), threading.Lock()

    def pick() -> Fault | None:
        with lock:
            return generator.choice(faults) if generator.random() < ratio else None

    return pick


class FlakyServer(ThreadingHTTPServer):
    """Serves a folder's files by range, with their md5-like etags, and fails as it is told.

    Attributes:
        faults: One for each coming request (None is a sound answer); when used up, `pick` decides.
        pick: Gives the fault of a request.
        seen: The requests so far.
        num_bytes_sent: The bodies' bytes so far.
        has_etags: Whether answers have an ETag; without, they have a Last-Modified.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: deque[Fault | None] = deque()
        self.pick: Callable[[], Fault | None] = lambda: None
        self.seen: list[Seen] = []
        self.num_bytes_sent = 0
        self.has_etags = True
        self.lock = threading.Lock()
        self.is_closing = threading.Event()
        self.connections: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def num_faults(self) -> int:
        return sum(seen.fault is not None for seen in self.seen)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet: clients that give up a faulty answer are the point."""

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.lock:
            self.connections.add(request)
        super().process_request(request, client_address)

    def stop(self) -> None:
        """End everything, idle connections included."""
        self.is_closing.set()
        self.shutdown()
        self.server_close()
        with self.lock:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass

    @property
    def flaky(self) -> FlakyServer:
        return cast(FlakyServer, self.server)

    def do_GET(self) -> None:
        server = self.flaky
        with server.lock:
            fault = server.faults.popleft() if server.faults else server.pick()
            server.seen.append(Seen(self.path, dict(self.headers), fault))
        path = server.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if self._answer_without_body(fault):
            return
        if not path.is_file():
            self._status(404)
            return
        self._send(path, fault)

    def _answer_without_body(self, fault: Fault | None) -> bool:
        simple = {
            Fault.UNAVAILABLE: 503,
            Fault.TOO_MANY: 429,
            Fault.FORBIDDEN: 403,
            Fault.UNAUTHORIZED: 401,
        }
        if fault in simple:
            self._status(simple[fault])
        elif fault is Fault.RETRY_AFTER:
            self._status(503, {"Retry-After": "1"})
        elif fault is Fault.TO_FILE:
            self._status(302, {"Location": "file:///etc/passwd"})
        elif fault is Fault.TO_ITSELF:
            self._status(302, {"Location": self.path})
            self.flaky.faults.appendleft(Fault.TO_ITSELF)
        elif fault is Fault.RESET:
            self._reset()
        elif fault is Fault.MUTE:
            self._fall_silent()
        else:
            return False
        return True

    def _send(self, path: Path, fault: Fault | None) -> None:
        content = path.read_bytes()
        etag = f'"{len(content):x}-{path.stat().st_mtime_ns:x}"'
        if fault is Fault.NEW_ETAG:
            etag = '"other"'
        if self.headers.get("If-Match", etag) != etag and self.flaky.has_etags:
            self._status(412)
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(match[1]), int(match[2])) if match else (0, len(content) - 1)
        last = min(last, len(content) - 1)
        if match and first > last:
            self._status(416, {"Content-Range": f"bytes */{len(content)}"})
            return
        if fault is Fault.WRONG_RANGE:  # of the right length
            move = 1 if last + 1 < len(content) else -1
            first, last = first + move, last + move
        if fault is Fault.WHOLE:
            first, last, match = 0, len(content) - 1, None
        headers = {"Last-Modified": email.utils.formatdate(path.stat().st_mtime, usegmt=True)}
        if self.flaky.has_etags:
            headers["ETag"] = etag
        if match and fault is not Fault.UNSAID_RANGE:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._body(206 if match else 200, headers, content[first : last + 1], fault)

    def _body(self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None) -> None:
        sent, length = _spoilt(body, fault)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length != len(sent):
            self.close_connection = True
            self.send_header("Connection", "close")
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        for start in range(0, len(sent), _PIECE):
            self.wfile.write(sent[start : start + _PIECE])
            with self.flaky.lock:
                self.flaky.num_bytes_sent += len(sent[start : start + _PIECE])
        if fault is Fault.STALL:
            self._fall_silent()
        elif fault is Fault.RESET_INSIDE:
            self._reset()

    def _status(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _fall_silent(self) -> None:
        self.flaky.is_closing.wait(60)
        self.close_connection = True

    def _reset(self) -> None:
        """Close with RST instead of FIN."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()


def _spoilt(body: bytes, fault: Fault | None) -> tuple[bytes, int | None]:
    """Return what is sent of a body, and the Content-Length that is claimed, if any."""
    half = body[: len(body) // 2]
    match fault:
        case Fault.SHORT | Fault.STALL | Fault.RESET_INSIDE:
            return half, len(body)
        case Fault.SHORT_UNSAID:
            return half, None
        case Fault.SHORT_SAID:
            return half, len(half)
        case Fault.LONG:
            return body + b"more", None
        case Fault.OTHER_BYTES:
            return bytes(byte ^ 1 for byte in body), len(body)
        case _:
            return body, len(body)


@contextmanager
def flaky_http(folder: Path) -> Generator[FlakyServer]:
    """Serve a folder by a server that fails as it is told."""
    server = FlakyServer(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


# ---------------------------------------------------------------- nginx


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_certificate(work: Path) -> Path:
    """Make cert.pem, which nobody but its owner trusts, and key.pem beside it."""
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", f"{work}/key.pem", "-out", f"{work}/cert.pem"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *names]
    subprocess.run(command, check=True, capture_output=True)
    return work / "cert.pem"


@contextmanager
def nginx(
    folder: Path, work: Path, extra: str = "", certificate: Path | None = None
) -> Generator[str]:
    """Serve a folder by nginx, over https if it has a certificate. Yields the URL.

    Args:
        folder: What is served.
        work: A folder for nginx's own files.
        extra: Lines of nginx's configuration, for its only location.
        certificate: As `make_certificate` makes it.
    """
    port = free_port()
    ssl = ""
    if certificate is not None:
        key = certificate.with_name("key.pem")
        ssl = f"ssl_certificate {certificate}; ssl_certificate_key {key};"
    temporary = "\n".join(
        f"{name}_temp_path {work}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = work / "nginx.conf"
    config.write_text(
        f"""
        daemon off; master_process off; pid {work}/pid; error_log {work}/error.log;
        events {{ worker_connections 256; }}
        http {{
            access_log {work}/access.log; {temporary}
            server {{
                listen 127.0.0.1:{port} {"ssl" if ssl else ""}; {ssl}
                location / {{ root {folder}; {extra} }}
            }}
        }}
        """
    )
    command = [NGINX, "-p", str(work), "-e", f"{work}/error.log", "-c", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield f"{'https' if ssl else 'http'}://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(500):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        assert process.poll() is None, "nginx did not start"
        time.sleep(0.01)
    raise AssertionError("nginx does not listen")


# ---------------------------------------------------------------- s3


class S3(NamedTuple):
    """A bucket on loopback.

    Attributes:
        url: s3://BUCKET
        client: botocore's client for it.
    """

    url: str
    client: Any

    def upload(self, folder: Path) -> None:
        """Put a folder's files into the bucket."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                key = path.relative_to(folder).as_posix()
                self.client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())


@contextmanager
def s3() -> Generator[S3]:
    """Start moto's server with an empty bucket; the environment names it while it runs."""
    import botocore.session
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    try:
        with mock.patch.dict(os.environ, environment):
            client = botocore.session.get_session().create_client("s3")
            client.create_bucket(Bucket=BUCKET)
            yield S3(f"s3://{BUCKET}", client)
            client.close()
    finally:
        server.stop()
