"""What a run writes down: JSONL records in step order, and lines for whoever watches."""

import json
import logging
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

logger = logging.getLogger(__name__)


class JsonLines:
    """A file of JSON records, one a line, each with its `step`, appended in order."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; it is in the system's hands when this returns."""
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until all records are on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RunLogs:
    """The files that one rank of a run writes; None where that is another rank's, or not asked for.

    Attributes:
        metrics: A record each logged step; of the main process.
        ledger: The samples that could not be used; of the main process.
        trace: The keys of each step's samples on this rank.
    """

    def __init__(self, folder: Path, rank: int, has_trace: bool) -> None:
        self.metrics = JsonLines(folder / "metrics.jsonl") if rank == 0 else None
        self.ledger = JsonLines(folder / "bad_samples.jsonl") if rank == 0 else None
        self.trace = JsonLines(folder / f"trace/rank-{rank}.jsonl") if has_trace else None

    @property
    def _files(self) -> list[JsonLines]:
        return [file for file in (self.metrics, self.ledger, self.trace) if file is not None]

    def sync(self) -> None:
        """Wait until all records are on disk."""
        for file in self._files:
            file.sync()

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def cut_logs_back(folder: Path, step: int) -> None:
    """Cut all files of a run, of all ranks, back to a step."""
    logs = [folder / "metrics.jsonl", folder / "bad_samples.jsonl"]
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


class Progress:
    """A bar on a terminal, log lines elsewhere; nothing on other ranks."""

    def __init__(self, first: int, total: int, is_shown: bool) -> None:
        self._has_bar = is_shown and sys.stderr.isatty()
        self._is_shown = is_shown
        self._total = total
        self._bar: tqdm[Any] = tqdm(
            total=total, initial=first, unit="step", disable=not self._has_bar, dynamic_ncols=True
        )

    def advance(self) -> None:
        """Count one step."""
        self._bar.update()

    def show(self, record: dict[str, Any]) -> None:
        """Show a logged record's main figures."""
        named = {
            "loss": record["train/loss"],
            "accuracy": record.get("train/accuracy"),
            "val loss": record.get("val/loss"),
            "val accuracy": record.get("val/accuracy"),
            "images/s": record.get("speed/images_per_second"),
        }
        shown = {name: f"{value:.4g}" for name, value in named.items() if value is not None}
        if self._has_bar:
            self._bar.set_postfix(shown)
        elif self._is_shown:
            text = "  ".join(f"{name} {value}" for name, value in shown.items())
            logger.info("step %d/%d  %s", record["step"], self._total, text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
