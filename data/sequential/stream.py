"""Streams that are only read forwards: commands, standard input, and any tar in listed order.

webdataset reads the tars. What `data.stream` promises needs an index, and there is none here, so
the promise is weaker (`data.read` says which). Openers, splits and shuffles are ours all the same:
webdataset's send credentials through `ps`, pass over failing commands, take the rank from the
environment, and repeat one order in every pass.

One pass reads each shard once, on one reader: a loader process of a rank. Within a shard the order
is that of the tar, so shards should be shuffled when they are made.
"""

import itertools
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander

from data.batch import Batch, LedgerEntry, SamplePlace
from data.config import DataConfig
from data.images.transforms import training_crop
from data.labels.parse import NO_LABEL
from data.order import permute
from data.randomness import combine, derive
from data.samples import fill_batch, pick_image
from data.sequential.sources import STDIN, TarSource, TarStream, list_sources
from data.settings import RunStopped, require
from data.shards import is_hidden
from data.storage.locations import Storage
from data.stream import STOPS, Parcel, Share, as_stop, unpacked
from data.text import count, escaped, printable

_EPOCH = 0  # the only one: how long a pass is, nobody knows
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """How each reader turns sources into batches.

    Attributes:
        sources: The shards.
        storage: How remote ones are read.
        size: (H, W) of the images.
        seed: The run's seed.
        crop_area: Range of the crops' areas.
        channels: C of the images.
    """

    sources: tuple[TarSource, ...]
    storage: Storage
    size: tuple[int, int]
    seed: int
    crop_area: tuple[float, float]
    channels: int = 3

    @property
    def is_stdin(self) -> bool:
        """Whether it is standard input that is read, once and by one process."""
        return self.sources[0].location == STDIN


class SequentialStream:
    """The training samples of one rank, for the loop that `TrainingStream` also serves.

    Passes over the shards repeat without end, except over standard input. How many samples a pass
    has is not known, so it is all one epoch, 0: sample `i` of step `k` has position `kB + i`.

    Args:
        reading: The shards, and what becomes of their samples.
        batch_size: Global batch size `B`; a multiple of world size times micro-batch size.
        share: This rank's part.
        workers: Loader processes.

    Raises:
        UserError: Standard input or too few shards would have to be shared.
    """

    steps_per_epoch = sys.maxsize  # so that `step / steps_per_epoch`, which is logged, is 0

    def __init__(self, reading: Reading, batch_size: int, share: Share, workers: int) -> None:
        assert batch_size % (share.world_size * share.micro_batch_size) == 0
        check_sequential(reading, share, workers)
        self.reading = reading
        self.batch_size = batch_size
        self.share = share
        self.workers = workers
        _logger.warning(
            "data.read=sequential: samples may repeat or be missed when this run stops, their "
            "order depends on ranks and workers, and a damaged tar may lose samples that nobody "
            "can name; data.read=random has none of this"
        )

    def consumed(self, step: int) -> int:
        """Return the number of samples that the first `step` steps take."""
        return step * self.batch_size

    def epoch(self, step: int) -> int:
        """Return the epoch of a step: 0."""
        del step
        return _EPOCH

    def constants(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint after `step` steps holds of the stream; checked on a resume."""
        return {
            "read": "sequential",
            "batch_size": self.batch_size,
            "seed": self.reading.seed,
            "consumed": self.consumed(step),
        }

    @property
    def former_constants(self) -> dict[str, Any]:
        """Return what older versions wrote for the same stream: nothing else."""
        return {}

    def record(self, folder: Path) -> None:
        """Write nothing: what the shards hold is not known."""
        del folder

    def changes(self, folder: Path) -> str:
        """Say nothing, likewise."""
        del folder
        return ""

    def damage(self, step: int) -> list[LedgerEntry]:
        """Name the shards that are known to be damaged: none, before they are read."""
        del step
        return []

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        """Yield this rank's micro-batches of each step in [first, last).

        Raises:
            RunStopped: Standard input ends, a command fails, or no shard gives a sample.
        """
        size = self.share.micro_batch_size
        reader = _Reader(self.reading, self.share, first)
        batches = unpacked(reader, self.workers)
        for step in range(first, last):
            start = step * self.batch_size + self.share.rank * self._rank_size
            places = range(start, start + self._rank_size, size)
            yield [_moved(next(batches), place) for place in places]

    @property
    def _rank_size(self) -> int:
        return self.batch_size // self.share.world_size


def open_sequential(
    data: DataConfig,
    size: tuple[int, int],
    seed: int,
    batch_size: int,
    share: Share,
    channels: int = 3,
) -> SequentialStream:
    """Open the stream that `data.read=sequential` asks for.

    Args:
        data: Names the shards, and says whether commands may be run.
        size: (H, W) of the images.
        seed: The run's seed.
        batch_size: Global batch size.
        share: This rank's part.
        channels: C of the images.

    Raises:
        UserError: The shards cannot be read so.
    """
    sources = list_sources(data.shards, "data.shards", allow_pipe=data.allow_pipe)
    reading = Reading(tuple(sources), data.storage, size, seed, data.crop_area, channels)
    return SequentialStream(reading, batch_size, share, data.workers)


def check_sequential(reading: Reading, share: Share, workers: int) -> None:
    """Refuse what cannot be shared among the readers.

    Raises:
        UserError: Several processes would read standard input, or a reader would have no shard.
    """
    require(
        not reading.is_stdin or (share.world_size == 1 and workers == 0),
        f"data.shards=-: standard input is read by one process, not by {share.world_size} ranks "
        f"with data.workers={workers}; start one process with data.workers=0",
    )
    shards, ranks, readers = (
        len(reading.sources),
        share.world_size,
        share.world_size * (workers or 1),
    )
    require(
        shards >= readers,
        f"data.shards names {count(shards, 'shard')} for {readers} readers "
        f"({count(ranks, 'rank')}, data.workers={workers}), and each needs one of its "
        "own under data.read=sequential; "
        + (f"set data.workers={shards // ranks}" if shards >= ranks else "cut them into more"),
    )


def _moved(batch: Batch, start: int) -> Batch:
    """Count a batch's positions from `start`; a reader counts them from 0."""
    places = [place._replace(position=start + place.position) for place in batch.places]
    bad = [
        entry if entry.position is None else entry._replace(position=start + entry.position)
        for entry in batch.bad
    ]
    return batch._replace(places=places, bad=bad)


# ---------------------------------------------------------------- a reader


class _Sample(NamedTuple):
    shard: str
    members: dict[str, Any]  # as webdataset groups them

    @property
    def key(self) -> str:
        return escaped(self.members["__key__"])


class _Reader(IterableDataset[Parcel | RunStopped]):
    """The batches of one reader, or why there are no more: torch would wrap it in a traceback."""

    def __init__(self, reading: Reading, share: Share, first: int) -> None:
        self._reading = reading
        self._share = share
        self._first = first

    def __iter__(self) -> Iterator[Parcel | RunStopped]:
        try:
            yield from map(Parcel.of, self._batches())
        except STOPS as error:
            yield as_stop(error)

    def _batches(self) -> Iterator[Batch]:
        waiting: list[tuple[int, _Sample]] = []
        damage: list[LedgerEntry] = []
        empty: set[TarSource] = set()  # those that gave nothing since the last sample
        for pass_key, source in self._shards():
            num_samples = 0
            for found in read_source(source, self._reading.storage):
                if isinstance(found, LedgerEntry):
                    damage.append(found)
                    continue
                num_samples += 1
                waiting.append((pass_key, found))
                if len(waiting) == self._share.micro_batch_size:
                    yield self._batch(waiting, damage)
                    waiting, damage = [], []
            empty = set() if num_samples else empty | {source}
            self._check_left(num_samples, len(empty), damage)

    def _check_left(self, num_samples: int, num_empty: int, damage: list[LedgerEntry]) -> None:
        """Stop where reading on would bring nothing."""
        why = "".join(f" ({entry.reason})" for entry in damage[-1:])
        if self._reading.is_stdin:
            raise RunStopped(
                f"standard input ended after {num_samples} samples{why}, before the last of "
                "optim.steps; what was committed is whole, and a resume goes on with new input"
            )
        if num_empty == len(self._reading.sources):
            raise RunStopped(f"data.shards: none of the shards gives a sample{why}")

    def _shards(self) -> Iterator[tuple[int, TarSource]]:
        """Yield this reader's part of pass after pass, each with its pass's key and order."""
        worker = get_worker_info()
        num_workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        sources, reader = self._reading.sources, self._share.rank * num_workers + number
        for pass_number in itertools.count():
            # a resume starts other passes than the run did, or the same shards would come again
            pass_key = derive(self._reading.seed, self._first, pass_number)
            size = np.full(len(sources), len(sources))
            order = permute(np.arange(size.size), size, np.full_like(size, pass_key))
            for place in order[reader :: self._share.world_size * num_workers]:
                yield pass_key, sources[place]

    def _batch(self, samples: list[tuple[int, _Sample]], damage: list[LedgerEntry]) -> Batch:
        """Decode and crop; a sample that cannot be keeps its slot with weight 0."""
        reading = self._reading
        places = [
            SamplePlace(_EPOCH, slot, sample.shard, sample.key)
            for slot, (_, sample) in enumerate(samples)
        ]
        passes = np.array([pass_key for pass_key, _ in samples])
        keys = combine(passes, np.array([_hash(place.name) for place in places]))
        batch = fill_batch(
            keys,
            dict(enumerate(places)),
            (reading.channels, *reading.size),
            lambda slot: (pick_image(samples[slot][1].members, reading.channels), NO_LABEL),
            lambda content, numbers: training_crop(
                content, numbers, reading.size, reading.crop_area, reading.channels
            ),
        )
        return batch._replace(bad=damage + batch.bad)


def _hash(name: str) -> int:
    """Hash a sample's SHARD/KEY to a signed 64-bit word."""
    digest = sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def read_source(source: TarSource, storage: Storage) -> Iterator[_Sample | LedgerEntry]:
    """Yield a tar's samples as webdataset groups them, then the damage of the tar, if any.

    Members stay bytes: nothing is decoded here, and a pickle never. Before damage, the last
    sample is left out, as it may have lost members.

    Raises:
        RunStopped: A command failed, or the tar is compressed.
        OSError: The tar cannot be opened or read.
    """
    errors: list[Exception] = []
    last: _Sample | None = None
    num_samples, hidden = 0, _Hidden()
    with TarStream(source, storage) as stream:
        # tar by tar, as grouping several would merge equal keys on both sides of a damaged end
        opened: Any = [{"url": source.name, "stream": stream}]
        members: Any = tar_file_expander(opened, _keep(errors), hidden.passes)
        for sample in group_by_keys(members, handler=_keep(errors)):
            if last is not None:
                yield last
            last = _Sample(source.name, sample)
            num_samples += 1
        is_whole, damage = stream.is_at_end and not errors, stream.finish()
    hidden.say(source)
    if errors and (damage is None or isinstance(errors[0], ValueError)):  # a name occurs twice
        damage = f"{errors[0].args[0]}; the rest of the shard was left out"
    if last is not None and not is_whole:
        damage = f"{damage}; its last sample, {last.key}, was left out"
        num_samples, last = num_samples - 1, None
    if last is not None:
        yield last
    if damage is not None:
        verb = "was" if num_samples == 1 else "were"
        damage = f"{damage}; {count(num_samples, 'sample')} {verb} read"
        yield LedgerEntry(_EPOCH, None, source.name, None, damage)


class _Hidden:
    """Passes over hidden files, and says how many, once for each tar."""

    _said: ClassVar[set[TarSource]] = set()

    def __init__(self) -> None:
        self._names: list[str] = []

    def passes(self, member_name: str) -> bool:
        """Tell whether a member is part of the data."""
        if is_hidden(member_name):
            self._names.append(member_name)
            return False
        return True

    def say(self, source: TarSource) -> None:
        """Say what was passed over, unless it has been said."""
        if self._names and source not in self._said:
            self._said.add(source)
            number = count(len(self._names), "hidden file")
            first = printable(self._names[0])
            _logger.warning("shard %s: passed over %s (first %s)", source.name, number, first)


def _keep(errors: list[Exception]) -> Any:
    """Make a handler for webdataset that ends the tar and keeps the reason."""

    def handle(error: Exception) -> bool:
        if isinstance(error, RunStopped):  # webdataset has added objects to what it says
            raise RunStopped(str(error), error.status) from error
        if isinstance(error, OSError):  # it may pass, so it says nothing of the tar
            raise error
        errors.append(error)
        return False

    return handle
