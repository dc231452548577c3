"""Read one image of a folder, if it is still the file that was listed."""

import errno
import os
import stat
from collections.abc import Container
from datetime import UTC, datetime
from pathlib import Path

from data.index.files import NO_CLASS, File, FileTable
from data.index.manifest import Shard
from data.index.tables import folder_of
from data.reading.bad import BadSample, check_size
from data.shards import LABEL_EXTENSION

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)  # there is no such file
# not to wait for ever where a pipe has taken a file's place
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class OpenFolder:
    """A folder or list of images, whose files are opened one at a time.

    Args:
        shard: As the manifest has it.
        samples: Its table.

    Attributes:
        samples: Its table.
    """

    def __init__(self, shard: Shard, samples: FileTable) -> None:
        self.samples = samples
        self._folder = folder_of(shard.location)
        self._identity = _identify(self._folder)

    def extensions(self, sample: int) -> list[str]:
        """Return the extensions of a sample's members."""
        return self.samples.extensions(sample)

    def read(self, sample: int, wanted: Container[str]) -> dict[str, bytes]:
        """Read a sample's wanted members; see `ShardReader.read`."""
        file = self.samples.file(sample)
        extension = file.path.rpartition(".")[2].lower()
        members: dict[str, bytes] = {}
        if extension in wanted:
            check_size(extension, file.num_bytes)
            members[extension] = self._content(file)
        if file.label != NO_CLASS and LABEL_EXTENSION in wanted:
            members[LABEL_EXTENSION] = str(file.label).encode()
        return members

    def close(self) -> None:
        """Give back what it holds: nothing."""

    def _content(self, file: File) -> bytes:
        try:
            descriptor = os.open(self._folder / file.path, _FLAGS)
        except OSError as error:
            if error.errno not in _GONE or not self._is_there():
                raise
            raise BadSample("the file has vanished since it was listed") from error
        try:
            _check(os.fstat(descriptor), file)
            content = _read(descriptor, file.num_bytes)
            _check(os.fstat(descriptor), file)  # it may be written just now
        finally:
            os.close(descriptor)
        if len(content) < file.num_bytes:
            raise BadSample(f"{len(content)} of {file.num_bytes} bytes could be read")
        return content

    def _is_there(self) -> bool:
        """Tell whether the folder is still there, and no disk was unmounted under it."""
        try:
            if _identify(self._folder) != self._identity:
                return False
            with os.scandir(self._folder) as entries:
                return next(entries, None) is not None
        except OSError:
            return False


def _identify(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _read(descriptor: int, size: int) -> bytes:
    content = os.read(descriptor, size)
    while 0 < len(content) < size and (more := os.read(descriptor, size - len(content))):
        content += more
    return content


def _check(status: os.stat_result, file: File) -> None:
    """Raise `BadSample` if a file is not as it was listed."""
    if not stat.S_ISREG(status.st_mode):
        raise BadSample("the file has changed since it was listed: it is no file any more")
    if status.st_size != file.num_bytes:
        raise BadSample(
            f"the file has changed since it was listed: {file.num_bytes} bytes then, "
            f"{status.st_size} now"
        )
    if status.st_mtime_ns != file.mtime_ns:
        times = " then, ".join(map(_time, (file.mtime_ns, status.st_mtime_ns)))
        raise BadSample(f"the file has changed since it was listed: of {times} now")


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(" ", "milliseconds")
