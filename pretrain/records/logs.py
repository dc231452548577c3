"""A run's JSONL records, in step order."""

import json
import logging
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

logger = logging.getLogger(__name__)


class JsonLines:
    """A file of JSON records, one a line, each with its `step`, appended in order.

    Where the disk is full, lines wait in memory: `sync` tells.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._waiting = bytearray()

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; a number that is not finite becomes null: JSON has no name for it."""
        values = {name: None if _is_odd(value) else value for name, value in record.items()}
        text = json.dumps(values, ensure_ascii=False)
        # what is no Unicode, as in a reason with a file's name, is escaped as JSON has it
        self._waiting += text.encode("utf-8", "backslashreplace") + b"\n"
        with suppress(OSError):
            self._hand_over()

    def _hand_over(self) -> None:
        while self._waiting:
            del self._waiting[: self._file.write(self._waiting)]

    def sync(self) -> None:
        """Wait until all records are on disk.

        Raises:
            OSError: They cannot be written; they are kept for another try.
        """
        self._hand_over()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _is_odd(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


class RunLogs:
    """The files that one rank of a run writes, within a `with` block.

    They are None before it, and where they are another rank's or not asked for.

    Attributes:
        metrics: A record each logged step; of the main process.
        ledger: The samples that could not be used; of the main process.
        trace: The keys of each step's samples on this rank.
        starts: A record each time the run is started or resumed; of the main process.
    """

    def __init__(self, folder: Path, rank: int, has_trace: bool) -> None:
        self._folder, self._rank, self._has_trace = folder, rank, has_trace
        self.metrics: JsonLines | None = None
        self.ledger: JsonLines | None = None
        self.trace: JsonLines | None = None
        self.starts: JsonLines | None = None

    def __enter__(self) -> Self:
        if self._rank == 0:
            self.metrics = JsonLines(self._folder / "metrics.jsonl")
            self.ledger = JsonLines(self._folder / "bad_samples.jsonl")
            self.starts = JsonLines(self._folder / "starts.jsonl")
        if self._has_trace:
            self.trace = JsonLines(self._folder / f"trace/rank-{self._rank}.jsonl")
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    @property
    def _files(self) -> list[JsonLines]:
        files = (self.metrics, self.ledger, self.trace, self.starts)
        return [file for file in files if file is not None]

    def sync(self) -> None:
        """Wait until all records are on disk."""
        for file in self._files:
            file.sync()


def cut_logs_back(folder: Path, step: int) -> None:
    """Cut all files of a run, of all ranks, back to a step."""
    logs = [folder / f"{name}.jsonl" for name in ("metrics", "bad_samples", "starts")]
    for path in [*logs, *folder.glob("trace/rank-*.jsonl")]:
        cut_back(path, step)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read all records of a file; a torn last line is left out."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def cut_back(path: Path, step: int) -> None:
    """Drop the records past a step, and a torn last line: what a killed run wrote too early."""
    if not path.exists():
        return
    end = 0
    with path.open("rb+") as file:
        for line in file:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            end += len(line)
        file.truncate(end)
        os.fsync(file.fileno())
