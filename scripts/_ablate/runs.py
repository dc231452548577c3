"""The runs of an ablation: of each row and seed a pretraining, then the measures of its encoder.

DIR/ROW/seed-0/                 the pretraining's run
DIR/ROW/seed-0/MEASURE/         a measure's result
DIR/ROW/speed/                  equal training time: how many steps fit
"""

import json
import math
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from data.commands import CommandFailed, run_logged
from data.settings import UserError, require
from data.shards import atomic_write
from data.storage.locations import take_lock
from pretrain.configuration.layers import read_layers
from pretrain.records.logs import read_records
from pretrain.training.config import OptimConfig
from scripts._ablate.plan import ROOT, Command, Plan, Row, arguments_of

_LOCK = ".ablation.lock"  # in a row's folder
_FEATURES = "features"
_SECONDS = 20.0  # of training measure a speed, or all of a budget that has less
_LEFT_OUT = 5  # first steps: memory is allocated, the loader's first batches wait for images
_FIRST = 8  # steps of the first run, which tells how many the second needs
_ALONE = {  # nothing but steps
    "run.log_every": 1,
    "run.eval_every": 0,
    "run.checkpoint_every": 0,
    "run.checkpoint_minutes": 0,
    "run.trackers": [],
    "data.val_shards": None,
    "probe.train": None,
    "optim.warmup_steps": 0,
}


@dataclass(frozen=True)
class Job:
    """One command, in a folder of its own.

    Attributes:
        folder: Of its result, its output.log and its record.
        command: What it runs.
        own: Keys of this job alone.
        minutes: The time of training that its steps are to fit; None: they are given.
    """

    folder: Path
    command: Command
    own: dict[str, Any]
    minutes: float | None = None

    @property
    def state(self) -> str:
        """One of missing, unfinished, finished, or `failed: ` and why.

        What ended with other keys is unfinished: started again, a run refuses those that would
        change its result, and a measure is made anew.
        """
        default = "unfinished" if self.folder.is_dir() else "missing"
        return self._read(self.folder).get("state", default)

    def run(self) -> None:
        """Run it unless it is finished, and keep how it ended.

        Raises:
            CommandFailed: It ended badly.
            RunStopped: A signal came.
        """
        if self.state == "finished":
            return
        steps = {} if self.minutes is None else self._fitted_steps(self.minutes)
        print(self.folder, flush=True)
        try:
            self._start(self.folder, self.own | steps)
        except CommandFailed as error:
            self._write(self.folder, {"state": f"failed: {error}"})
            raise
        self._write(self.folder, {"state": "finished"})

    def _start(self, folder: Path, keys: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path, *subcommand = self.command.script.command.split()
        command = [str(ROOT / path), *subcommand, *self.command.arguments]
        run_logged([sys.executable, *command, *arguments_of(keys)], folder / "output.log")

    @property
    def _definition(self) -> list[Any]:
        """All that its result depends on, but for its own keys."""
        return [self.command.script.command, self.minutes, *read_layers(self.command.arguments)]

    def _read(self, folder: Path) -> dict[str, Any]:
        """Return what is known of a folder; nothing if it is of another definition."""
        path = folder / "ablation.json"
        try:
            record = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is unreadable: {error}; delete it to run this anew") from error
        return record if record.get("definition") == self._definition else {}

    def _write(self, folder: Path, content: dict[str, Any]) -> None:
        with atomic_write(folder / "ablation.json") as file:
            file.write(
                json.dumps({**content, "definition": self._definition}, indent=1).encode() + b"\n"
            )

    # ---- equal training time

    def _fitted_steps(self, minutes: float) -> dict[str, Any]:
        """Return the steps that fit, and as large a part of them for the warm-up as the plan has.

        The learning rate's schedule must know its number of steps beforehand, so the row's speed is
        measured by a short run, and kept for its other seeds and for a resume.
        """
        folder, optim = self.folder.parent / "speed", self.command.load().optim
        kept = self._read(folder)
        if not kept:
            require(
                optim.batch_size is not None,
                f"row {self.command.name}: budget.minutes needs optim.batch_size; set it in common",
            )
            speed = self._measure_speed(folder, optim.num_images, min(_SECONDS, 60 * minutes))
            steps = max(1, round(speed * minutes * 60 / optim.num_images))
            warmup_steps = _warmup_steps(optim, steps)
            kept = {"images_per_second": speed, "steps": steps, "warmup_steps": warmup_steps}
            self._write(folder, kept)
        return {f"optim.{key}": kept[key] for key in ("steps", "warmup_steps")}

    def _measure_speed(self, folder: Path, batch_size: int, seconds: float) -> float:
        """Return images a second, by the median step: other programs may hold some of them up."""
        print(f"{folder}: measuring the speed for {seconds:g} s", flush=True)
        taken = self._time(folder, _FIRST, batch_size)
        if sum(taken) < seconds:
            steps = _LEFT_OUT + math.ceil(seconds / statistics.median(taken))
            taken = self._time(folder, max(_FIRST, steps), batch_size)
        return batch_size / statistics.median(taken)

    def _time(self, folder: Path, steps: int, batch_size: int) -> list[float]:
        """Run some steps; return the seconds of each, without the first ones."""
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)  # of a start that was killed
        self._start(folder, self.own | _ALONE | {"optim.steps": steps, "run.dir": str(run)})
        records = read_records(run / "metrics.jsonl")[_LEFT_OUT:]
        shutil.rmtree(run)
        return [batch_size / record["speed/images_per_second"] for record in records]


def _warmup_steps(optim: OptimConfig, steps: int) -> int:
    """Return as large a part of other steps for the warm-up."""
    if None in (optim.steps, optim.warmup_steps):
        return replace(optim, steps=steps).num_warmup_steps
    return round(steps * optim.num_warmup_steps / optim.num_steps)


class Task(NamedTuple):
    """A row with a seed: its pretraining, then the measures of its encoder by their names."""

    row: Row
    seed: int
    pretraining: Job
    measures: dict[str, Job]

    @property
    def state(self) -> str:
        """One of missing, unfinished, finished, or `failed: ` and why."""
        states = [job.state for job in (self.pretraining, *self.measures.values())]
        failed = [state for state in states if state.startswith("failed")]
        return failed[0] if failed else states[0] if len(set(states)) == 1 else "unfinished"

    def run(self) -> None:
        """Run what is not finished, up to the first job that ends badly, as `Job.run` does."""
        for job in (self.pretraining, *self.measures.values()):
            job.run()
        shutil.rmtree(self.pretraining.folder / _FEATURES, ignore_errors=True)  # large; unused now


def list_tasks(plan: Plan, seeds: Iterable[int], output: Path) -> list[Task]:
    """Return all rows with all seeds."""
    tasks: list[Task] = []
    for row, seed in product(plan.rows.values(), seeds):
        folder = output / row.name / f"seed-{seed}"
        minutes = None if row.is_untrained else plan.minutes
        pretraining = Job(folder, row, {"run.seed": seed, "run.dir": str(folder)}, minutes)
        measures: dict[str, Job] = {}
        for measure in plan.measures:
            own = {"encoder.init": str(folder), measure.script.folder: str(folder / measure.name)}
            if measure.script.features is None:
                own["run.seed"] = str(seed)
            else:  # measures that read the same features share them
                own[measure.script.features] = str(folder / _FEATURES)
            measures[measure.name] = Job(folder / measure.name, measure, own)
        tasks.append(Task(row, seed, pretraining, measures))
    return tasks


def run_tasks(tasks: Sequence[Task], report: Callable[[], object]) -> int:
    """Run what is not finished, but for rows that another process is at, and report after each.

    Returns:
        How many failed; each of them is printed.

    Raises:
        RunStopped: A signal came.
    """
    failures = 0
    for task in tasks:
        folder = task.pretraining.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = take_lock(folder.parent / _LOCK)
        except BlockingIOError:
            print(f"{folder}: another process is at this row", flush=True)
            continue
        try:
            task.run()
        except CommandFailed as error:
            failures += 1
            print(f"{folder} failed: {error}", file=sys.stderr, flush=True)
        finally:
            os.close(lock)
            report()
    return failures
