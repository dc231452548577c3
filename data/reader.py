"""Read one sample of a shard by its place, without reading what lies before it."""

import os
import zlib
from collections import OrderedDict
from collections.abc import Container
from typing import NamedTuple

from data.index import Manifest, Member, ShardIndex

# Shards held open at once. Each takes two descriptors, its own and its mapped index's: half of the
# usual limit of 1,024 for a process.
_MAX_OPEN = 256


class BadSample(Exception):  # noqa: N818 - a finding about the data, which the loader counts
    """A sample that would fail again: its bytes are not those that were indexed."""


class _OpenShard(NamedTuple):
    descriptor: int
    samples: ShardIndex


class ShardReader:
    """Reads samples of local shards, whose files it opens when they are first needed.

    It is cheap to pickle, and safe to use after a fork: a process opens its own files. Within one
    process it is for one thread.
    """

    def __init__(self, manifest: Manifest, max_open: int = _MAX_OPEN) -> None:
        self.manifest = manifest
        self._max_open = max_open
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._process = os.getpid()

    def key(self, shard: int, sample: int) -> str:
        """Return a sample's key, from the index alone."""
        return self._opened(shard).samples.key(sample)

    def read(self, shard: int, sample: int, wanted: Container[str]) -> dict[str, bytes]:
        """Read a sample's wanted members.

        Args:
            shard: The shard's place in the manifest.
            sample: The sample's place in the shard.
            wanted: Extensions to read; what the sample lacks is left out.

        Returns:
            The bytes by extension.

        Raises:
            BadSample: If the bytes are not those that were indexed.
            OSError: If the shard cannot be read; that may pass, so it says nothing of the sample.
        """
        source = self._opened(shard)
        members = source.samples.members(sample)
        return {
            extension: _read_member(source.descriptor, extension, member)
            for extension, member in members.items()
            if extension in wanted
        }

    def close(self) -> None:
        """Close all files; a later read opens them again."""
        while self._open:
            os.close(self._open.popitem()[1].descriptor)

    def _opened(self, shard: int) -> _OpenShard:
        """Return an open shard, closing the one unused for longest if there are too many."""
        if self._process != os.getpid():  # forked: share no descriptor with the parent
            self.close()
            self._process = os.getpid()
        if shard not in self._open:
            if len(self._open) >= self._max_open:
                os.close(self._open.popitem(last=False)[1].descriptor)
            row = self.manifest.shards[shard]
            index = ShardIndex.load(row.index_path)
            self._open[shard] = _OpenShard(os.open(row.path, os.O_RDONLY | os.O_CLOEXEC), index)
        self._open.move_to_end(shard)
        return self._open[shard]

    def __getstate__(self) -> tuple[Manifest, int]:
        return self.manifest, self._max_open

    def __setstate__(self, state: tuple[Manifest, int]) -> None:
        self.__init__(*state)

    def __del__(self) -> None:
        self.close()


def _read_member(descriptor: int, extension: str, member: Member) -> bytes:
    data = os.pread(descriptor, member.size, member.offset)
    if len(data) < member.size:
        raise BadSample(f"{extension}: {len(data)} of {member.size} bytes at {member.offset}")
    if zlib.crc32(data) != member.crc32:
        raise BadSample(f"{extension}: checksum differs from the index at offset {member.offset}")
    return data
