"""Equal wall time: how many steps of a row fit, by a short run that is thrown away.

The learning rate's schedule must know its number of steps beforehand, so it is measured: the row's
own run, for some seconds of training; its first steps are left out. What was measured is kept in
the row's folder, so that its other seeds and a resume have the same number.
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.config import PretrainConfig
from pretrain.metrics import read_records
from scripts.ablating.jobs import (
    LOG,
    RECORD,
    Children,
    Definition,
    JobFailed,
    check_definition,
    last_line,
    read_json,
    write_json,
)
from scripts.ablating.plan import Budget, arguments_of
from scripts.ablating.values import Overrides

_LEFT_OUT = 5  # first steps: memory is allocated, the loader's first batches wait for images
_MIN_STEPS = 3
_ALONE = {  # nothing but steps
    "optim.steps": 1_000_000_000,
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
    config: PretrainConfig,
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
        config: The same, read.
        budget: With minutes.
        definition: What the speed depends on.
        children: Runs it.

    Raises:
        JobFailed: The run ended by itself.
        RunStopped: This process was asked to leave.
        UserError: The folder holds the speed of another definition.
    """
    assert budget.minutes is not None
    check_definition(title, folder, definition)
    kept = read_json(folder / RECORD)
    if kept.get("state") != "finished":
        size = config.optim.batch_size
        speed = _measure(title, folder, command, size, budget.warmup_seconds, children)
        kept = _kept(speed, budget.minutes, config) | {"definition": definition}
        write_json(folder / RECORD, kept)
    return {f"optim.{key}": kept[key] for key in ("steps", "warmup_steps")}


def _kept(speed: float, minutes: float, config: PretrainConfig) -> dict[str, Any]:
    optim = config.optim
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
    """Run until steps of so many seconds were seen; return images a second."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOG).unlink(missing_ok=True)
    print(f"{title}: measuring its speed for {seconds:g} s", flush=True)
    alone = [*arguments_of(None, _ALONE), f"run.dir={run}"]
    child = children.start([*command, *alone], folder / LOG)
    try:
        while True:
            children.check()
            steps, elapsed = _seen(run / "metrics.jsonl", batch_size)
            if elapsed >= seconds:
                return steps * batch_size / elapsed
            if child.poll() is not None:
                children.check()
                raise JobFailed(f"status {child.returncode}: {last_line(folder / LOG)}")
            time.sleep(0.2)
    finally:
        children.kill()
        shutil.rmtree(run, ignore_errors=True)


def _seen(path: Path, batch_size: int) -> tuple[int, float]:
    """Return the steps so far, without the first ones, and their seconds."""
    records = read_records(path)[_LEFT_OUT:] if path.is_file() else []
    if len(records) < _MIN_STEPS:
        return 0, 0.0
    return len(records), sum(batch_size / record["speed/images_per_second"] for record in records)
