"""A run that is killed and started again, and an epoch on several ranks: ours and webdataset's."""

import math
import multiprocessing
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, Protocol, cast

import torch
from torch.utils.data import DataLoader
from webdataset.compat import WebDataset
from webdataset.shardlists import split_by_node

from data.batch import Batch
from data.config import ImageConfig
from data.index.open import open_manifest
from data.samples import Samples
from data.stream import Share, TrainingStream
from scripts._benchmark.faulty_files import SIZE
from scripts._benchmark.readings import Name, Reading
from scripts._benchmark.webdataset_stream import SAMPLE_SHUFFLE, SHARD_SHUFFLE

_BATCH_SIZE = 10  # a step, over all ranks
_CHECKPOINT_EVERY = 2  # steps
_KILLED_AFTER = 5  # steps, one of which no checkpoint holds
_WORLD_SIZE = 2
_WORKERS = 3  # a rank


class Steps(Protocol):
    """Yields the names of each step's samples, from a step on, in the order of training."""

    def __call__(self, shards: list[str], first: int) -> Iterator[list[Name]]:
        """Start in a new process, with nothing but the number of steps that were committed."""
        ...


def our_steps(shards: list[str], first: int) -> Iterator[list[Name]]:
    """Yield the epoch's steps from `first` on, as a resumed run does."""
    stream = _stream(shards, Share(0, 1, _BATCH_SIZE), workers=0)
    for batches in stream.steps(first, stream.steps_per_epoch):
        yield _names(batches)


def webdataset_steps(shards: list[str], first: int) -> Iterator[list[Name]]:
    """Yield steps of an epoch that starts anew: there is no other way to start."""
    del first
    dataset = WebDataset(shards, shardshuffle=SHARD_SHUFFLE).shuffle(SAMPLE_SHUFFLE)
    names = _webdataset_names(dataset)
    while step := list(islice(names, _BATCH_SIZE)):
        yield step


def read_killed(steps: Steps, shards: list[str], num_samples: int) -> Reading:
    """Kill a run in mid-epoch, start it again, and return what the surviving weights have seen.

    Steps after the last checkpoint are lost with the process. Both go on to as many steps as the
    epoch has.
    """
    committed = _KILLED_AFTER // _CHECKPOINT_EVERY * _CHECKPOINT_EVERY
    lineage = _run(steps, shards, 0, _KILLED_AFTER)[:committed]
    num_steps = -(-num_samples // _BATCH_SIZE)
    lineage += _run(steps, shards, committed, num_steps - committed)
    return Reading(seen=[(name, "") for step in lineage for name in step])


def _run(steps: Steps, shards: list[str], first: int, num_steps: int) -> list[list[Name]]:
    """Take some steps in a process of their own, then kill it, and return what it had sent."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_steps, args=(theirs, steps, shards, first))
    process.start()
    theirs.close()
    received: list[list[Name]] = []
    with closing(ours):
        while len(received) < num_steps:
            received.append(ours.recv())
        os.kill(cast(int, process.pid), signal.SIGKILL)
        process.join()
    return received


def _send_steps(answer: Connection, steps: Steps, shards: list[str], first: int) -> None:
    torch.set_num_threads(1)
    for step in steps(shards, first):
        answer.send(step)
    signal.pause()  # until it is killed: a step that was sent is a step that was taken


# ---------------------------------------------------------------- ranks


def read_ours_on_ranks(shards: list[str]) -> tuple[Reading, list[int]]:
    """Read an epoch on 2 ranks of 3 workers; also return the samples of each rank."""
    reading, counts = Reading(), list[int]()
    for rank in range(_WORLD_SIZE):
        share = Share(rank, _WORLD_SIZE, _BATCH_SIZE // _WORLD_SIZE)
        stream = _stream(shards, share, _WORKERS)
        steps = stream.steps(0, stream.steps_per_epoch)
        names = [name for batches in steps for name in _names(batches)]
        reading.seen += [(name, "") for name in names]
        counts.append(len(names))
    return reading, counts


def read_webdataset_on_ranks(shards: list[str]) -> tuple[Reading, list[int]]:
    """Split by node and by worker, as webdataset's documentation advises.

    `empty_check` is off, as its error asks for when a worker has no shard. Ranks take as many steps
    as the one with the fewest samples; beyond that, DDP would wait for ever.
    """
    ranks = [
        _rank_names(
            rank,
            WebDataset(
                shards, shardshuffle=SHARD_SHUFFLE, nodesplitter=split_by_node, empty_check=False
            ).shuffle(SAMPLE_SHUFFLE),
        )
        for rank in range(_WORLD_SIZE)
    ]
    counts = [len(names) for names in ranks]
    seen = [(name, "") for names in ranks for name in names[: min(counts)]]
    return Reading(seen=seen), counts


def read_resampled_on_ranks(shards: list[str], num_samples: int) -> tuple[Reading, list[int]]:
    """Resample shards with replacement, which its README says is usual on several nodes."""
    share = num_samples // _WORLD_SIZE
    per_worker = math.ceil(share / _WORKERS)
    ranks: list[list[Name]] = []
    for rank in range(_WORLD_SIZE):
        dataset: Any = WebDataset(
            shards, resampled=True, shardshuffle=False, nodesplitter=split_by_node
        )
        dataset = dataset.shuffle(SAMPLE_SHUFFLE).with_epoch(per_worker)
        ranks.append(_rank_names(rank, dataset)[:share])
    seen = [(name, "") for names in ranks for name in names]
    return Reading(seen=seen), [len(names) for names in ranks]


def _rank_names(rank: int, dataset: Any) -> list[Name]:
    """Read all that a rank's loader gives."""
    loader = DataLoader(
        dataset.map(_name), batch_size=None, num_workers=_WORKERS, worker_init_fn=_one_thread
    )
    with environment(RANK=str(rank), WORLD_SIZE=str(_WORLD_SIZE)):
        return list(loader)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


@contextmanager
def environment(**values: str) -> Generator[None]:
    """Set variables of the environment for a while."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _stream(shards: list[str], share: Share, workers: int) -> TrainingStream:
    manifest = open_manifest(shards, "data.shards")
    samples = Samples(manifest, SIZE, 0, ImageConfig().crop_area)
    return TrainingStream(samples, _BATCH_SIZE, share, workers)


def _names(batches: list[Batch]) -> list[Name]:
    places = [place for batch in batches for place in batch.places]
    return [Name(place.shard.rpartition("/")[2], place.key) for place in places]


def _webdataset_names(dataset: Any) -> Iterator[Name]:
    return (_name(sample) for sample in dataset)


def _name(sample: dict[str, Any]) -> Name:
    return Name(sample["__url__"].rpartition("/")[2], sample["__key__"])
