"""The samples of a run that could not be used: collected by each rank, written by the main one."""

import logging
from collections.abc import Iterable
from pathlib import Path

from accelerate.utils import gather_object

from data.loader import LedgerEntry
from data.settings import RunStopped
from pretrain.metrics import JsonLines, read_records
from pretrain.traces import SKIPPED

logger = logging.getLogger(__name__)

_MAX_SAID = 5  # bad samples at a time that the log names; the ledger names all
_MIN_JUDGED = 1_000  # samples, before data.max_bad_ratio is applied


class Ledger:
    """What no rank could use, and what was in steps that were skipped.

    Args:
        folder: The run's.

    Attributes:
        num_bad: Samples of the whole run that could not be used, over all ranks.
    """

    def __init__(self, folder: Path) -> None:
        self.num_bad = 0
        self._folder = folder
        self._noted: list[tuple[int, LedgerEntry]] = []

    def note(self, done: int, entries: Iterable[LedgerEntry]) -> None:
        """Keep this rank's entries of step number `done` until they are written."""
        self._noted += [(done, entry) for entry in entries]

    def write(self, file: JsonLines | None) -> None:
        """Write what was noted since the last time; all ranks have to ask.

        Args:
            file: The main process's; None on the others.
        """
        entries: list[tuple[int, LedgerEntry]] = gather_object(self._noted)
        self._noted = []
        self.num_bad += sum(entry.reason != SKIPPED for _, entry in entries)
        if file is None:
            return
        for number, (step, entry) in enumerate(sorted(entries, key=_by_place)):
            if number < _MAX_SAID:
                logger.warning("not used: %s/%s: %s", entry.shard, entry.key, entry.reason)
            file.write({"step": step, **entry._asdict()})
        if len(entries) > _MAX_SAID:
            more = len(entries) - _MAX_SAID
            logger.warning("and %d more, named in %s", more, file.path)

    def judge(self, num_seen: int, max_ratio: float, *, is_epoch: bool) -> None:
        """Stop a run whose data is worse than it was told to bear.

        Args:
            num_seen: Samples of the run up to now.
            max_ratio: How many of them may be bad.
            is_epoch: Whether they are an epoch: enough to judge by, however small.

        Raises:
            RunStopped: More are bad.
        """
        has_seen_enough = num_seen >= _MIN_JUDGED or is_epoch
        ratio = self.num_bad / num_seen
        if has_seen_enough and ratio > max_ratio:
            raise RunStopped(
                f"{ratio:.1%} of the samples cannot be used ({self.num_bad} of {num_seen}), more "
                f"than data.max_bad_ratio={max_ratio}; {self._folder}/bad_samples.jsonl "
                "names them: mend the shards, or raise the key",
                is_agreed=True,
            )


def name_damage(file: JsonLines | None, step: int, damage: Iterable[LedgerEntry]) -> None:
    """Name the shards that are damaged, once; `file` as in `Ledger.write`."""
    if file is None:
        return
    known = {(line["shard"], line["reason"]) for line in read_records(file.path)}
    for entry in damage:
        if (entry.shard, entry.reason) not in known:
            file.write({"step": step, **entry._asdict()})


def _by_place(line: tuple[int, LedgerEntry]) -> tuple[int, int, str]:
    step, entry = line
    return step, -1 if entry.position is None else entry.position, entry.shard
