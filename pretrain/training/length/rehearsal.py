"""How many steps fit into `run.minutes`: a copy of the run takes some first, and is thrown away.

The learning rate of a step depends on how many there are, so the number is fixed before the first
and written into the run's record; a resume reads it there. The copy leaves the model, the order,
the generators and the files of the run as they were.
"""

import copy
import logging
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from data.sequential.stream import SequentialStream
from data.settings import UserError, require
from data.stream import TrainingStream
from data.text import count
from pretrain.ranks import on_main
from pretrain.training.claim import write_record
from pretrain.training.config import RunConfig
from pretrain.training.contract import Evaluator
from pretrain.training.trainer import Trainer

logger = logging.getLogger(__name__)
Config = TypeVar("Config")

_ENDLESS = 10**9  # steps
_LEFT_OUT = 3  # first steps: memory is allocated, the loader's first batches wait for images
_PART = 0.05  # of the minutes that are measured
_SECONDS = 1.0, 30.0  # measured at least and at most
_FEWEST = 3  # steps measured
_SAFETY = 0.98  # of the time is filled


@dataclass(frozen=True)
class Costs:
    """Seconds that a run takes.

    Attributes:
        start: Until the loop is at its speed.
        step: Of a step.
        measures: Of each evaluator, and the steps between; 0: only at the end.
        checkpoint: Of a checkpoint.
    """

    start: float
    step: float
    measures: tuple[tuple[float, int], ...]
    checkpoint: float

    def total(self, steps: int, run: RunConfig) -> float:
        """Return the seconds of so many steps, with all that comes between and after them."""
        own = self.start + steps * self.step
        own += sum(cost * _times(steps, every) for cost, every in self.measures)
        number = _times(steps, run.checkpoint_every)
        if run.checkpoint_minutes:
            number += int(own / 60 / run.checkpoint_minutes)
        return own + number * self.checkpoint

    def steps_within(self, seconds: float, run: RunConfig) -> int:
        """Return the most steps that fit; 0 where not even one does."""
        fewest, most = 0, 1 + int(seconds / self.step)
        while fewest < most:
            middle = (fewest + most + 1) // 2
            if self.total(middle, run) <= seconds:
                fewest = middle
            else:
                most = middle - 1
        return fewest


def _times(steps: int, every: int) -> int:
    """Return how often something is due: every so many steps, and at the end."""
    return steps // every + (steps % every > 0) if every else 1


def fit_minutes(
    accelerator: Accelerator,
    config: Config,
    model: Any,
    stream: TrainingStream | SequentialStream,
    evaluators: Sequence[Evaluator],
    begun: float,
) -> Config:
    """Fill in the steps of `run.minutes`, and write them into the run's record.

    Args:
        accelerator: What `start` gave.
        config: The run's, whose folder is claimed.
        model: An `Objective` as it begins.
        stream: The training samples of this rank.
        evaluators: What is measured in between.
        begun: When the run's minutes began, by `time.monotonic`.

    Raises:
        UserError: Not one step fits, or the stream cannot be read twice.
    """
    whole: Any = config
    run, minutes = whole.run, whole.run.minutes
    if minutes is None or whole.optim.steps is not None:
        return config
    if isinstance(stream, SequentialStream):
        text = "reads some images twice, which data.read=sequential cannot; give optim.steps"
        raise UserError(f"run.minutes={minutes:g} {text}")
    logger.info("run.minutes=%g: measuring how long a step takes", minutes)
    costs = _measure(accelerator, whole, model, stream, evaluators)
    left = _SAFETY * (60 * minutes - (time.monotonic() - begun))
    steps = _of_main(accelerator, costs.steps_within(left, run))
    spent = f"{time.monotonic() - begun:.0f} s passed before the first step, "
    require(
        steps > 0,
        f"run.minutes={minutes:g} is too short for a step: {spent}{_said(costs)}; give more "
        "minutes, or optim.steps",
    )
    whole = replace(whole, optim=replace(whole.optim, steps=steps))
    on_main(accelerator, lambda: write_record(whole))
    epochs = count(steps / stream.steps_per_epoch, "epoch", "epochs")
    logger.info(
        "run.minutes=%g: %s, so optim.steps=%s (%s)", minutes, _said(costs), f"{steps:,}", epochs
    )
    return whole


def _said(costs: Costs) -> str:
    measure = sum(seconds for seconds, _ in costs.measures)
    parts = {"a step": costs.step, "a validation": measure, "a checkpoint": costs.checkpoint}
    return ", ".join(f"{value:.2g} s {name}" for name, value in parts.items() if value >= 0.005)


def _of_main(accelerator: Accelerator, value: int) -> int:
    """Return the main process's value; one clock decides for all ranks."""
    values = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(values)
    return values[0]


# ---------------------------------------------------------------- the copy


def _measure(
    accelerator: Accelerator,
    config: Any,
    model: Any,
    stream: TrainingStream,
    evaluators: Sequence[Evaluator],
) -> Costs:
    folder = Path(config.run.dir, ".rehearsal")
    run = replace(config.run, dir=str(folder), trackers=())
    optim = replace(config.optim, steps=_ENDLESS, warmup_steps=0, warmup_ratio=None)
    least, most = _SECONDS
    seconds = min(most, max(least, 60 * _PART * config.run.minutes))
    with _thrown_away(accelerator, folder):
        begin = time.monotonic()
        trainer = Trainer(accelerator, run, optim, copy.deepcopy(model), stream)
        batches: Any = stream.steps(0, _ENDLESS)
        with closing(batches):

            def take() -> None:
                trainer.take(next(batches), is_waited_for=True)

            first = [_timed(take) for _ in range(_LEFT_OUT)]
            start = time.monotonic() - begin
            number = _of_main(accelerator, max(_FEWEST, round(seconds / first[-1])))
            step = sum(_timed(take) for _ in range(number)) / number
        best = trainer.training.best
        measures = tuple((_timed(e.measure, best), e.every) for e in evaluators)
        checkpoint = _timed(_save, accelerator, trainer, folder)
    return Costs(max(0.0, start - _LEFT_OUT * step), step, measures, checkpoint)


@contextmanager
def _thrown_away(accelerator: Accelerator, folder: Path) -> Generator[None]:
    """Leave the generators, accelerate's lists and the disk as they were."""
    numbers = np.random.get_state()  # noqa: NPY002 - timm draws from it
    scaler = accelerator.scaler
    scale = scaler.state_dict() if scaler else None
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(numbers)  # noqa: NPY002
        accelerator.free_memory()
        if scaler is not None and scale is not None:
            scaler.load_state_dict(scale)
        shutil.rmtree(folder, ignore_errors=True)


def _timed(work: Callable[..., object], *arguments: object) -> float:
    begin = time.monotonic()
    work(*arguments)
    return time.monotonic() - begin


def _save(accelerator: Accelerator, trainer: Trainer, folder: Path) -> None:
    tensors = trainer.training.collect()
    if accelerator.is_main_process:
        folder.mkdir(exist_ok=True)
        trainer.training.save(folder, {}, tensors)
