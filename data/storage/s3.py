"""Requests to S3 and what speaks like it, on the client of s3fs."""

import asyncio
from collections.abc import Awaitable, Coroutine
from importlib import import_module
from typing import Any, TypeVar, cast

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

_T = TypeVar("_T")


class S3Transport:
    """Asks object stores; see `data.storage.transport.Transport`."""

    def __init__(self, timeout: float) -> None:
        self._errors: Any = import_module("botocore.exceptions")
        self._timeout = timeout
        options = {
            "connect_timeout": timeout,
            "read_timeout": timeout,
            "retries": {"total_max_attempts": 1},  # retries are ours
        }
        self._files = filesystem("s3", config_kwargs=options, use_listings_cache=False)
        self._files.retries = 1

    def get(self, location: str, offset: int, size: int, expected: Version | None) -> Answer:
        """Return a range of a file, from an answer that was checked."""
        try:
            return self._ask(location, self._get(location, offset, size, expected), size)
        except Changed:
            if expected is not None:
                raise
            return self._ask(location, self._head(location), size)  # no range lies in an empty file

    def list(self, pattern: str) -> list[str]:
        """Return the files behind a glob, as URLs."""

        async def names() -> list[str]:
            return [f"s3://{name}" for name in await self._files._glob(pattern)]

        return self._ask(pattern, names(), 1 << 30)

    def close(self) -> None:
        """Close the connections."""
        if self._files._s3 is not None:
            run(self._files.loop, self._files._s3creator.__aexit__(None, None, None))

    def _ask(self, location: str, work: Coroutine[Any, Any, _T], size: int) -> _T:
        try:
            return run(
                self._files.loop, asyncio.wait_for(work, longest_seconds(self._timeout, size))
            )
        except (RunStopped, Transient, Changed):
            raise
        except Exception as error:
            # s3fs gives botocore's exception as the cause of its own
            raise self._explain(location, error.__cause__ or error) from error

    async def _get(self, location: str, offset: int, size: int, expected: Version | None) -> Answer:
        bucket, key, _ = self._files.split_path(location)
        condition = condition_of(expected)
        answer = await self._files._call_s3(
            "get_object",
            Bucket=bucket,
            Key=key,
            Range=f"bytes={offset}-{offset + size - 1}",
            **({} if condition is None else {"IfMatch": condition}),
        )
        body = answer["Body"]
        try:
            if answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
                raise Transient("the whole object in answer to a range")
            wanted, total = check_range(answer.get("ContentRange"), offset, size)
            size_known = known_size(location, total, expected)
            version = Version(size_known, answer.get("ETag"))
            check_version(version, expected)
            if answer.get("ContentLength", wanted) != wanted:
                raise Transient(f"a body of {answer['ContentLength']} bytes for {wanted}")
            data = await cast(Awaitable[bytes], body.read())
        finally:
            body.close()
        if len(data) != wanted:
            raise Transient(f"a body of {len(data)} bytes for {wanted}")
        return Answer(data, version)

    async def _head(self, location: str) -> Answer:
        bucket, key, _ = self._files.split_path(location)
        answer = await self._files._call_s3("head_object", Bucket=bucket, Key=key)
        return Answer(b"", Version(int(answer["ContentLength"]), answer.get("ETag")))

    def _explain(self, location: str, error: BaseException) -> Exception:
        name = public_name(location)
        if isinstance(
            error, self._errors.NoCredentialsError | self._errors.PartialCredentialsError
        ):
            return refusal(location, 401)
        if isinstance(error, self._errors.ClientError):
            return self._explain_status(location, cast(Any, error).response)
        if isinstance(error, self._errors.ProfileNotFound | self._errors.ParamValidationError):
            return RunStopped(f"{name}: {type(error).__name__}; correct the location or ~/.aws")
        inner = getattr(error, "kwargs", {}).get("error")  # what botocore wrapped
        return Transient(describe(inner or error, self._timeout))

    def _explain_status(self, location: str, response: dict[str, Any]) -> Exception:
        status = int(response["ResponseMetadata"].get("HTTPStatusCode", 0))
        code = str(response["Error"].get("Code", ""))
        if status in (412, 416):
            return Changed(None)
        if code in ("SlowDown", "RequestTimeout", "InternalError"):
            return Transient(f"status {status} ({code})")
        try:
            check_status(location, status, None, f" ({code})")
        except (RunStopped, Transient) as reason:
            return reason
        return Transient(f"status {status} ({code})")
