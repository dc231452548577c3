"""Read one sample of a shard by its place, without reading what lies before it."""

import os
import zlib
from collections import OrderedDict
from collections.abc import Container
from typing import NamedTuple

import numpy as np

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

    def sample(self, number: int) -> "SampleHandle":
        """Find a sample by its number in the whole manifest, without reading its data.

        Raises:
            OSError: If the shard or its index cannot be opened.
        """
        shard = int(np.searchsorted(self.manifest.starts, number, side="right")) - 1
        return self._handle(shard, number - int(self.manifest.starts[shard]))

    def read(self, shard: int, sample: int, wanted: Container[str]) -> tuple[str, dict[str, bytes]]:
        """Read a sample's key and its wanted members.

        Args:
            shard: The shard's place in the manifest.
            sample: The sample's place in the shard.
            wanted: Extensions to read; what the sample lacks is left out.

        Returns:
            The key, and the bytes by extension.

        Raises:
            BadSample: If the bytes are not those that were indexed.
            OSError: If the shard cannot be read; that may pass, so it says nothing of the sample.
        """
        handle = self._handle(shard, sample)
        names = [extension for extension in handle.extensions if extension in wanted]
        return handle.key, {extension: handle.read(extension) for extension in names}

    def _handle(self, shard: int, sample: int) -> "SampleHandle":
        samples = self._opened(shard).samples
        members = samples.members(sample)
        return SampleHandle(self, shard, samples.key(sample), members)

    def read_member(self, shard: int, extension: str, member: Member) -> bytes:
        """Read one member of a shard; raises as `read` does."""
        return _read_member(self._opened(shard).descriptor, extension, member)

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


class SampleHandle:
    """One sample of a manifest: its name is known before any of its bytes is read.

    Attributes:
        shard: The shard's name in the manifest.
        key: The sample's key.
        name: "SHARD/KEY", for traces.
        extensions: Of its members, in the shard's order.
    """

    def __init__(
        self, reader: ShardReader, number: int, key: str, members: dict[str, Member]
    ) -> None:
        self.shard = reader.manifest.shards[number].name
        self.key = key
        self.name = f"{self.shard}/{key}"
        self.extensions = tuple(members)
        self._members = members
        self._reader = reader
        self._number = number

    def read(self, extension: str) -> bytes:
        """Read the member of one of `extensions`.

        Raises:
            BadSample: If the bytes are not those that were indexed.
            OSError: If the shard cannot be read; that may pass, so it says nothing of the sample.
        """
        return self._reader.read_member(self._number, extension, self._members[extension])


def _read_member(descriptor: int, extension: str, member: Member) -> bytes:
    data = os.pread(descriptor, member.size, member.offset)
    if len(data) < member.size:
        raise BadSample(f"{extension}: {len(data)} of {member.size} bytes at {member.offset}")
    if zlib.crc32(data) != member.crc32:
        raise BadSample(f"{extension}: checksum differs from the index at offset {member.offset}")
    return data
