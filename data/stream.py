"""Positions -> a rank's batches, in order: what training and evaluation iterate over.

A resume reads nothing twice, and the whole state of the stream is one integer, the step.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data.ahead.lookahead import ReadPlan
from data.ahead.prefetch import Prefetcher, node_slots
from data.batch import Batch, LedgerEntry, Request, SamplePlace
from data.index.record import changes, record
from data.processes import end_with_parent, file_limit, leave_signals_to_parent, shortage
from data.samples import Samples
from data.settings import RunStopped, UserError
from data.shared_memory import Loan, borrow, forget, lend, name_lender

_CONTENT = "content of the shards (sha256)"
_numbers = count()  # of the loaders that this process has started


@dataclass(frozen=True)
class Share:
    """A rank's part of the work: `rank` of `world_size`, in micro-batches of `micro_batch_size`."""

    rank: int
    world_size: int
    micro_batch_size: int


class TrainingStream:
    """The training samples, step by step, for one rank.

    Global batch `k` of an epoch holds positions `kB` to `(k + 1)B`, whatever the number of ranks;
    this rank takes its equal share of them. The last batch of an epoch is padded with weight 0.

    Args:
        samples: What the requests are answered from.
        batch_size: Global batch size `B`; a multiple of world size times micro-batch size.
        share: This rank's part.
        workers: Loader processes.
    """

    def __init__(self, samples: Samples, batch_size: int, share: Share, workers: int) -> None:
        assert batch_size % (share.world_size * share.micro_batch_size) == 0
        self.samples = samples
        self.batch_size = batch_size
        self.share = share
        self.workers = workers
        self.steps_per_epoch = -(-samples.manifest.num_samples // batch_size)

    def consumed(self, step: int) -> int:
        """Return the number of samples that the first `step` steps take."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        num_samples = self.samples.manifest.num_samples
        return epoch * num_samples + min(batch * self.batch_size, num_samples)

    def epoch(self, step: int) -> int:
        """Return the epoch of step `step`, from 0."""
        return step // self.steps_per_epoch

    def constants(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint after `step` steps holds of the stream; checked on a resume."""
        return {
            _CONTENT: self.samples.manifest.content,
            "batch_size": self.batch_size,
            **self.samples.constants,
            "consumed": self.consumed(step),  # last: it follows from the others
        }

    @property
    def former_constants(self) -> dict[str, Any]:
        """Return what older versions wrote for the same stream: the shards' names counted."""
        return {_CONTENT: self.samples.manifest.fingerprint}

    def record(self, folder: Path) -> None:
        """Write into a run's folder which shards it is on."""
        record(folder, self.samples.manifest)

    def changes(self, folder: Path) -> str:
        """Say how the shards differ from those in a run's record; empty where it is not known."""
        return changes(folder, self.samples.manifest)

    def damage(self, step: int) -> list[LedgerEntry]:
        """Name the shards that are damaged, for a run that goes on at `step`."""
        epoch = self.epoch(step)
        return [
            LedgerEntry(epoch, None, shard.name, None, str(shard.damage))
            for shard in self.samples.manifest.shards.damaged
        ]

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        """Yield this rank's micro-batches of each step in [first, last)."""
        requests = _Requests(lambda: self._requests(first, last))
        batches = read_batches(self.samples, requests, self.workers)
        num_micro_batches = self._rank_size // self.share.micro_batch_size
        with self._prefetcher(first, last) as prefetcher:
            for step in range(first, last):
                yield [next(batches) for _ in range(num_micro_batches)]
                prefetcher.advance(step + 1)

    def _prefetcher(self, first: int, last: int) -> Prefetcher:
        slots = node_slots(self.share.rank, self._rank_size)
        samples = self.samples
        plan = ReadPlan(samples.manifest, samples.order.seed, self.batch_size, *slots)
        storage = samples.manifest.storage
        if samples.is_in_memory:
            storage = replace(storage, cache_dir=None)  # no need to read ahead
        return Prefetcher(plan, storage, first, last)

    @property
    def _rank_size(self) -> int:
        return self.batch_size // self.share.world_size

    def _requests(self, first: int, last: int) -> Iterator[Request]:
        for step in range(first, last):
            epoch, batch = divmod(step, self.steps_per_epoch)
            start = batch * self.batch_size + self.share.rank * self._rank_size
            for offset in range(0, self._rank_size, self.share.micro_batch_size):
                begin = start + offset
                yield Request(epoch, begin, begin + self.share.micro_batch_size)


def evaluation_batches(
    samples: Samples, share: Share, workers: int, number: int | None = None, first: int = 0
) -> Iterator[Batch]:
    """Return this rank's batches of one pass in listed order; as many for each rank.

    Args:
        samples: What the requests are answered from.
        share: This rank's part.
        workers: Loader processes.
        number: No more batches than hold the first so many samples; None: all.
        first: The position at which the pass begins.
    """
    size = share.micro_batch_size
    stride = size * share.world_size
    number = samples.manifest.num_samples if number is None else number
    num_strides = -(-(number - first) // stride)
    starts = range(first + share.rank * size, first + num_strides * stride, stride)
    return read_batches(samples, [Request(0, start, start + size) for start in starts], workers)


class _Requests:
    """An iterable over what a function yields, for `DataLoader(sampler=...)`."""

    def __init__(self, make: Callable[[], Iterator[Request]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Request]:
        return self._make()


@dataclass(frozen=True)
class Parcel:
    """A batch on its way from a loader process.

    The images alone go through shared memory, on loan: each tensor more would be a file and a
    connection more. To torch, which would walk through a tuple and all of its names, it is one
    thing.
    """

    image: Tensor
    arrays: dict[str, np.ndarray]
    places: Sequence[SamplePlace]
    bad: list[LedgerEntry]

    @classmethod
    def of(cls, batch: Batch) -> "Parcel":
        """Pack a batch."""
        arrays = {k: tensor.numpy() for k, tensor in batch.tensors.items() if k != "image"}
        return cls(batch.tensors["image"], arrays, batch.places, batch.bad)

    def batch(self) -> Batch:
        """Unpack it."""
        tensors = {name: torch.from_numpy(values) for name, values in self.arrays.items()}
        return Batch({"image": self.image, **tensors}, self.places, self.bad)

    def __reduce__(self) -> tuple[Any, ...]:
        loan = lend(self.image)
        return _arrived, (loan, self.arrays, self.places, self.bad)

    def pin_memory(self) -> "Parcel":
        """Do what torch asks for before a batch goes to a GPU; a copy of the rest would wait."""
        arrays = {k: torch.from_numpy(v).pin_memory().numpy() for k, v in self.arrays.items()}
        image = self.image.pin_memory() if self.image.is_cpu else self.image
        return replace(self, image=image, arrays=arrays)


def _arrived(sent: Tensor | Loan, *others: Any) -> Parcel:
    return Parcel(borrow(sent), *others)


STOPS = (RunStopped, UserError, OSError, RuntimeError)  # what ends the reading of shards


def as_stop(error: Exception) -> RunStopped:
    """Say why the reading of shards ended: torch would wrap the error in a traceback.

    Raises:
        RuntimeError: `error`, if it is a fault of the program.
    """
    if isinstance(error, RunStopped):
        return error
    reason = shortage(error)
    if reason is None and isinstance(error, RuntimeError):
        raise error
    reason = reason or f"the shards cannot be read: {error}"
    return RunStopped(f"{reason}; the same command resumes")


class _Answers(Dataset[Parcel | RunStopped]):
    """Requests -> batches, or why there is none."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __getitem__(self, request: Request) -> Parcel | RunStopped:
        try:
            return Parcel.of(self._samples[request])
        except STOPS as error:
            return as_stop(error)


def read_batches(samples: Samples, requests: Iterable[Request], workers: int) -> Iterator[Batch]:
    """Answer requests in loader processes, and yield their batches in order; see `unpacked`."""
    return unpacked(_Answers(samples), workers, requests)


def unpacked(
    dataset: Dataset[Parcel | RunStopped], workers: int, requests: Iterable[Request] | None = None
) -> Iterator[Batch]:
    """Run a dataset of parcels in loader processes, and yield their batches.

    Args:
        dataset: Answers requests, or is iterated over.
        workers: Loader processes; 0 works in this one.
        requests: What it is asked for, in order; None for one that is iterated over.

    Raises:
        RunStopped: What the dataset gave in place of a batch.
    """
    number = next(_numbers)
    loader: DataLoader[Parcel | RunStopped] = DataLoader(
        dataset,
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        collate_fn=_packed,
        worker_init_fn=partial(_start_worker, number),
        pin_memory=torch.cuda.is_available(),
        # a generator of its own: iter(DataLoader) would draw from the global one
        generator=torch.Generator(),
    )
    answers = _started(loader)
    try:
        for answer in answers:
            if isinstance(answer, RunStopped):
                raise answer
            yield answer.batch()
    except (EOFError, ConnectionError, FileNotFoundError) as error:  # in the midst of handing over
        raise RunStopped(
            "a loader process could not hand on its batch: it was killed, or opened more files "
            f"than the {file_limit()} that `ulimit -n` allows; the same command resumes, and "
            "data.workers=0 needs no loader processes"
        ) from error
    finally:
        forget(number)
        del answers  # ends the loader processes; else an error that is kept would keep it, too


def _started(loader: DataLoader[Parcel | RunStopped]) -> Iterator[Parcel | RunStopped]:
    try:
        return iter(loader)
    except OSError as error:
        reason = shortage(error) or f"no loader process can be started ({error})"
        raise RunStopped(f"{reason}; data.workers=0 needs none") from error


class _Packed:
    """An answer that is in bytes already; it arrives as what it was."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __reduce__(self) -> tuple[Any, ...]:
        loads: Callable[[bytes], Any] = getattr(ForkingPickler, "loads")  # noqa: B009 - typed badly
        return loads, (self._content,)


def _packed(answer: Any) -> Any:
    """Pack an answer here, where a failure can be told.

    The queue's own thread would print it and drop the answer, for which the parent waits for ever.
    """
    if get_worker_info() is None:
        return answer
    try:
        return _Packed(bytes(ForkingPickler.dumps(answer)))
    except STOPS as error:
        return as_stop(error)


def _start_worker(loader: int, _: int) -> None:
    name_lender(loader)
    leave_signals_to_parent()
    end_with_parent()
