"""Requests over http and https, on the session of fsspec's driver."""

import asyncio
import re
from importlib import import_module
from typing import Any
from urllib.parse import quote

from data.settings import RunStopped
from data.storage.locations import Version, public_name
from data.storage.transport import (
    Answer,
    Changed,
    Transient,
    check_range,
    check_status,
    check_version,
    condition_of,
    describe,
    filesystem,
    known_size,
    longest_seconds,
    refusal,
    run,
)

# Whole files in answer to a range, until a server is believed to serve none.
_MAX_IGNORED = 3
_URL_CHARACTERS = "%/:?#[]@!$&'()*+,;=~"


class HttpTransport:
    """Asks web servers; see `data.storage.transport.Transport`."""

    def __init__(self, timeout: float) -> None:
        self._aiohttp: Any = import_module("aiohttp")
        self._timeout = timeout
        # trust_env: logins come from ~/.netrc, and proxies from the environment
        options = {"trust_env": True, "auto_decompress": False}
        self._files = filesystem("http", client_kwargs=options)
        self._num_ignored: dict[str, int] = {}  # by host and port; whole files in answer to ranges

    def get(self, location: str, offset: int, size: int, expected: Version | None) -> Answer:
        """Return a range of a file, from an answer that was checked."""
        try:
            return run(self._files.loop, self._get(location, offset, size, expected))
        except (self._aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            raise self._explain(location, error) from error

    def list(self, pattern: str) -> list[str]:
        """Refuse: there is no listing."""
        raise AssertionError(f"{public_name(pattern)}: http cannot list")

    def close(self) -> None:
        """Close the connections."""
        session = self._files._session
        if session is not None:
            run(self._files.loop, session.close())

    async def _get(self, location: str, offset: int, size: int, expected: Version | None) -> Answer:
        headers = {"Range": f"bytes={offset}-{offset + size - 1}", "Accept-Encoding": "identity"}
        condition = condition_of(expected)
        if condition is not None:
            headers["If-Match"] = condition
        timeout = self._aiohttp.ClientTimeout(
            total=longest_seconds(self._timeout, size),
            sock_connect=self._timeout,
            sock_read=self._timeout,
        )
        session = await self._files.set_session()
        # only what no URL may hold is quoted: a signature may be of the very characters
        url = import_module("yarl").URL(quote(location, safe=_URL_CHARACTERS), encoded=True)
        async with session.get(url, headers=headers, timeout=timeout) as response:
            if url.scheme == "https" and response.url.scheme != "https":
                raise RunStopped(f"{public_name(location)} redirects to unencrypted http; refused")
            return await self._read(location, response, offset, size, expected)

    async def _read(
        self, location: str, response: Any, offset: int, size: int, expected: Version | None
    ) -> Answer:
        """Check the head of a response, then read its body, which may be longer than asked."""
        etag, length = _etag(response.headers), response.content_length
        if response.status == 416:
            return _past_the_end(location, response.headers.get("Content-Range"), etag, expected)
        if response.status == 412 and expected is not None:
            raise Changed(None)
        check_status(location, response.status, response.headers.get("Retry-After"))
        if response.status == 206:
            wanted, total = check_range(response.headers.get("Content-Range"), offset, size)
            self._num_ignored[response.url.authority] = -1
        else:
            wanted = total = self._whole_file(location, response, offset, size)
        version = Version(known_size(location, total, expected), etag)
        check_version(version, expected)
        if length not in (None, wanted):
            raise Transient(f"a body of {length} bytes for {wanted}")
        data = await response.content.readexactly(wanted)
        if length is None and await response.content.read(1):
            raise Transient(f"a body of more than {wanted} bytes")
        return Answer(data, version)

    def _whole_file(self, location: str, response: Any, offset: int, size: int) -> int:
        """Return the size of a whole file that is no longer than what was asked; refuse others."""
        length = response.content_length
        if response.status == 200 and offset == 0 and length is not None and length <= size:
            return length
        seen = self._num_ignored.get(response.url.authority, 0)
        if seen >= 0:  # it never served a range
            self._num_ignored[response.url.authority] = seen + 1
        if seen + 1 >= _MAX_IGNORED:
            raise RunStopped(
                f"{public_name(location)}: the server does not serve ranges; use a server that "
                "does, copy the shards to disk, or set data.read=sequential"
            )
        raise Transient(f"status {response.status} with the whole file in answer to a range")

    def _explain(self, location: str, error: BaseException) -> Exception:
        """Turn an exception into a reason; its own text may hold the URL with its query."""
        name = public_name(location)
        aiohttp = self._aiohttp
        if isinstance(error, aiohttp.TooManyRedirects):
            return RunStopped(f"{name}: the server redirects in a circle; correct the location")
        if isinstance(error, aiohttp.NonHttpUrlClientError):
            return RunStopped(f"{name}: the server redirects away from http; refused")
        if isinstance(error, aiohttp.InvalidURL):
            return RunStopped(f"{name} is no URL, or leads to one that is none; correct it")
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return RunStopped(f"{name}: the server's certificate does not hold; correct the host")
        return Transient(describe(error, self._timeout))


def _etag(headers: Any) -> str | None:
    etag, modified = headers.get("ETag"), headers.get("Last-Modified")
    return etag or (f"mtime:{modified}" if modified else None)


def _past_the_end(
    location: str, content_range: str | None, etag: str | None, expected: Version | None
) -> Answer:
    """Take a status 416: an empty file, or one that became shorter."""
    match = re.fullmatch(r"bytes \*/(\d+)", (content_range or "").strip())
    version = Version(int(match.group(1)), etag) if match else None
    if expected is not None and version is not None and version.num_bytes == expected.num_bytes:
        raise Transient("status 416 for a range that lies in the file")
    if expected is not None:
        raise Changed(version)
    if version is None or version.num_bytes > 0:
        raise refusal(location, 416)
    return Answer(b"", version)
