"""A row with a seed: its pretraining, then its measures, each a job in a folder of its own.

DIR/ROW/seed-0/                 the pretraining's run
DIR/ROW/seed-0/MEASURE/         a measure's result
DIR/ROW/speed/                  equal wall time: how many steps fit
"""

import os
import shutil
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data.storage.locations import take_lock
from pretrain.configuration.load import keys, plain_value
from scripts._ablate.jobs import Children, Definition, Job, check_definition
from scripts._ablate.plan import (
    PRETRAININGS,
    ROOT,
    SCRIPTS,
    Ablation,
    Measure,
    Row,
    arguments_of,
    load_once,
)
from scripts._ablate.speed import fitted_steps

FEATURES = "features"
_SPLITS = ("data.shards", "data.val_shards", "data.train", "data.val")
_NOT_DEFINING = {"run.dir", "run.seed", "encoder.init"}  # nor where a frozen encoder's result goes
_FREE = ("dir", "features", "threads", "batch_size")


@dataclass(frozen=True)
class Task:
    """A row with a seed.

    Attributes:
        ablation: Of which it is a part.
        row: The row.
        seed: Of its pretraining, and of its fine-tuning.
        output: The ablation's folder.
    """

    ablation: Ablation
    row: Row
    seed: int
    output: Path

    @property
    def title(self) -> str:
        """What is said of it."""
        return f"row {self.row.name}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Of its measures; of its pretraining too, if that is its own."""
        return self.output / self.row.name / f"seed-{self.seed}"

    @property
    def run_folder(self) -> Path:
        """Of the pretraining whose encoder is measured."""
        return self.output / self.row.encoder_of / f"seed-{self.seed}"

    def check(self) -> None:
        """Refuse folders that hold another definition.

        Raises:
            UserError: One does; the row and the keys are named.
        """
        check_definition(self.title, self.run_folder, self._pretraining_definition)
        for job in self.measures:
            check_definition(job.title, job.folder, job.definition)

    def run(self, children: Children) -> None:
        """Run what is not finished of it.

        Raises:
            JobFailed: A step of it ended badly.
            RunStopped: This process was asked to leave.
        """
        self._pretraining(children).run(children)
        for job in self.measures:
            job.run(children)
        shutil.rmtree(self.folder / FEATURES, ignore_errors=True)  # large, and read for nothing

    @property
    def lock(self) -> Path:
        """The file whose lock says that a process is at it, or at a row with the same encoder."""
        self.run_folder.mkdir(parents=True, exist_ok=True)
        return self.run_folder / ".ablation.lock"

    @property
    def is_taken(self) -> bool:
        """Whether another process is at it."""
        try:
            os.close(take_lock(self.lock))
        except BlockingIOError:
            return True
        return False

    # ---- its jobs

    def _pretraining(self, children: Children) -> Job:
        title, folder, definition = self.title, self.run_folder, self._pretraining_definition
        command = _command(PRETRAININGS[self.row.script][1], self.row.arguments)
        job = Job(title, folder, command, definition)
        if job.is_finished:
            return job
        if self.ablation.budget.minutes and not self.row.is_untrained:
            command += arguments_of(None, self._fitted(command, children))
        command += [f"run.seed={self.seed}", f"run.dir={folder}"]
        return Job(f"{title}: pretraining", folder, command, definition)

    def _fitted(self, command: list[str], children: Children) -> dict[str, Any]:
        row, definition = self.row, self._pretraining_definition
        folder = self.output / row.encoder_of / "speed"
        optim, budget = row.load().optim, self.ablation.budget
        title = f"row {row.encoder_of}"
        return fitted_steps(title, folder, command, optim, budget, definition, children)

    @cached_property
    def _pretraining_definition(self) -> Definition:
        row, minutes = self.row, self.ablation.budget.minutes
        found = _definition(PRETRAININGS[row.script][0], row.arguments)
        if row.script != "pretrain":
            found["pretraining"] = row.script  # as jobs.check_definition knows
        if minutes and not row.is_untrained:
            # the fraction is what counts of the warm-up
            found["optim.warmup_steps"] /= found.pop("optim.steps")
        return found | {"budget.minutes": None if row.is_untrained else minutes}

    @cached_property
    def measures(self) -> list[Job]:
        """List what is measured of the encoder."""
        return [self._measure(measure) for measure in self.row.measures]

    def _measure(self, measure: Measure) -> Job:
        kind, key = SCRIPTS[measure.script]
        folder = self.folder / measure.name
        arguments = arguments_of(measure.config, measure.overrides)
        definition = {"script": measure.script} | _definition(kind, arguments)
        own = [f"encoder.init={self.run_folder}", f"{key}={folder}"]
        if measure.script == "finetune":
            own.append(f"run.seed={self.seed}")
            script = "finetune/run.py"
        else:  # measures that read the same features share them
            own.append(f"{measure.script}.features={self.folder / FEATURES}")
            script = f"finetune/{measure.script}.py"
        title = f"{self.title}: {measure.name}"
        return Job(title, folder, _command(script, arguments + own), definition)


def _command(script: str, arguments: list[str]) -> list[str]:
    return [sys.executable, str(ROOT / script), *arguments]


def _definition(kind: type[Any], arguments: list[str]) -> Definition:
    """Return the keys that change a result, and their values."""
    config = load_once(kind, tuple(arguments))
    return {
        key.name: plain_value(config, key.name)
        for key in keys(kind)
        if (key.changes_result or key.name in _SPLITS)
        and key.name not in _NOT_DEFINING
        and not (key.name.startswith(("fewshot.", "probe.")) and key.name.endswith(_FREE))
    }
