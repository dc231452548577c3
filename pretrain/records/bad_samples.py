"""The samples of a run that could not be used: collected by each rank, written by the main one.

A line of bad_samples.jsonl names a training sample; with `split`, one of what the run was measured
on.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import gather_object

from data.batch import LedgerEntry
from data.settings import RunStopped
from data.text import count, printable
from pretrain.records.logs import JsonLines, read_records
from pretrain.records.traces import SKIPPED

logger = logging.getLogger(__name__)

_MAX_SAID = 5  # bad samples at a time that the log names; the ledger names all
_MIN_JUDGED = 1_000  # samples, before data.max_bad_ratio is applied


class Unusable(NamedTuple):
    """The samples that a pass over a split could not use.

    Attributes:
        split: The key that names its shards, such as data.val.
        num_samples: All samples of the split.
        entries: Those that could not be used, of all ranks.
    """

    split: str
    num_samples: int
    entries: list[LedgerEntry]

    @property
    def is_all(self) -> bool:
        """Whether nothing is left to measure by."""
        return len(self.entries) >= self.num_samples

    def judge(self, max_ratio: float, folder: Path | None = None) -> None:
        """Stop where more cannot be used than `data.max_bad_ratio` bears, or nothing can.

        Args:
            max_ratio: That key's value.
            folder: The run's, whose ledger names them; None: there is none.

        Raises:
            RunStopped: On all ranks alike.
        """
        names = f"; {folder}/bad_samples.jsonl names them" if folder else ""
        num_bad = len(self.entries)
        judge(num_bad, self.num_samples, max_ratio, f"samples of {self.split}", names)


class BadSamples:
    """The samples that no rank could use, and those of steps that were skipped.

    Args:
        folder: The run's.

    Attributes:
        num_bad: Training samples of the whole run that could not be used, over all ranks.
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
        # a damaged shard is named whole, and is no sample
        self.num_bad += sum(
            entry.reason != SKIPPED and entry.position is not None for _, entry in entries
        )
        if file is None:
            return
        for number, (step, entry) in enumerate(sorted(entries, key=_by_place)):
            if number < _MAX_SAID:
                name = printable(f"{entry.shard}/{entry.key}")
                logger.warning("not used: %s: %s", name, entry.reason)
            file.write({"step": step, **entry._asdict()})
        if len(entries) > _MAX_SAID:
            more = len(entries) - _MAX_SAID
            logger.warning("and %d more, named in %s", more, file.path)

    def judge(self, num_seen: int, num_enough: int, num_run: int, max_ratio: float) -> None:
        """Stop a run whose data is worse than it was told to bear.

        Args:
            num_seen: Training samples up to now; padding is none.
            num_enough: Samples of an epoch: enough to judge by, however few.
            num_run: Samples of the whole run, likewise.
            max_ratio: How many of them may be bad.

        Raises:
            RunStopped: More are bad, or will be whatever follows.
        """
        has_seen_enough = num_seen >= min(_MIN_JUDGED, num_enough, num_run)
        if has_seen_enough or self.num_bad > max_ratio * num_run:
            names = f"; {self._folder}/bad_samples.jsonl names them"
            judge(self.num_bad, num_seen, max_ratio, "samples", names)


def judge(num_bad: int, num_seen: int, max_ratio: float, what: str, names: str = "") -> None:
    """Stop where more samples are bad than `data.max_bad_ratio` bears, or where all are.

    Args:
        num_bad: Those that cannot be used.
        num_seen: All.
        max_ratio: The key's value.
        what: What they are, for the message.
        names: Where they are named, likewise.

    Raises:
        RunStopped: More are bad. All ranks have to ask with the same numbers.
    """
    if num_bad > max_ratio * num_seen or num_bad >= num_seen:
        rule = f", more than data.max_bad_ratio={max_ratio}" if max_ratio < 1 else ""
        remedy = ", or raise the key" if num_bad < num_seen else ""
        raise RunStopped(
            f"{num_bad / max(1, num_seen):.1%} of the {what} cannot be used "
            f"({num_bad} of {num_seen}){rule}{names}: mend them{remedy}",
            is_agreed=True,
        )


def say_unusable(unusable: Unusable) -> None:
    """Count the images of a split that cannot be used, and name the first; for where no ledger is.

    Every rank may ask: only the main process logs.
    """
    if unusable.entries:
        first = min(unusable.entries, key=lambda entry: entry.position or 0)
        num, total = len(unusable.entries), count(unusable.num_samples, "image")
        name = printable(f"{first.shard}/{first.key}")
        what = f"{num:,} of {total} cannot be used, such as {name}"
        logger.warning("%s: %s: %s", unusable.split, what, first.reason)


def name_once(
    file: JsonLines | None, step: int, entries: Iterable[LedgerEntry], split: str | None = None
) -> None:
    """Name what is not named yet; `file` as in `BadSamples.write`.

    Args:
        file: The ledger.
        step: At which it was found.
        entries: Damaged shards, or samples of a split that is measured again and again.
        split: The key of that split.
    """
    if file is None:
        return
    known = {_identity(line) for line in read_records(file.path)}
    about = {} if split is None else {"split": split}
    lines = [{"step": step, **entry._asdict(), **about} for entry in entries]
    new = [line for line in lines if _identity(line) not in known]
    for line in new:
        file.write(line)
    for line in new[:_MAX_SAID] if split else []:
        name = printable(f"{line['shard']}/{line['key']}")
        logger.warning("not used of %s: %s: %s", split, name, line["reason"])
    if split and len(new) > _MAX_SAID:
        logger.warning("and %d more, named in %s", len(new) - _MAX_SAID, file.path)


def _identity(line: dict[str, Any]) -> tuple[str | None, ...]:
    return line.get("split"), line["shard"], line["key"], line["reason"]


def _by_place(line: tuple[int, LedgerEntry]) -> tuple[int, int, str]:
    step, entry = line
    return step, -1 if entry.position is None else entry.position, entry.shard
