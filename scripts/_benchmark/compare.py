"""Compares ratios with the recorded ones: which got worse by more than the spread."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.settings import require
from scripts._benchmark.records import read_record

_MAY_DIFFER = ("rounds", "shards", "steps", "checkpoint_every")  # settings
_MACHINE = ("cpu", "cores", "gpu")


def compare(recorded: Path, new: list[Path]) -> tuple[str, int]:
    """Compare records of the same benchmarks.

    Args:
        recorded: A record that `--json` wrote, or a folder of them.
        new: The like, measured now. A folder's records are compared to those of the same name.

    Returns:
        The tables, and the number of regressions.

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
    texts.append(
        f"{num_fallen} got worse by more than the spread" if num_fallen else "none got worse"
    )
    return "\n\n".join(texts), num_fallen


def _pairs(recorded: Path, new: Path) -> list[tuple[str, Path, Path]]:
    """Return names, and the records to compare, of which a recorded one may be missing."""
    if not recorded.is_dir():
        require(not new.is_dir(), f"{new} is a folder, and {recorded} is none; give two of a kind")
        return [(new.stem, recorded, new)]
    files = sorted(new.glob("*.json")) if new.is_dir() else [new]
    pairs = [(path.stem, recorded / path.name, path) for path in files]
    require(
        any(before.is_file() for _, before, _ in pairs),
        f"no record in {new} has the name of one in {recorded}; name two records to compare them",
    )
    return pairs


def _compare(title: str, recorded: dict[str, Any], new: dict[str, Any]) -> tuple[str, int]:
    kinds = recorded["benchmark"], new["benchmark"]
    require(
        kinds[0] == kinds[1],
        f"{title}: a record of {kinds[0]} and one of {kinds[1]} have no ratio in common",
    )
    costs = {*recorded.get("lower_is_better", ()), *new.get("lower_is_better", ())}
    before, after = recorded["spread"], new["spread"]
    width = max(28, *(len(name) + 2 for name in [title, *before, *after]))
    lines = [f"{title:{width}}{'recorded (min to max)':>26}{'now (min to max)':>26}"]
    num_fallen = 0
    for name in (name for name in before if name in after):
        has_fallen = _is_worse(after[name], before[name], name in costs)
        has_risen = _is_worse(before[name], after[name], name in costs)
        verdict = "  FELL" if has_fallen else "  better" if has_risen else ""
        kind = "  (lower is better)" if name in costs else ""
        lines.append(f"{name:{width}}{_spread(before[name])}{_spread(after[name])}{verdict}{kind}")
        num_fallen += has_fallen
    lines += [f"{name}: only recorded" for name in before if name not in after]
    lines += [f"{name}: only now" for name in after if name not in before]
    lines += _differences("machine", recorded["machine"], new["machine"], _MACHINE)
    settings = recorded["settings"], new["settings"]
    keys = [key for key in settings[1] if key not in _MAY_DIFFER]
    return "\n".join([*lines, *_differences("setting", *settings, keys)]), num_fallen


def _is_worse(values: dict[str, Any], others: dict[str, Any], is_cost: bool) -> bool:
    """Tell whether all rounds are worse than all of the others."""
    if is_cost:
        return values["min"] > others["max"]
    return values["max"] < others["min"]


def _spread(values: dict[str, Any]) -> str:
    text = f"{values['median']:.3f} ({values['min']:.3f} to {values['max']:.3f})"
    return f"{text:>26}"


def _differences(
    what: str, recorded: dict[str, Any], new: dict[str, Any], keys: Sequence[str]
) -> list[str]:
    """Say in a line what differs between where or how both were measured."""
    parts = [
        f"{key} {recorded.get(key)}, now {new.get(key)}"
        for key in keys
        if recorded.get(key) != new.get(key)
    ]
    return [f"{what}: {'; '.join(parts)}; compared all the same"] if parts else []
