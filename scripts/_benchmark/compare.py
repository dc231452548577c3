"""Ratios measured now against those recorded: which fell by more than the spread."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.settings import UserError, require

_UNTOLD = ("rounds", "shards", "steps", "checkpoint_every")  # settings that may differ
_MACHINE = ("cpu", "cores", "gpu")


@dataclass(frozen=True)
class Change:
    """One ratio in two records.

    Attributes:
        name: Of the ratio.
        recorded: Its spread then.
        new: Its spread now.
        is_cost: Whether lower is better.
    """

    name: str
    recorded: dict[str, Any]
    new: dict[str, Any]
    is_cost: bool

    @property
    def has_fallen(self) -> bool:
        """Whether all rounds of now are worse than all of then."""
        if self.is_cost:
            return self.new["min"] > self.recorded["max"]
        return self.new["max"] < self.recorded["min"]

    @property
    def has_risen(self) -> bool:
        """Whether they are all better."""
        return Change(self.name, self.new, self.recorded, self.is_cost).has_fallen


def compare(recorded: Path, new: list[Path]) -> tuple[str, int]:
    """Compare records of the same benchmarks.

    Args:
        recorded: A record that `--json` wrote, or a folder of them.
        new: The like, measured now. A folder's records are compared to those of the same name.

    Returns:
        The tables, and how many ratios fell.

    Raises:
        UserError: There is nothing to compare, or a file is no record.
    """
    texts: list[str] = []
    num_fallen = 0
    for title, before, after in (pair for path in new for pair in _pairs(recorded, path)):
        text, fallen = f"{title}: not recorded", 0
        if before.is_file():
            text, fallen = _compare(title, read_record(before), read_record(after))
        texts.append(text)
        num_fallen += fallen
    texts.append(f"{num_fallen} fell by more than the spread" if num_fallen else "none fell")
    return "\n\n".join(texts), num_fallen


def _pairs(recorded: Path, new: Path) -> list[tuple[str, Path, Path]]:
    """Return names, and the records to compare, of which a recorded one may be missing."""
    if not recorded.is_dir():
        require(not new.is_dir(), f"{new} is a folder, and {recorded} is none; give two of a kind")
        return [(new.stem, recorded, new)]
    found = sorted(new.glob("*.json")) if new.is_dir() else [new]
    pairs = [(path.stem, recorded / path.name, path) for path in found]
    require(
        any(before.is_file() for _, before, _ in pairs),
        f"no record in {new} has the name of one in {recorded}; name two records to compare them",
    )
    return pairs


def read_record(path: Path) -> dict[str, Any]:
    """Read what `--json` wrote.

    Raises:
        UserError: The file is no such record.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no record that --json wrote: {error}") from error
    is_record = isinstance(record, dict) and {"benchmark", "spread", "machine"} <= record.keys()
    require(is_record, f"{path} is no record of ratios; give one that --json wrote")
    return record


def _compare(title: str, recorded: dict[str, Any], new: dict[str, Any]) -> tuple[str, int]:
    kinds = recorded["benchmark"], new["benchmark"]
    require(
        kinds[0] == kinds[1],
        f"{title}: a record of {kinds[0]} and one of {kinds[1]} have no ratio in common",
    )
    costs = {*recorded.get("lower_is_better", ()), *new.get("lower_is_better", ())}
    before, after = recorded["spread"], new["spread"]
    changes = [Change(n, before[n], after[n], n in costs) for n in before if n in after]
    width = max(28, *(len(name) + 2 for name in [title, *before, *after]))
    lines = [f"{title:{width}}{'recorded (min to max)':>26}{'now (min to max)':>26}"]
    lines += [_line(change, width) for change in changes]
    lines += [f"{name}: only recorded" for name in before if name not in after]
    lines += [f"{name}: only now" for name in after if name not in before]
    lines += _differences("machine", recorded["machine"], new["machine"], _MACHINE)
    settings = recorded["settings"], new["settings"]
    keys = [key for key in settings[1] if key not in _UNTOLD]
    lines += _differences("setting", *settings, keys)
    return "\n".join(lines), sum(change.has_fallen for change in changes)


def _line(change: Change, width: int) -> str:
    said = "  FELL" if change.has_fallen else "  better" if change.has_risen else ""
    kind = "  (lower is better)" if change.is_cost else ""
    values = "".join(f"{_spread(value):>26}" for value in (change.recorded, change.new))
    return f"{change.name:{width}}{values}{said}{kind}"


def _spread(values: dict[str, Any]) -> str:
    return f"{values['median']:.3f} ({values['min']:.3f} to {values['max']:.3f})"


def _differences(
    what: str, recorded: dict[str, Any], new: dict[str, Any], keys: tuple[str, ...] | list[str]
) -> list[str]:
    """Say in a line what differs between where or how both were measured."""
    parts = [
        f"{key} {recorded.get(key)}, now {new.get(key)}"
        for key in keys
        if recorded.get(key) != new.get(key)
    ]
    return [f"{what}: {'; '.join(parts)}; compared all the same"] if parts else []
