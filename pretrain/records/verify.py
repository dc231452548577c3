"""Checks a run's traces against its shards and its order.

The surviving lineage of a run is its steps up to the newest whole checkpoint: a resume cuts back
what was logged after it. `verify` reads the traces of all ranks beside one another, step by step,
and counts how often each sample's name occurs. It takes two bytes a sample, and the names of one
block of steps.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.index.files import FileTable
from data.index.manifest import Manifest
from data.index.offsets import ShardIndex
from data.index.open import load_index
from data.index.record import Recorded, read_record
from data.samples import Samples
from data.stream import Share, TrainingStream
from pretrain.records.checkpoint import checkpoints_of, read_state, step_of
from pretrain.records.traces import (
    SKIPPED,
    BadSampleReader,
    Traced,
    Violation,
    read_trace,
    trace_files,
)

_BLOCK = 1 << 16  # samples whose names are looked up at once
_NUM_NAMED = 3  # samples that one message names
_PLANNED, _BAD, _NOT_TRAINED = 1, 2, 4  # what a sample's byte of an epoch says of it


@dataclass(frozen=True)
class EpochCounts:
    """How many samples of an epoch became what.

    Attributes:
        epoch: From 0.
        is_finished: Whether all of its steps are committed.
        expected: Samples of its committed steps.
        trained_once: In one step that was taken.
        bad: Named as unusable.
        skipped: In a step that was skipped, as its loss was not finite.
        missing: Neither in the trace nor named.
        twice: In the trace more than once.
    """

    epoch: int
    is_finished: bool
    expected: int
    trained_once: int
    bad: int
    skipped: int
    missing: int
    twice: int


@dataclass
class Verdict:
    """The result of `verify`.

    Attributes:
        step: The newest whole checkpoint's.
        not_committed: Steps in the trace past it, which are left out.
        epochs: In order; the last one may be unfinished.
        violations: In the order of the steps.
    """

    step: int
    not_committed: int = 0
    epochs: list[EpochCounts] = field(default_factory=list[EpochCounts])
    violations: list[Violation] = field(default_factory=list[Violation])

    @property
    def holds(self) -> bool:
        """Whether each sample was trained on once, but for the named ones."""
        return not self.violations


def verify(run: Path, newest: Path, manifest: Manifest, seed: int, batch_size: int) -> Verdict:
    """Hold a run's trace and ledger against its shards.

    Args:
        run: The run's folder.
        newest: Its newest whole checkpoint.
        manifest: The training shards.
        seed: The run's.
        batch_size: The run's global batch size.
    """
    stream = TrainingStream(
        Samples(manifest, (1, 1), seed=seed), batch_size, Share(0, 1, batch_size), 0
    )
    verdict = Verdict(read_state(newest)["step"])
    verdict.violations += _check_checkpoints(run, verdict.step, stream)
    if verdict.holds:  # else the order is that of another stream, and every step would differ
        _Verifier(run, stream, _Names(manifest, read_record(run)), verdict).verify()
    return verdict


def _check_checkpoints(run: Path, last: int, stream: TrainingStream) -> Iterator[Violation]:
    """Compare each committed checkpoint's constants with the stream's."""
    for checkpoint in reversed(checkpoints_of(run)):
        step = step_of(checkpoint)
        if step > last:
            continue
        state = read_state(checkpoint)
        for name, value in {"step": step, **stream.constants(step)}.items():
            if state.get(name) not in (value, stream.former_constants.get(name, value)):
                message = f"{checkpoint.name}: {name} is {state.get(name)}, and should be {value}"
                yield Violation("checkpoint", message, step=step)


# ---------------------------------------------------------------- what should have been


class _Names:
    """The names of samples by id, and the other way round."""

    def __init__(self, manifest: Manifest, known: Sequence[Recorded] = ()) -> None:
        self._manifest = manifest
        self._former = _former_names(manifest, known)
        self._keys = lru_cache(maxsize=16)(self._ids_by_key)

    def of(self, ids: np.ndarray) -> list[str]:
        """Return SHARD/KEY of each id, opening each shard's index once."""
        starts = self._manifest.starts
        shards = np.searchsorted(starts, ids, side="right") - 1
        order = np.argsort(shards, kind="stable")
        cuts = np.flatnonzero(np.diff(shards[order])) + 1
        names = np.empty(len(ids), dtype=object)
        for slots in np.split(order, cuts) if len(ids) else []:
            shard = int(shards[slots[0]])
            name, index = self._open(shard)
            places = ids[slots] - starts[shard]
            names[slots] = [f"{name}/{index.key(place)}" for place in places.tolist()]
        return names.tolist()

    def find(self, name: str) -> int | None:
        """Return the id of SHARD/KEY; None if there is no such sample."""
        for shard_name, key in _splits(name):
            shard = self._shards.get(shard_name)
            place = None if shard is None else self._keys(shard).get(key)
            if shard is not None and place is not None:
                return int(self._manifest.starts[shard]) + place
        return None

    @cached_property
    def _shards(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self._manifest.shards.names)}

    def as_now(self, names: Sequence[str], expected: Sequence[str]) -> list[str]:
        """Return names of samples as they are now, if they are the expected ones by former names.

        All of one step have the names of one start of the run. Else they are returned as they are.
        """
        renamed = ([_renamed(name, former) for name in names] for former in self._former)
        return next((now for now in renamed if now == list(expected)), list(names))

    def _ids_by_key(self, shard: int) -> dict[str, int]:
        index = self._open(shard)[1]
        return {index.key(place): place for place in range(len(index))}

    def _open(self, shard: int) -> tuple[str, ShardIndex | FileTable]:
        row = self._manifest.shards[shard]
        return row.name, load_index(row, self._manifest.storage)


def _former_names(manifest: Manifest, known: Sequence[Recorded]) -> list[dict[str, str]]:
    """Map, for each start of a run with other names of its shards, those to the names of now."""
    contents = zip(manifest.shards.sha256s, manifest.shards.num_samples.tolist(), strict=True)
    now = [(sha.tobytes().hex(), number) for sha, number in contents]
    if [row.content for row in known] != now:
        return []
    starts = zip(*(row.names for row in known), strict=True)
    return [dict(zip(names, manifest.shards.names, strict=True)) for names in starts]


def _renamed(name: str, names: dict[str, str]) -> str:
    """Replace the shard's name in SHARD/KEY."""
    known = (f"{names[shard]}/{key}" for shard, key in _splits(name) if shard in names)
    return next(known, name)


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield how SHARD/KEY may be split: both may hold slashes."""
    parts = name.split("/")
    for end in range(1, len(parts)):
        yield "/".join(parts[:end]), "/".join(parts[end:])


class _Plan(NamedTuple):
    """A step as the order has it: its samples by slot."""

    step: int  # from 1, as in the trace
    epoch: int
    start: int  # position of slot 0
    ids: np.ndarray
    names: list[str]


def _plans(stream: TrainingStream, names: _Names, last: int) -> Iterator[_Plan]:
    """Yield the plans of the steps up to `last`; names are looked up for many steps at once."""
    size, per_epoch = stream.batch_size, stream.steps_per_epoch
    steps_at_once = max(1, _BLOCK // size)
    first = 0
    while first < last:
        epoch, batch = divmod(first, per_epoch)
        end = min(first + steps_at_once, last, (epoch + 1) * per_epoch)
        low, high = (
            stream.consumed(step) - stream.consumed(epoch * per_epoch) for step in (first, end)
        )
        ids = stream.samples.order.samples(epoch, np.arange(low, high))
        names_of_block = names.of(ids)
        for step in range(first, end):
            start = (batch + step - first) * size
            part = slice(start - low, start - low + size)
            yield _Plan(step + 1, epoch, start, ids[part], names_of_block[part])
        first = end


# ---------------------------------------------------------------- one against the other


class _Verifier:
    """Goes through the steps of a run, and writes what it finds into a verdict."""

    def __init__(self, run: Path, stream: TrainingStream, names: _Names, verdict: Verdict) -> None:
        self._stream = stream
        self._names = names
        self._verdict = verdict
        self._ledger = BadSampleReader(run, verdict.step, verdict.violations)
        files = [read_trace(path, verdict.violations) for path in trace_files(run)]
        merged = heapq.merge(*files, key=lambda record: (record.step, record.rank))
        self._traced = groupby(merged, key=lambda record: record.step)
        self._next = next(self._traced, None)
        self._untraced: list[int] = []
        self._start_epoch()

    def verify(self) -> None:
        """Check all committed steps, then count what is not committed."""
        last, per_epoch = self._verdict.step, self._stream.steps_per_epoch
        for plan in _plans(self._stream, self._names, last):
            records = self._records_of(plan.step)
            if records is None:
                self._untraced.append(plan.step)
            else:
                self._name_untraced()
            self._check_step(plan, records)
            if plan.step % per_epoch == 0 or plan.step == last:
                self._name_untraced()
                self._close_epoch(plan.epoch, is_finished=plan.step % per_epoch == 0)
        while self._next is not None:
            self._verdict.not_committed += 1
            self._next = next(self._traced, None)

    def _records_of(self, step: int) -> list[Traced] | None:
        """Return the records of a step, in the order of the ranks, or None."""
        if self._next is None or self._next[0] != step:
            return None
        records = list(self._next[1])
        self._next = next(self._traced, None)
        return records

    def _report(
        self, kind: str, message: str, plan: _Plan | None = None, samples: Iterable[str] = ()
    ) -> None:
        epoch, step = (plan.epoch, plan.step) if plan else (None, None)
        self._verdict.violations.append(Violation(kind, message, epoch, step, tuple(samples)))

    def _name_untraced(self) -> None:
        """Report steps without a record, those in a row together."""
        if self._untraced:
            first, last = self._untraced[0], self._untraced[-1]
            steps = f"step {first} has" if first == last else f"steps {first} to {last} have"
            self._report("trace", f"{steps} no record in the trace")
            self._untraced = []

    # ---- a step

    def _check_step(self, plan: _Plan, records: list[Traced] | None) -> None:
        self._fate[plan.ids] |= _PLANNED
        bad, skipped = self._named(plan)
        if records is None:
            return
        for record in records:
            if record.epoch != plan.epoch:
                message = f"step {plan.step} is traced as one of epoch {record.epoch}"
                self._report("step", f"{message}, and belongs to {plan.epoch}", plan)
        keys = [key for record in records for key in record.keys]
        good = np.delete(np.arange(len(plan.names)), sorted(bad))
        names = [plan.names[slot] for slot in good] if bad else plan.names
        if keys != names:
            keys = self._names.as_now(keys, names)
        if keys == names:
            self._count[plan.ids[good]] += 1
        else:
            self._explain(plan, keys, names)
        rest = [plan.names[slot] for slot in good if slot not in skipped] if skipped else []
        if rest:
            message = f"step {plan.step} was skipped, and the ledger does not name {_some(rest)}"
            self._report("ledger", message, plan, rest)

    def _named(self, plan: _Plan) -> tuple[set[int], set[int]]:
        """Return the slots that the ledger names as bad, and those of a skipped step."""
        bad: set[int] = set()
        skipped: set[int] = set()
        for entry in self._ledger.pop(plan.step):
            slot = entry.position - plan.start
            is_there = entry.epoch == plan.epoch and 0 <= slot < len(plan.names)
            own = [plan.names[slot]] if is_there else []
            if not is_there or self._names.as_now([entry.name], own) != own:
                place = f"position {entry.position} of epoch {entry.epoch}, step {plan.step}"
                message = f"the ledger names {entry.name} at {place}; that is not its place"
                self._report("ledger", message, plan, [entry.name])
                continue
            (skipped if entry.reason == SKIPPED else bad).add(slot)
        self._fate[plan.ids[list(bad)]] |= _BAD
        self._fate[plan.ids[list(skipped)]] |= _NOT_TRAINED
        return bad, skipped

    def _explain(self, plan: _Plan, keys: list[str], names: list[str]) -> None:
        """Say how a step differs from its plan, and count its samples by their names."""
        own = dict(zip(plan.names, plan.ids.tolist(), strict=True))
        counts, expected = Counter(keys), set(names)
        unknown: list[str] = []
        for name, times in counts.items():
            sample = own[name] if name in own else self._names.find(name)
            if sample is None:
                unknown.append(name)
            else:
                self._count[sample] = min(255, int(self._count[sample]) + times)
        differences = {
            "lacks": [name for name in names if name not in counts],
            "holds, from another place,": [n for n in counts if n not in own and n not in unknown],
            "holds what is in no shard:": unknown,
            "repeats": [name for name, times in counts.items() if times > 1],
            "holds what the ledger names as bad:": [
                n for n in counts if n in own and n not in expected
            ],
        }
        texts = [f"{what} {_some(which)}" for what, which in differences.items() if which]
        if not texts:
            place = next(
                i for i, pair in enumerate(zip(keys, names, strict=True)) if len({*pair}) > 1
            )
            texts = [f"has another order: {keys[place]} where {names[place]} belongs"]
        message = f"step {plan.step} has {len(keys)} samples of {len(names)}: {'; '.join(texts)}"
        samples = [name for which in differences.values() for name in which]
        self._report("step", message, plan, samples)

    # ---- an epoch

    def _start_epoch(self) -> None:
        num_samples = self._stream.samples.manifest.num_samples
        self._count = np.zeros(num_samples, np.uint8)
        self._fate = np.zeros(num_samples, np.uint8)

    def _close_epoch(self, epoch: int, *, is_finished: bool) -> None:
        """Name what was trained on never or twice, and count the rest."""
        is_planned, is_bad, is_skipped = (
            (self._fate & flag) > 0 for flag in (_PLANNED, _BAD, _NOT_TRAINED)
        )
        is_missing = is_planned & ~is_bad & (self._count == 0)
        is_twice = self._count > 1
        is_once = (self._count == 1) & ~is_skipped & is_planned
        for kind, which, what in (
            ("missing", is_missing, "was neither trained on nor named as bad"),
            ("twice", is_twice, "was trained on more than once"),
        ):
            for name in self._names.of(np.flatnonzero(which)):
                message = f"epoch {epoch}: {name} {what}"
                self._verdict.violations.append(Violation(kind, message, epoch, None, (name,)))
        sums = [is_planned, is_once, is_bad, is_skipped, is_missing, is_twice]
        self._verdict.epochs.append(
            EpochCounts(epoch, is_finished, *(int(np.count_nonzero(which)) for which in sums))
        )
        self._start_epoch()


def _some(names: Sequence[str]) -> str:
    """Name the first few, and count the others."""
    rest = len(names) - _NUM_NAMED
    return ", ".join(names[:_NUM_NAMED]) + (f" and {rest} more" if rest > 0 else "")
