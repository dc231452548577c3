"""Speed of a run from shards, with loader processes and checkpoints, against the bare step."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from data.batch import Batch, Request
from data.index.open import open_manifest
from data.resident.images import decode_all
from data.resident.samples import ResidentSamples
from data.samples import Samples
from data.stream import Share, TrainingStream
from pretrain.machine.speed import clock, images_per_second
from pretrain.training.config import RunConfig
from pretrain.training.launch import start
from pretrain.training.trainer import Trainer
from scripts._benchmark.options import Measured, RunOptions
from scripts._benchmark.photographs import shards_or_photographs
from scripts._benchmark.records import Rounds, add_values, make_record, table
from scripts._benchmark.training import processes
from scripts._benchmark.training.costs import MatrixPeak, Work, count_flops
from scripts._benchmark.training.our_step import ENDLESS, bare_step, make_model
from scripts._benchmark.training.subject import Subject

RATIOS = {"run_vs_step": ("run", "step")}
_CHANNELS = 3


def measure(options: RunOptions, folder: Path) -> Measured:
    """Measure a run against its own bare step, or two processes against one.

    Raises:
        UserError: The encoder or the shards cannot be used.
    """
    measured = measure_run if options.processes == 1 else processes.measure_processes
    record = measured(options, shards_or_photographs(options.shards, folder), folder)
    return record, table(record)


def measure_run(
    options: RunOptions,
    shards: list[str],
    folder: Path,
    *,
    has_words: bool = False,
    is_resident: bool = False,
) -> dict[str, Any]:
    """Measure a run as users have it, in turns with its own bare step.

    - `step`: `Trainer._step` on a batch that is ready.
    - `run`: `Trainer.train` of the same trainer: from shards to new weights, with its records and
      checkpoints. Each turn ends with one; it counts by its share of the time from one to the next
      at the default keys, which is longer than a turn. `checkpoint` of `seconds` has it whole.

    The record's `mfu` is as in `step.measure`.

    Args:
        options: What is trained, and how long.
        shards: Read by the run.
        folder: For its files.
        has_words: Train by visual words in place of the paper's objective.
        is_resident: Decode all images before, into the device's memory.
    """
    subject = Subject.of(options)
    make_config = subject.words_config if has_words else subject.pretrain_config
    config = make_config(folder=str(folder / "run"))
    run, optim = config.run, replace(config.optim, steps=ENDLESS)
    size = (subject.side, subject.side)
    accelerator = start(run)
    manifest = open_manifest(shards, "SHARDS")
    make: Callable[..., Samples] = Samples
    if is_resident:
        decoded = decode_all(manifest, _CHANNELS, accelerator.device, options.workers)
        make = partial(ResidentSamples, decoded)
    samples = make(manifest, size, seed=run.seed, crop_area=config.data.crop_area)
    stream = _InterleavedStream(samples, options)
    trainer = _TimedTrainer(accelerator, run, optim, make_model(config), stream)
    stream.step = bare_step(trainer, samples[Request(0, 0, options.batch_size)])
    stream.flops = count_flops(stream.step) / options.batch_size
    stream.num_steps = _steps_of(options, stream.step)
    stream.checkpoints = trainer.checkpoints
    trainer.run = replace(run, checkpoint_every=stream.num_steps)
    trainer.train()
    accelerator.end_training()
    about = {"image_size": subject.side, "checkpoint_every": stream.num_steps}
    record = make_record("run", asdict(options) | about, stream.speeds, RATIOS)
    add_values(record, stream.shares, {})
    add_values(record, stream.checkpoints, {})
    return record


def _steps_of(options: RunOptions, step: Work) -> int:
    """Return how many steps fill a turn."""
    step()
    speed = images_per_second(step, options.batch_size, min(options.seconds, 5.0))
    return max(1, round(options.seconds * speed / options.batch_size))


def steps_between_checkpoints(seconds: float) -> float:
    """Return how many steps of so many seconds the default keys have between two checkpoints."""
    usual = RunConfig()
    return min(usual.checkpoint_every, 60 * usual.checkpoint_minutes / seconds)


class _TimedTrainer(Trainer):
    """A trainer that measures its checkpoints."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.checkpoints = Rounds("seconds")

    def _commit(self, done: int, *, is_last: bool) -> None:
        begin = clock()
        super()._commit(done, is_last=is_last)
        self.checkpoints.add("checkpoint", clock() - begin)


class _InterleavedStream(TrainingStream):
    """The training stream, which measures the run that reads it and lets the bare step take turns.

    A step lasts from the demand for its batch to the next demand, so that all of the run's own work
    is counted. What the workers read ahead during the other's turn is trained on, uncounted.
    """

    step: Work
    flops: float  # of an image
    num_steps: int  # of a turn, and between two checkpoints
    checkpoints: Rounds  # seconds of those that are done

    def __init__(self, samples: Samples, options: RunOptions) -> None:
        share = Share(0, 1, options.batch_size)
        workers = 0 if samples.is_in_memory else options.workers
        super().__init__(samples, options.batch_size, share, workers)
        self.options = options
        self.speeds, self.shares = Rounds(), Rounds("mfu")
        self._matrices = MatrixPeak(Subject.of(options), options.seconds)

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        """Yield the steps of all rounds."""
        source = super().steps(first, last)
        size = self.batch_size
        for _ in range(self.options.rounds):
            peak = self._matrices.measure()
            bare = images_per_second(self.step, size, self.options.seconds)
            for _ in range(1 + 2 * self.workers):  # read ahead
                yield next(source)
            begin = clock()
            for _ in range(self.num_steps):
                yield next(source)
            elapsed = clock() - begin
            checkpoint = self.checkpoints.by_variant["checkpoint"][-1]
            training = (elapsed - checkpoint) / self.num_steps  # seconds a step
            speed = size / (training + checkpoint / steps_between_checkpoints(training))
            for name, value in {"step": bare, "run": speed}.items():
                self.speeds.add(name, value)
                self.shares.add(name, value * self.flops / peak)
