"""Read one sample of a shard or folder by its place, without reading what lies before it."""

import errno
import os
import zlib
from collections import OrderedDict
from collections.abc import Container, Mapping
from dataclasses import dataclass
from weakref import WeakSet

from data.index.files import FileTable
from data.index.manifest import Manifest, Shard
from data.index.offsets import Member, ShardIndex
from data.index.open import load_index
from data.processes import file_limit
from data.reading.bad import MAX_MEMBER_BYTES, BadSample, check_size
from data.reading.files import OpenFolder
from data.storage.cache import CachedFile
from data.storage.files import open_file
from data.storage.locations import Storage, Version, is_remote

# Shards held open at once. Each takes two files, its own and its mapped index's: half of the usual
# limit of 1,024 for a process. Where the limit is lower, half of what is left after some others.
_MAX_OPEN = 256
_OTHER_FILES = 32
# Members of a remote sample that lie as near are read in one request: a round trip costs more.
_MAX_GAP = 64 << 10


_readers: "WeakSet[ShardReader]" = WeakSet()  # of this process


@dataclass
class _Counts:
    """Reads of remote shards that the cache answered, and those that asked the server."""

    num_hits: int = 0
    num_misses: int = 0


class _OpenTar:
    """A tar, whose members are read by their offsets."""

    def __init__(
        self, shard: Shard, storage: Storage, samples: ShardIndex, counts: _Counts
    ) -> None:
        version = Version(shard.num_bytes, shard.etag)
        self.samples = samples
        self._counts = counts
        self._is_remote = is_remote(shard.location)
        self._cached: CachedFile | None = None
        if self._is_remote and storage.cache_dir is not None:
            self._cached = CachedFile(storage.cache_dir, shard.location, version)
        self._file = open_file(shard.location, storage, version)

    def extensions(self, sample: int) -> list[str]:
        """Return the extensions of a sample's members."""
        return list(self.samples.members(sample))

    def read(self, sample: int, wanted: Container[str]) -> dict[str, bytes]:
        """Read a sample's wanted members; see `ShardReader.read`."""
        members = {
            extension: member
            for extension, member in self.samples.members(sample).items()
            if extension in wanted
        }
        for extension, member in members.items():
            check_size(extension, member.size)
        if self._is_remote:
            return self._read_remote(members)
        return {
            extension: _check(extension, member, self._file.read(member.offset, member.size))
            for extension, member in members.items()
        }

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_remote(self, members: Mapping[str, Member]) -> dict[str, bytes]:
        """Read from the cache, else from the server; what does not match is asked for once more.

        So a torn part, or a proxy that spoils bytes, makes no sample bad; a shard that was
        replaced is refused by its version.
        """
        runs = _runs(members)
        try:
            return _cut(members, {run: self._read_run(run) for run in runs})
        except BadSample:
            if self._cached is not None:
                for run in runs:
                    self._cached.drop(run.start, len(run))
            return _cut(members, {run: self._file.read(run.start, len(run)) for run in runs})

    def _read_run(self, run: range) -> bytes:
        cached = self._cached.read(run.start, len(run)) if self._cached and len(run) else None
        if cached is not None:
            self._counts.num_hits += 1
            return cached
        self._counts.num_misses += 1
        return self._file.read(run.start, len(run))


class ShardReader:
    """Reads samples of shards, whose files it opens when they are first needed.

    It is cheap to pickle, and safe to use after a fork: a process opens its own files. Within one
    process it is for one thread.

    Args:
        manifest: The shards.
        max_open: Shards held open at once; fewer where the process may open fewer files.

    """

    def __init__(self, manifest: Manifest, max_open: int = _MAX_OPEN) -> None:
        self.manifest = manifest
        self._counts = _Counts()
        self._max_open = max_open
        self._open: OrderedDict[int, _OpenTar | OpenFolder] = OrderedDict()
        self._process = os.getpid()
        _readers.add(self)

    @property
    def num_hits(self) -> int:
        """Reads of remote shards that the cache answered, in this process."""
        return self._counts.num_hits

    @property
    def num_misses(self) -> int:
        """Those that asked the server."""
        return self._counts.num_misses

    def key(self, shard: int, sample: int) -> str:
        """Return a sample's key, from the index alone."""
        return self._opened(shard).samples.key(sample)

    def extensions(self, shard: int, sample: int) -> list[str]:
        """Return the extensions of a sample's members, from the index alone."""
        return self._opened(shard).extensions(sample)

    def read(self, shard: int, sample: int, wanted: Container[str]) -> dict[str, bytes]:
        """Read a sample's wanted members.

        Args:
            shard: The shard's place in the manifest.
            sample: The sample's place in the shard.
            wanted: Extensions to read; what the sample lacks is left out.

        Returns:
            The bytes by extension.

        Raises:
            BadSample: If the bytes are not those that were indexed, or a member is larger than
                `MAX_MEMBER_BYTES`.
            OSError: If a local shard or folder cannot be read; that may pass, so it says nothing of
                the sample.
            RunStopped: If a remote one cannot, also after retries, or is no longer the one indexed.
        """
        try:
            return self._opened(shard).read(sample, wanted)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
        _close_all()
        return self._opened(shard).read(sample, wanted)

    def close(self) -> None:
        """Close all files; a later read opens them again."""
        while self._open:
            self._open.popitem()[1].close()

    def _opened(self, shard: int) -> _OpenTar | OpenFolder:
        """Return an open shard, closing the one unused for longest if there are too many."""
        if self._process != os.getpid():  # forked: share no descriptor with the parent
            self.close()
            self._process = os.getpid()
        if shard not in self._open:
            if len(self._open) >= min(self._max_open, max(1, (file_limit() - _OTHER_FILES) // 4)):
                self._open.popitem(last=False)[1].close()
            self._open[shard] = self._open_with_room(shard)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _open_with_room(self, shard: int) -> _OpenTar | OpenFolder:
        """Open a shard; where too many files are open, close those of all readers here before."""
        try:
            return self._open_shard(shard)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
        _close_all()
        return self._open_shard(shard)

    def _open_shard(self, shard: int) -> _OpenTar | OpenFolder:
        row, storage = self.manifest.shards[shard], self.manifest.storage
        index = load_index(row, storage)
        if isinstance(index, FileTable):
            return OpenFolder(row, index)
        return _OpenTar(row, storage, index, self._counts)

    def __getstate__(self) -> tuple[Manifest, int]:
        return self.manifest, self._max_open

    def __setstate__(self, state: tuple[Manifest, int]) -> None:
        self.__init__(*state)


def _close_all() -> None:
    """Close what all readers of this process hold."""
    for reader in list(_readers):
        reader.close()


def _runs(members: Mapping[str, Member]) -> list[range]:
    """Join members that lie near each other into ranges of offsets, each for one read."""
    runs: list[range] = []
    for member in sorted(members.values()):
        start, stop = member.offset, member.offset + member.size
        last = runs[-1] if runs else None
        is_near = last is not None and start - last.stop <= _MAX_GAP
        if last is not None and is_near and stop - last.start <= MAX_MEMBER_BYTES:
            runs[-1] = range(last.start, max(last.stop, stop))
        else:
            runs.append(range(start, stop))
    return runs


def _cut(members: Mapping[str, Member], contents: Mapping[range, bytes]) -> dict[str, bytes]:
    """Cut members out of the runs that hold them, and check each."""
    parts: dict[str, bytes] = {}
    for extension, member in members.items():
        for run, content in contents.items():
            start = member.offset - run.start
            if start >= 0 and member.offset + member.size <= run.stop:
                parts[extension] = _check(extension, member, content[start : start + member.size])
                break
    return parts


def _check(extension: str, member: Member, data: bytes) -> bytes:
    if len(data) < member.size:
        raise BadSample(f"{extension}: {len(data)} of {member.size} bytes at {member.offset}")
    if zlib.crc32(data) != member.crc32:
        raise BadSample(f"{extension}: checksum differs from the index at offset {member.offset}")
    return data
