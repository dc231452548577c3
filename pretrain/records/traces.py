"""Reading a run's traces and its ledger of bad samples."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

SKIPPED = "step skipped: its loss or gradient is not finite"  # why a sample is in the ledger


@dataclass(frozen=True)
class Violation:
    """One thing that is not as it should be.

    Attributes:
        kind: checkpoint, trace, step, ledger, missing, or twice.
        message: One line that names it.
        epoch: Where it belongs to one.
        step: Where it belongs to one, from 1 as in the trace.
        samples: SHARD/KEY of the samples it is about.
    """

    kind: str
    message: str
    epoch: int | None = None
    step: int | None = None
    samples: tuple[str, ...] = ()


class Traced(NamedTuple):
    """A record of a rank's trace."""

    step: int
    rank: int
    epoch: int
    keys: list[str]


class Entry(NamedTuple):
    """A sample that the ledger names."""

    epoch: int
    position: int
    name: str
    reason: str


def trace_files(run: Path) -> list[Path]:
    """List the traces of a run, one a rank."""
    return sorted((run / "trace").glob("rank-*.jsonl"), key=_rank)


def _rank(path: Path) -> int:
    return int(path.stem.removeprefix("rank-"))


def read_trace(path: Path, violations: list[Violation]) -> Iterator[Traced]:
    """Yield a rank's records in the order of their steps; a torn last line is left out."""
    last = 0
    for number, record in _records(path, violations):
        try:
            step, epoch, keys = int(record["step"]), record["epoch"], list(record["keys"])
        except (KeyError, TypeError, ValueError):
            violations.append(Violation("trace", f"{path.name}, line {number}: is no trace record"))
            continue
        if step <= last:
            message = f"{path.name}, line {number}: step {step} comes after step {last}"
            violations.append(Violation("trace", message, step=step))
        last = max(last, step)
        yield Traced(last, _rank(path), epoch, keys)  # so that merging stays in order


def _records(path: Path, violations: list[Violation]) -> Iterator[tuple[int, Any]]:
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield number, json.loads(line)
            except ValueError:
                violations.append(Violation("trace", f"{path.name}, line {number}: is no JSON"))


class BadSampleReader:
    """The training samples that bad_samples.jsonl names, by step.

    Shards named as a whole are left out, and so are samples of what the run was measured on.
    """

    def __init__(self, run: Path, last: int, violations: list[Violation]) -> None:
        self._entries: defaultdict[int, list[Entry]] = defaultdict(list)
        for number, line in _records(run / "bad_samples.jsonl", violations):
            try:
                is_trained_on = line["key"] is not None and "split" not in line
                if is_trained_on and line["step"] <= last:
                    name = f"{line['shard']}/{line['key']}"
                    entry = Entry(line["epoch"], int(line["position"]), name, line["reason"])
                    self._entries[line["step"]].append(entry)
            except (KeyError, TypeError, ValueError):
                message = f"bad_samples.jsonl, line {number}: is no record of a sample"
                violations.append(Violation("ledger", message))

    def pop(self, step: int) -> list[Entry]:
        """Take what is named of a step."""
        return self._entries.pop(step, [])
