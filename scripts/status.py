"""Say how a run is doing: how far it is, what it has learnt, how fast, and whether it lives.

    python scripts/status.py RUN [RUN ...]

RUN is the folder of a pretraining or fine-tuning run, on this machine or a shared disk. Nothing in
it is changed. `scripts/report.py RUN --watch` keeps a page of it up to date.

Status 0: each run lives or has finished. 1: one has ended before its last step.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.settings import OneLineParser, require, require_utf8, run_entry_point
from data.storage.locations import user_path
from data.text import count, duration, percent
from pretrain.configuration.layers import read_yaml
from pretrain.records import words
from pretrain.records.checkpoint import newest_by_name, step_of
from pretrain.records.lock import FINISHED, Holder, read_holder
from pretrain.records.logs import read_records


def main(arguments: list[str]) -> None:
    """Run `python scripts/status.py ARGUMENTS`."""
    require_utf8(arguments)
    parser = OneLineParser(description=__doc__)
    parser.add_argument("runs", type=user_path, metavar="RUN", nargs="+", help="folder of a run")
    options: argparse.Namespace = parser.parse_args(arguments)
    are_well = [_tell(run) for run in options.runs]
    if not all(are_well):
        sys.exit(1)


def _tell(run: Path) -> bool:
    """Print how a run is doing; return whether it lives or has finished."""
    path, log = run / "config.yaml", run / "metrics.jsonl"
    require(path.is_file(), f"{run} is no run: it has no config.yaml")
    optim = read_yaml(str(path)).get("optim", {})
    records = read_records(log) if log.is_file() else []
    last: dict[str, Any] = records[-1] if records else {"step": 0}
    holder = read_holder(run) or Holder(is_alive=False, text="")
    total = _total(optim, last)
    is_finished = not holder.is_alive and (last["step"] == total or holder.text == FINISHED)
    newest = newest_by_name(run)
    reached = max(last["step"], step_of(newest) if newest is not None else 0)
    print(f"{run}: {_how_far(reached, total)}, {_how(holder, is_finished)}")
    for split, name in (("train", "training"), ("val", "validation"), ("probe", "probe")):
        record = next((r for r in reversed(records) if words.standing(r, split)), None)
        if record is not None:
            texts = ", ".join(" ".join(text.split()) for text in words.standing(record, split))
            print(f"  {name}: {texts.replace('val ', '')} (step {record['step']:,.0f})")
    baseline = words.baseline_of(last)
    if baseline is not None:
        print(f"  baseline: the loss of {baseline[0]}")
    if records:
        print(f"  speed: {', '.join(' '.join(text.split()) for text in words.speed(last))}")
        age = duration(max(0, time.time() - log.stat().st_mtime))
        left = _left(last, total, optim) if holder.is_alive else None
        print(f"  last record: {age} ago" + (f"; about {left} left" if left else ""))
    _tell_kept(run, newest)
    return holder.is_alive or is_finished


def _total(optim: dict[str, Any], last: dict[str, Any]) -> int | None:
    """Return the steps of the whole run; None where its configuration does not tell them."""
    if optim.get("steps"):
        return int(optim["steps"])
    if optim.get("epochs") and last.get("epoch"):
        return round(optim["epochs"] * last["step"] / last["epoch"])
    return None


def _how_far(step: float, total: int | None) -> str:
    if total is None:
        return f"step {step:,.0f}"
    return f"step {step:,.0f} of {total:,} ({percent(step / total)})"


def _how(holder: Holder, is_finished: bool) -> str:
    """Say whether a run lives, or how it ended."""
    if holder.is_alive:
        return f"running as {holder.text or 'another process'}"
    if is_finished:
        return "finished"
    if holder.was_killed:
        return f"killed ({holder.text}); the same command resumes"
    return holder.text or "not running"


def _left(last: dict[str, Any], total: int | None, optim: dict[str, Any]) -> str | None:
    rate = last.get("speed/images_per_second")
    if total is None or not rate or not optim.get("batch_size"):
        return None
    return duration((total - last["step"]) * optim["batch_size"] / rate)


def _tell_kept(run: Path, newest: Path | None) -> None:
    """Name the newest checkpoint, and count what could not be used."""
    bad = run / "bad_samples.jsonl"
    print(f"  kept: {newest if newest is not None else 'no checkpoint yet'}")
    if bad.is_file() and (number := len(read_records(bad))):
        print(f"  not used: {count(number, 'entry', 'entries')} in {bad}")


if __name__ == "__main__":
    run_entry_point(main)
