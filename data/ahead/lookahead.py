"""Which parts of remote shards the coming steps need, from the order of the samples."""

import logging
import sys
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data.index.manifest import Manifest
from data.index.offsets import ShardIndex
from data.index.open import load_index
from data.order import Order
from data.reading.bad import MAX_MEMBER_BYTES
from data.settings import RunStopped, UserError
from data.storage.cache import Part, folder_name, part_range, parts_of
from data.storage.locations import Storage, Version, is_remote

LOOK_AHEAD = 32_768  # samples of the global batches; at least two steps
_MAX_SHARDS = 256  # whose indexes stay mapped
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadPlan:
    """The samples that one node reads.

    Attributes:
        manifest: The shards.
        seed: The order's seed.
        batch_size: Of a global batch.
        first_slot: The node's ranks read the slots of a global batch from this one
        last_slot: up to this one.
    """

    manifest: Manifest
    seed: int
    batch_size: int
    first_slot: int
    last_slot: int

    def positions(self, step: int) -> tuple[int, npt.NDArray[np.int64]]:
        """Return the epoch of a step, and the positions in it that the node reads."""
        num_samples = self.manifest.num_samples
        epoch, batch = divmod(step, -(-num_samples // self.batch_size))
        start = batch * self.batch_size
        stop = min(start + self.last_slot, num_samples)
        return epoch, np.arange(min(start + self.first_slot, stop), stop)


class Fetch(NamedTuple):
    """A part to fetch.

    Attributes:
        step: Where it is first needed.
        part: Its name in the cache.
        location: The file's URL.
        version: The file's version.
    """

    step: int
    part: Part
    location: str
    version: Version

    @property
    def offsets(self) -> range:
        """The bytes that the part holds of the file."""
        return part_range(self.part.number, self.version.num_bytes)


class _RemoteShard(NamedTuple):
    samples: ShardIndex
    location: str
    version: Version
    folder: str


class LookAhead:
    """Which parts the coming steps need, in the order of their first need.

    Args:
        plan: What the node reads.
        storage: How indexes are read.
        last: The step after the last one.

    Attributes:
        queue: Parts to fetch; whoever takes one may find it in the cache already.
    """

    def __init__(self, plan: ReadPlan, storage: Storage, last: int) -> None:
        self.queue: deque[Fetch] = deque()
        self._plan = plan
        self._last = last
        self._num_steps = max(2, -(-LOOK_AHEAD // plan.batch_size))
        self._order = Order(plan.manifest.starts, plan.seed)
        self._planned = 0  # steps before this one are known
        self._needs: dict[Part, int] = {}
        self._max_needs = 0
        self._storage = storage
        self._has_failed = False
        self._shard = lru_cache(_MAX_SHARDS)(self._open)

    def last_need(self, part: Part) -> int | None:
        """Return the last known step that needs a part."""
        return self._needs.get(part)

    def advance(self, step: int) -> bool:
        """Take in one more step at most; return whether all steps up to the limit are known."""
        self._planned = max(self._planned, step)
        while self.queue and self.queue[0].step < step:
            self.queue.popleft()
        limit = min(step + self._num_steps, self._last)
        if self._planned < limit:
            self._take_in(self._planned)
            self._planned += 1
            self._forget_before(step)
        return self._planned >= limit

    def _take_in(self, step: int) -> None:
        """Note the needs of a step; queue the parts that no step before it has asked for."""
        for shard, number in self.parts(step):
            remote = self._shard(shard)
            if remote is None:  # it could be opened a moment ago
                continue
            part = Part(remote.folder, number)
            self.queue.append(Fetch(step, part, remote.location, remote.version))
            self._needs[part] = step

    def _forget_before(self, step: int) -> None:
        """Forget, now and then, all past needs but the latest, which a full cache may be of."""
        if len(self._needs) <= self._max_needs:
            return
        capacity = self._storage.cache_bytes // len(part_range(0, sys.maxsize)) + 1
        past = sorted((need, part) for part, need in self._needs.items() if need < step)
        for _, part in past[:-capacity]:
            del self._needs[part]
        self._max_needs = 2 * len(self._needs) + 4096

    def parts(self, step: int) -> list[tuple[int, int]]:
        """Return the (shard, part number) that a step's samples lie in, in order of need."""
        epoch, positions = self._plan.positions(step)
        ids = self._order.samples(epoch, positions)
        shards = np.searchsorted(self._order.starts, ids, side="right") - 1
        places = ids - self._order.starts[shards]
        starts, stops = np.zeros(ids.size, np.int64), np.zeros(ids.size, np.int64)
        for shard in np.unique(shards):
            remote = self._shard(int(shard))
            if remote is not None:
                chosen = shards == shard
                starts[chosen], stops[chosen] = _span(remote, places[chosen])
        # samples without a span, of local or unreadable shards, have empty ranges
        return list(
            dict.fromkeys(
                (int(shard), number)
                for shard, start, stop in zip(shards, starts, stops, strict=True)
                for number in parts_of(int(start), int(stop - start))
            )
        )

    def _open(self, shard: int) -> _RemoteShard | None:
        row = self._plan.manifest.shards[shard]
        if not is_remote(row.location):
            return None
        version = Version(row.num_bytes, row.etag)
        try:
            index = load_index(row, self._storage)
        except (OSError, RunStopped, UserError) as error:
            if not self._has_failed:
                _logger.warning("shard %s is not read ahead: %s", row.name, error)
            self._has_failed = True
            return None
        assert isinstance(index, ShardIndex), "what is remote is a tar"
        return _RemoteShard(index, row.location, version, folder_name(row.location, version))


def _span(
    shard: _RemoteShard, places: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where samples start and stop, each (n,); nothing where the index is absurd."""
    index = shard.samples
    last = index.member_ends[places] - 1
    first = np.where(places > 0, index.member_ends[places - 1], 0)
    starts, stops = index.offsets[first], index.offsets[last] + index.sizes[last]
    is_sound = (starts >= 0) & (starts <= stops) & (stops <= shard.version.num_bytes)
    is_sound &= stops - starts <= MAX_MEMBER_BYTES
    return np.where(is_sound, starts, 0), np.where(is_sound, stops, 0)
