"""A demo: its steps, each a command that a user would type, and what they gained."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data.commands import CHECKOUT, how_to_type, run_command
from data.text import count


class Step(NamedTuple):
    """A step.

    Attributes:
        title: What it does.
        command: What is typed.
        makes: What it makes, if it is left out where that is there already.
    """

    title: str
    command: str
    makes: Path | None = None


@dataclass(frozen=True)
class Demo:
    """What a demo does and says.

    Attributes:
        shows: The first line: what it shows.
        minutes: How long it takes.
        folder: Below which it writes.
        shards: Where its data lie, and what they are.
        make_shards: Makes them, where they are missing.
        steps: In their order.
        gain: What the figures are of.
        results: Returns the lines of the figures, once all steps are done.
        places: Lines: what lies where.
        following: What the last lines need.
        commands: The last lines: what to type next.
    """

    shows: str
    minutes: int
    folder: Path
    shards: str
    make_shards: Callable[[], None]
    steps: tuple[Step, ...]
    gain: str
    results: Callable[[], list[str]]
    places: tuple[str, ...]
    following: str
    commands: tuple[str, ...]


def show(demo: Demo) -> None:
    """Run all steps and say what was gained; leave with the status of the first that fails."""
    begun = time.monotonic()
    number = len(demo.steps)
    cost = f"{count(number, 'step')}, {demo.minutes} minutes on 2 CPU cores"
    print(f"The demo shows {demo.shows}.\nIt takes {cost}, and writes below {demo.folder}:")
    for place, step in enumerate(demo.steps, start=1):
        print(f"  {place}. {step.title}")
    print(f"\n== The shards, {demo.shards}")
    demo.make_shards()
    for place, step in enumerate(demo.steps, start=1):
        print(f"\n== {place}/{number} {step.title}\n$ {step.command}", flush=True)
        if step.makes is not None and step.makes.exists():
            print(f"{step.makes} is there already")
            continue
        _run(step.command)
    summarise(demo, time.monotonic() - begun)


def _run(command: str) -> None:
    """Run a command with this interpreter's own programs."""
    program, *arguments = command.split()
    status = run_command([str(Path(sys.executable).with_name(program)), *arguments])
    if status:
        print(f"failed with status {status}: {command}", file=sys.stderr)
        sys.exit(status)


def summarise(demo: Demo, seconds: float) -> None:
    """Say what was gained, where it lies and how to go on."""
    print(f"\n== Done in {seconds / 60:.1f} minutes. {demo.gain}")
    for line in demo.results():
        print(line)
    print("\nWhere it lies:")
    for line in demo.places:
        print(f"  {line}")
    print(f"\nNext, with {demo.following}:")
    for line in (*_activation(), *demo.commands):
        print(f"  {line}")


def _activation() -> list[str]:
    """Return the line without which the shell does not find `mpp`; none where it does."""
    script = Path(sys.executable).with_name("activate")
    if how_to_type("pretrain").startswith("mpp") or not script.exists():
        return []
    here = script.relative_to(CHECKOUT) if script.is_relative_to(CHECKOUT) else script
    return [f". {here}"]


def read_result(path: Path) -> dict[str, Any]:
    """Read a JSON file."""
    return json.loads(path.read_text())


def read_last_record(folder: Path) -> dict[str, float]:
    """Read the last record of a run's metrics.jsonl."""
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
