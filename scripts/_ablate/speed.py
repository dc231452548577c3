"""Equal wall time: how many steps of a row fit, by a short run that is thrown away.

The learning rate's schedule must know its number of steps beforehand, so it is measured: the row's
own run, for some seconds of training; its first steps are left out. What was measured is kept in
the row's folder, so that its other seeds and a resume have the same number.
"""

import math
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.records.logs import read_records
from pretrain.training.config import OptimConfig
from scripts._ablate.jobs import (
    LOG,
    RECORD,
    Children,
    Definition,
    JobFailed,
    check_definition,
    read_json,
    write_json,
)
from scripts._ablate.plan import Budget, arguments_of
from scripts._ablate.values import Overrides

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
}


def fitted_steps(
    title: str,
    folder: Path,
    command: Sequence[str],
    optim: OptimConfig,
    budget: Budget,
    definition: Definition,
    children: Children,
) -> Overrides:
    """Return the keys that make a row's training as long as the budget says.

    The linear warm-up keeps its fraction of the steps.

    Args:
        title: The row, for messages.
        folder: Where the measured speed is kept.
        command: The row's pretraining, to which `key=value` may be added.
        optim: The same's, read.
        budget: With minutes.
        definition: What the speed depends on.
        children: Runs it.

    Raises:
        JobFailed: The run ended by itself.
        RunStopped: This process was asked to leave.
        UserError: The folder holds the speed of another definition.
    """
    assert budget.minutes is not None
    folder.mkdir(parents=True, exist_ok=True)
    with children.lock(folder / ".ablation.lock", title):  # another process may have another seed
        check_definition(title, folder, definition)
        kept = read_json(folder / RECORD)
        if kept.get("state") != "finished":
            size = optim.batch_size
            speed = _measure(title, folder, command, size, budget.warmup_seconds, children)
            kept = _kept(speed, budget.minutes, optim) | {"definition": definition}
            write_json(folder / RECORD, kept)
    return {f"optim.{key}": kept[key] for key in ("steps", "warmup_steps")}


def _kept(speed: float, minutes: float, optim: OptimConfig) -> dict[str, Any]:
    steps = max(1, round(speed * minutes * 60 / optim.batch_size))
    return {
        "state": "finished",
        "minutes": minutes,
        "images_per_second": speed,
        "steps": steps,
        "warmup_steps": round(steps * optim.warmup_steps / optim.steps),
    }


def _measure(
    title: str,
    folder: Path,
    command: Sequence[str],
    batch_size: int,
    seconds: float,
    children: Children,
) -> float:
    """Run some steps, then as many as make so many seconds; return images a second.

    By the median step, so that a row is not the slower for what another program did meanwhile.
    """
    print(f"{title}: measuring its speed for {seconds:g} s", flush=True)
    steps = _FIRST
    while True:
        taken = _seconds(title, folder, [*command, f"optim.steps={steps}"], batch_size, children)
        step = statistics.median(taken)
        if sum(taken) >= seconds or steps > _FIRST:
            return batch_size / step
        steps = max(_FIRST + 1, _LEFT_OUT + math.ceil(seconds / step))


def _seconds(
    title: str, folder: Path, command: list[str], batch_size: int, children: Children
) -> list[float]:
    """Run; return the seconds of each of its steps, without the first ones."""
    run = folder / "run"
    if run.is_dir():  # of a start that was killed; it may still go on
        with children.lock(run / ".lock", title):
            shutil.rmtree(run)
    alone = [*arguments_of(None, _ALONE), "optim.warmup_steps=0", f"run.dir={run}"]
    problem = children.run([*command, *alone], folder / LOG)
    if problem is not None:
        raise JobFailed(problem)
    records = read_records(run / "metrics.jsonl")[_LEFT_OUT:]
    shutil.rmtree(run)
    return [batch_size / record["speed/images_per_second"] for record in records]
