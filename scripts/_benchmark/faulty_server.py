"""A web server on this machine that serves a folder by range, and fails as it is told to."""

import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_MIN_CUT = 64  # bytes: a shorter answer, such as to a question after the size, is left whole


class FaultyServer(ThreadingHTTPServer):
    """Serves the files of a folder over HTTP/1.1 with ranges and etags.

    Attributes:
        short: Shards whose next answer ends too early, without a Content-Length, so that the client
            cannot see it from HTTP alone: at the offset given, or where the answer does not
            contain that, in its middle.
        unavailable: How many more requests each shard answers with 503.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.short: dict[str, int] = {}
        self.unavailable: dict[str, int] = {}
        self.lock = threading.Lock()

    def url(self, name: str) -> str:
        """Return a file's URL."""
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def takes_unavailable(self, name: str) -> bool:
        """Tell whether to answer 503, and count it."""
        with self.lock:
            left = self.unavailable.get(name, 0)
            self.unavailable[name] = max(0, left - 1)
            return left > 0

    def end_of(self, name: str, begin: int, end: int) -> int:
        """Return where an answer of the bytes from `begin` to `end` ends; the next one is whole."""
        with self.lock:
            if end - begin < _MIN_CUT or name not in self.short:
                return end
            offset = self.short.pop(name)
            return offset if begin < offset < end else (begin + end) // 2

    @property
    def is_spent(self) -> bool:
        """Whether all faults have been met."""
        return not self.short and not any(self.unavailable.values())


@contextmanager
def serve(folder: Path) -> Generator[FaultyServer]:
    """Serve a folder while the context lasts."""
    server = FaultyServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each body waits 40 ms for its header's acknowledgement
    server: FaultyServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self._answer()

    def do_GET(self) -> None:
        """Answer with a file or a part of it."""
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def _answer(self) -> None:
        path = self.server.folder / self.path.strip("/")
        if not path.is_file():
            return self._refuse(HTTPStatus.NOT_FOUND)
        if self.server.takes_unavailable(path.name):
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        stat = path.stat()
        etag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
        if self.headers.get("If-Match", etag) != etag:
            return self._refuse(HTTPStatus.PRECONDITION_FAILED)
        begin, end = self._range(stat.st_size)
        if begin >= end and stat.st_size:
            return self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
        is_part = "Range" in self.headers
        self.send_response(HTTPStatus.PARTIAL_CONTENT if is_part else HTTPStatus.OK)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", etag)
        if is_part:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{stat.st_size}")
        return self._send_body(path, begin, end)

    def _send_body(self, path: Path, begin: int, end: int) -> None:
        is_get = self.command == "GET"
        real_end = self.server.end_of(path.name, begin, end) if is_get else end
        if real_end < end:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if is_get:
            with path.open("rb") as file:
                file.seek(begin)
                self.wfile.write(file.read(real_end - begin))

    def _range(self, size: int) -> tuple[int, int]:
        """Return the first byte that is asked for, and the one after the last."""
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "bytes=0-"))
        assert match is not None
        first, last = match.groups()
        if not first:
            return max(0, size - int(last)), size
        return int(first), min(size, int(last) + 1) if last else size

    def _refuse(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
