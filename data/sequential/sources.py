"""Tars that are only read forwards: how they are named, checked and opened.

A source is a tar on this machine, one behind a URL, what a command writes (`pipe:COMMAND`), or
standard input (`-`).
"""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple, Self, cast

import braceexpand

from data.index.tables import is_images
from data.listing.foreign import kind_by_content
from data.listing.shards import list_shards, shard_names
from data.settings import RunStopped, UserError, require
from data.shards import compression_of
from data.storage.files import open_file
from data.storage.locations import RangeFile, Storage, is_remote
from data.text import name_some

STDIN = "-"
PIPE = "pipe:"
_BLOCK = 512  # a tar's unit, bytes
_CHUNK = 1 << 20  # bytes read at once where nothing is looked for
_REMOTE_CHUNK = 8 << 20  # bytes a request
# In front of a command: once nobody holds the other end of its input, all of its group is killed.
# It is no child of the shell, whose `wait` would wait for it.
_WATCH = "exec 3<&0 </dev/null; ( { read -r _ <&3; kill -KILL 0; } >/dev/null 2>&1 & ); exec 3<&-"
_FINE = (0, 128 + signal.SIGPIPE)  # `curl ... | head` ends so, and a cut tar is found by itself

# What every user of the machine would read in `ps`. A variable in a header or a URL does not help:
# the shell puts its value there.
_CREDENTIALS = {
    "an authorization header": r"(?i)authorization\s*:",
    "a token header": r"(?i)\b(x-[\w-]*token|private-token|x-api-key|api-key)\s*:",
    "a password in a URL": r"://[^/\s:@]+:[^/\s@]+@",
    "a name and password": r"(^|\s)(-u\s*|--(proxy-)?user[\s=]+)['\"]?(?!\d+:\d+\b)[^\s:/]+:[^\s/]",
    "a password": r"(?i)--[\w-]*(password|passwd)[\s=]|\bsshpass\s+-p",
    "a secret": r"(?i)(secret|token|passw(or)?d|api_?key|signature)\w*=(?!['\"]?\$)[^\s&]",
}


class TarSource(NamedTuple):
    """A tar that is read forwards.

    Attributes:
        name: As traces and the ledger name it.
        location: An absolute path, a URL, `pipe:COMMAND`, or `-`.
    """

    name: str
    location: str


def list_sources(spec: object, key: str, *, allow_pipe: bool) -> list[TarSource]:
    """List the tars that a configuration names.

    Args:
        spec: As for `data.listing.shards.list_shards`; also `pipe:COMMAND`, its braces expanded as
            webdataset does, and `-` alone.
        key: The configuration's key, for error texts.
        allow_pipe: Whether commands may be run.

    Raises:
        UserError: For what `list_shards` refuses, for commands that may not be run or would show a
            credential to all users of the machine, and for a tar that is named twice.
    """
    items = list(cast(Sequence[object], spec)) if isinstance(spec, list | tuple) else [spec]
    items = [STDIN if item is None else item for item in items]  # YAML reads `-` as [null]
    if STDIN in items:
        require(len(items) == 1, f"{key}: standard input (-) is read alone; name nothing beside it")
        return [TarSource("stdin", STDIN)]
    commands = [item for item in items if isinstance(item, str) and item.startswith(PIPE)]
    others = [item for item in items if item not in commands]
    for command in commands:
        _check_command(command, key, allow_pipe)
    sources = [TarSource(name, name) for command in commands for name in _expand(command, key)]
    if others or not commands:
        locations = list_shards(others, key)
        _refuse_images(locations, key)
        names = shard_names(locations)
        sources += [TarSource(n, str(at)) for n, at in zip(names, locations, strict=True)]
    for source, count in Counter(sources).items():
        require(count == 1, f"{key} names the same shard twice: {source.name}; name it once")
    return sources


def _refuse_images(locations: list[str], key: str) -> None:
    """Refuse folders and lists of images, which have no order of their own to be read in."""
    images = [location for location in locations if is_images(location)]
    require(
        not images,
        f"data.read=sequential reads tar files, and {key} names images ({name_some(images)}); "
        "leave data.read out to read them, or name shards",
    )


def _expand(command: str, key: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(command))
    except ValueError as error:
        raise UserError(f"{key}={command}: {error}; balance the braces") from error


def _check_command(command: str, key: str, allow_pipe: bool) -> None:
    for what, pattern in _CREDENTIALS.items():  # first: no other message may repeat it
        require(
            re.search(pattern, command) is None,
            f"{key}: a pipe: command seems to hold {what}, which every user of this machine could "
            "read in `ps`; let the program take it from a file or its environment "
            "(curl --netrc or --config FILE, ~/.aws/credentials)",
        )
    require(command != PIPE, f"{key}={command} names no command; try {key}='pipe:cat FILE.tar'")
    require(
        allow_pipe,
        f"{key}={command} runs a command in a shell; set data.allow_pipe=true if you trust it",
    )


# ---------------------------------------------------------------- reading


class TarStream:
    """A tar on its way, handed out block by block and watched for what tarfile passes over.

    tarfile ends in silence where a header is damaged or missing. As each `read` gives one block,
    the last one is where it ended, and must be the end marker's first.

    Args:
        source: What is read.
        storage: How remote files are read.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, source: TarSource, storage: Storage) -> None:
        self._source = source
        self._process: subprocess.Popen[bytes] | None = None
        self._last = b""
        self._offset = 0
        self._other: str | None = None  # what it is if it is no tar
        self._file = self._open(source.location, storage)

    def _open(self, location: str, storage: Storage) -> IO[bytes]:
        if location == STDIN:
            return sys.stdin.buffer
        if location.startswith(PIPE):
            self._process = _start(location.removeprefix(PIPE))
            return cast(IO[bytes], self._process.stdout)
        if is_remote(location):
            file = _Forwards(open_file(location, storage))
            return io.BufferedReader(file, _REMOTE_CHUNK)
        return Path(location).open("rb", _CHUNK)

    def read(self, size: int) -> bytes:
        """Return the next block, whatever `size` is; less only at the end.

        Raises:
            RunStopped: The tar is compressed.
        """
        del size
        block = self._file.read(_BLOCK)
        if self._offset == 0:
            self._refuse_compressed(block)
            self._other = None if block[257:262] == b"ustar" else kind_by_content(block)
        self._last = block
        self._offset += len(block)
        return block

    def _refuse_compressed(self, block: bytes) -> None:
        kind = compression_of(block)
        if kind is not None:
            raise RunStopped(
                f"data.shards: {self._source.name} is compressed; "
                f"unpack it, as in 'pipe:{kind} -dc FILE'"
            )

    def finish(self) -> str | None:
        """Read what is left, once tarfile is done; return the damage that it passed over.

        Raises:
            RunStopped: It is a command's output, and the command failed.
        """
        end = self._offset
        rest = self._drain()
        self._check_status()
        if end == 0:
            return "0 bytes"
        if self._other is not None:
            return f"not a tar file but {self._other}"
        if len(self._last) < _BLOCK:
            return f"cut at offset {end}"
        return rest if self.is_at_end else f"unreadable header at offset {end - _BLOCK}"

    @property
    def is_at_end(self) -> bool:
        """Whether the last block is the end marker's."""
        return len(self._last) == _BLOCK and not any(self._last)

    def _drain(self) -> str | None:
        found = None
        while chunk := self._file.read(_CHUNK):
            if found is None and chunk.count(0) < len(chunk):
                place = self._offset + len(chunk) - len(chunk.lstrip(b"\0"))
                found = f"data after the end marker, at offset {place}: one tar a source is read"
            self._offset += len(chunk)
        return found

    def _check_status(self) -> None:
        if self._process is None:
            return
        status = self._process.wait()
        if status not in _FINE:
            raise RunStopped(
                f"data.shards: {self._source.name} ended with status {status} after "
                f"{self._offset} bytes; run it by hand to see why"
            )

    def close(self) -> None:
        """Close the file; end the command if it still runs."""
        if self._source.location == STDIN:
            return
        self._file.close()
        if self._process is not None and self._process.stdin is not None:
            # loader processes ignore gentler signals, and their commands inherit that
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _start(command: str) -> subprocess.Popen[bytes]:
    """Run a command in a shell; where there is bash, each part of a pipeline has to succeed."""
    bash = shutil.which("bash")
    shell = [bash, "-o", "pipefail", "-c"] if bash else ["/bin/sh", "-c"]
    return subprocess.Popen(
        [*shell, f"{_WATCH}\n{command}"],
        stdin=subprocess.PIPE,  # nothing is written: it ends with this process, however that ends
        stdout=subprocess.PIPE,
        bufsize=_CHUNK,
        start_new_session=True,  # a group of its own, so that all of a pipeline can be ended
    )


class _Forwards(io.RawIOBase):
    """A remote file, read from start to end."""

    def __init__(self, file: RangeFile) -> None:
        self._remote = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        content = self._remote.read(self._position, len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._remote.close()
        super().close()
