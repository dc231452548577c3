"""One request to a server, and the checks of its answer; fsspec's drivers carry it.

fsspec's own reading trusts answers: `cat_file` takes a whole file for a range, and `HTTPFile` an
error 416 for an empty one. So each request is made on the driver's session, and its status, range,
length and etag are compared with what was asked before its bytes count.
"""

import asyncio
import re
from collections.abc import Coroutine
from importlib import import_module
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from data.settings import RunStopped
from data.storage.locations import Missing, Version, protocol_of, public_name

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_TRANSIENT = frozenset({408, 425, 429})
_MAX_RETRY_AFTER = 120.0  # seconds that a server may ask us to wait
# Bytes a second below which a body that never quite falls silent is given up all the same.
_MIN_RATE = 16_384
_REASONS = {
    "ClientPayloadError": "the connection ended inside the body",
    "IncompleteReadError": "the connection ended inside the body",
    "ServerDisconnectedError": "the connection was closed",
}
_T = TypeVar("_T")


class Transient(Exception):  # noqa: N818 - a finding about one attempt
    """An attempt that failed in a way that may pass; the text says how, without the URL."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Changed(Exception):  # noqa: N818 - a finding about the file
    """The server holds another version than was expected; None where it does not say which."""

    def __init__(self, found: Version | None) -> None:
        super().__init__(found)
        self.found = found


class Answer(NamedTuple):
    """The bytes of a range, and the version of the file that they are from."""

    data: bytes
    version: Version


class Transport(Protocol):
    """A client of one kind of server. Safe to use from several threads."""

    def get(self, location: str, offset: int, size: int, expected: Version | None) -> Answer:
        """Return exactly `size` bytes from `offset`, which must lie in the file.

        Without an expected version it is for the version alone, and an empty file gives no bytes.

        Raises:
            Transient: If trying again may help.
            Changed: If the file is not the expected one.
            RunStopped: If the server refuses.
        """
        ...

    def list(self, pattern: str) -> list[str]:
        """Return the files behind a glob, as URLs; raises as `get` does."""
        ...

    def close(self) -> None:
        """Close its connections."""
        ...


def filesystem(protocol: str, **options: Any) -> Any:
    """Make a filesystem of fsspec's for this process alone.

    Options that are dicts go over those of the user's fsspec configuration.
    """
    fsspec = import_module("fsspec")
    known = cast(dict[str, Any], import_module("fsspec.config").conf.get(protocol, {}))
    merged = {
        name: {**known[name], **value} if isinstance(known.get(name), dict) else value
        for name, value in options.items()
    }
    return fsspec.filesystem(protocol, skip_instance_cache=True, **merged)


def run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, _T]) -> _T:
    """Wait for work on the driver's loop; what interrupts the waiting cancels the work."""
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


# ---------------------------------------------------------------- checks of an answer


def check_range(content_range: str | None, offset: int, size: int) -> tuple[int, int | None]:
    """Check a Content-Range against what was asked; return the body's and the file's length."""
    match = _CONTENT_RANGE.fullmatch((content_range or "").strip())
    if match is None:
        raise Transient("a partial answer that does not say which range it holds")
    first, last = int(match.group(1)), int(match.group(2))
    total = None if match.group(3) == "*" else int(match.group(3))
    wanted = offset + size - 1 if total is None else min(offset + size, total) - 1
    if first != offset or last > offset + size - 1:
        raise Transient(f"bytes {first}-{last} in answer to {offset}-{wanted}")
    if last < wanted:
        raise Transient(f"only bytes {first}-{last} of {offset}-{wanted}")
    return last - first + 1, total


def is_same(one: Version, other: Version) -> bool:
    """Tell whether sizes are equal, and etags where both are known."""
    etags = [etag.removeprefix("W/") for etag in (one.etag, other.etag) if etag is not None]
    return one.num_bytes == other.num_bytes and len(set(etags)) <= 1


def check_version(found: Version, expected: Version | None) -> None:
    """Raise `Changed` unless it is the expected version."""
    if expected is not None and not is_same(found, expected):
        raise Changed(found)


def condition_of(expected: Version | None) -> str | None:
    """Return the etag to send as If-Match, which compares strong etags only."""
    etag = None if expected is None else expected.etag
    return None if etag is None or etag.startswith(("W/", "mtime:")) else etag


def refusal(location: str, status: int, detail: str = "") -> RunStopped:
    """Say why a status stops the run."""
    name = public_name(location)
    is_s3 = protocol_of(location) == "s3"
    login = "AWS_PROFILE, ~/.aws or the environment's keys" if is_s3 else "~/.netrc"
    public = """; for a public bucket set FSSPEC_S3='{"anon": true}'""" if is_s3 else ""
    reasons = {
        401: f"wants a login (status 401); give it in {login}{public}",
        403: f"is refused (status 403); check the permissions, and the login in {login}{public}",
        404: "does not exist (status 404); correct the location, or upload it",
        410: "is gone (status 410); correct the location, or upload it",
    }
    kind = Missing if status in (403, 404, 410) else RunStopped
    return kind(f"{name} {reasons.get(status, f'is refused with status {status}{detail}')}")


def check_status(location: str, status: int, retry_after: str | None, detail: str = "") -> None:
    """Raise for a status that is neither success nor about versions."""
    if status in _TRANSIENT or status >= 500:
        seconds = float(retry_after) if retry_after and retry_after.isdigit() else 0.0
        raise Transient(f"status {status}{detail}", min(seconds, _MAX_RETRY_AFTER))
    if status >= 300:
        raise refusal(location, status, detail)


def known_size(location: str, total: int | None, expected: Version | None) -> int:
    """Return a file's size from an answer, which need not tell it, or from what is known."""
    if total is not None:
        return total
    if expected is not None:
        return expected.num_bytes
    raise RunStopped(f"{public_name(location)}: the server does not tell its size; use another")


def longest_seconds(timeout: float, size: int) -> float:
    """Return how long a request for `size` bytes may take in all."""
    return 2 * timeout + size / _MIN_RATE


def describe(error: BaseException, timeout: float) -> str:
    """Describe a failed request without what could hold a URL."""
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    if isinstance(error, asyncio.IncompleteReadError):
        wanted = error.expected
        return f"a body of {len(error.partial)} bytes for {wanted}"
    if type(error).__name__ in _REASONS:
        return _REASONS[type(error).__name__]
    text = getattr(error, "strerror", None)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
