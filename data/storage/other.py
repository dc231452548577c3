"""Requests to every protocol that has no file of its own here, through fsspec: gs:// and hf://."""

from collections.abc import Callable
from typing import TypeVar

from data.storage.locations import Version
from data.storage.transport import Answer, Transient, check_version, describe, filesystem, refusal

_T = TypeVar("_T")


class OtherTransport:
    """A protocol of which fsspec's driver is trusted for all but the size of what it returns.

    The version is compared once for each file, when it is first read.
    """

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol
        self._files = filesystem(protocol, use_listings_cache=False)
        self._versions: dict[str, Version] = {}

    def get(self, location: str, offset: int, size: int, expected: Version | None) -> Answer:
        """Return a range of a file, from an answer that was checked."""
        if location not in self._versions or expected is None:
            info = self._ask(location, lambda: self._files.info(location))
            etag = info.get("etag") or info.get("ETag") or info.get("blob_id")
            self._versions[location] = Version(int(info["size"]), etag)
        version = self._versions[location]
        check_version(version, expected)
        wanted = min(size, version.num_bytes - offset)
        data = self._ask(location, lambda: self._files.cat_file(location, offset, offset + wanted))
        if len(data) != wanted:
            raise Transient(f"a body of {len(data)} bytes for {wanted}")
        return Answer(data, version)

    def list(self, pattern: str) -> list[str]:
        """Return the files behind a glob, as URLs."""
        names = self._ask(pattern, lambda: self._files.glob(pattern))
        return [f"{self._protocol}://{name}" for name in names]

    def close(self) -> None:
        """Forget the versions that were seen."""
        self._versions.clear()

    def _ask(self, location: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except FileNotFoundError as error:
            raise refusal(location, 404) from error
        except PermissionError as error:
            raise refusal(location, 403) from error
        except Exception as error:
            raise Transient(describe(error, 0)) from error
