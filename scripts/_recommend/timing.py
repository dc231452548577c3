"""A few seconds of training as a run would go, in a process of its own: its speed and memory."""

import logging
import multiprocessing
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, cast

import torch
from accelerate import Accelerator

from data.batch import Batch
from data.index.open import open_manifest
from data.samples import Samples
from data.settings import RunStopped, memory_errors
from data.stream import Share, TrainingStream
from pretrain.config import PretrainConfig
from pretrain.encoder import make_encoder
from pretrain.encoder.facts import image_size
from pretrain.encoder.recompute import recompute_blocks
from pretrain.encoder.tokens import choose_attention
from pretrain.machine.apart import Apart
from pretrain.machine.held_memory import has_memory_counter, held_memory
from pretrain.objective.learn import fit_to_images
from pretrain.objective.model import MaskedPatchModel
from pretrain.objective.words import NUM_IMAGES, Words
from pretrain.training.launch import start
from pretrain.training.memory import Need, most_images
from pretrain.training.trainer import Trainer
from scripts._recommend.facts import Timing

_LEAST_STEPS = 3
_LAST = 100_000  # step
_END_SECONDS = 2.0  # of a run: the last checkpoint


class DoesNotFit(Exception):  # noqa: N818 - a finding about the machine
    """The model and one image take more memory than is free."""


def time_training(config: PretrainConfig, decode_seconds: float, seconds: float) -> Timing | None:
    """Time a configuration's training; None where it does not fit into memory.

    Args:
        config: With `optim.batch_size` as the share of one process.
        decode_seconds: Of reading one image.
        seconds: Of steps that are timed; three steps at least.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = replace(config.run, dir=folder)
        try:
            with Apart("the timed training", _begin) as process:
                timing = process.call(_time, replace(config, run=run), decode_seconds, seconds)
        except (DoesNotFit, RunStopped):
            return None
        except RuntimeError as error:
            if "ended without an answer" not in str(error):  # the kernel ends who takes too much
                raise
            return None
    if torch.cuda.is_available() or not has_memory_counter():
        return timing
    # a process that was forked has touched little of its libraries' code
    return replace(timing, peak_bytes=timing.peak_bytes + held_memory().code)


def _begin() -> None:
    multiprocessing.set_start_method("fork", force=True)  # of loaders: a server's child is asked


def _time(_: None, config: PretrainConfig, decode_seconds: float, seconds: float) -> Timing:
    logging.disable(logging.WARNING)
    with memory_errors("a smaller encoder"):
        return _measure(config, decode_seconds, seconds)


def _measure(config: PretrainConfig, decode_seconds: float, seconds: float) -> Timing:
    begin = time.perf_counter()
    accelerator = start(config.run)
    data, size = config.data, config.optim.num_images
    encoder = make_encoder(config.encoder, data.size, data.mean, data.std, data.channels)
    model = MaskedPatchModel(encoder, config.corruption, config.target, config.light_decoder)
    micro = _micro_batch(accelerator, config, model)
    manifest = open_manifest(data.shards, "data.shards")
    samples = Samples(
        manifest,
        image_size(encoder),
        seed=config.run.seed,
        crop_area=data.crop_area,
        channels=encoder.in_chans,
    )
    stream = TrainingStream(samples, size, Share(0, 1, micro), data.workers)
    with closing(cast("Generator[list[Batch]]", stream.steps(0, _LAST))) as steps:
        first = next(steps)
        num_learnt = min(NUM_IMAGES, manifest.num_samples)
        _learn(model.target, first[0], num_learnt)
        trainer = Trainer(accelerator, config.run, config.optim, model, stream)
        skipped = 1 + 2 * data.workers * micro // size  # steps whose images were read ahead
        trainer.take(first)
        start_seconds = _clock() - begin + num_learnt * decode_seconds / max(1, data.workers)
        step_seconds, wait_ratio = _take_steps(trainer, steps, skipped, seconds)
    peak = held_memory().peak if has_memory_counter() else 0
    return Timing(step_seconds, wait_ratio, start_seconds + _END_SECONDS, peak, micro)


def _micro_batch(accelerator: Accelerator, config: PretrainConfig, model: Any) -> int:
    """Return how many images of a step fit into a forward pass.

    Raises:
        DoesNotFit: Not one does.
    """
    choose_attention(model, accelerator.device, accelerator.mixed_precision)
    recompute_blocks(model.encoder, config.run.grad_checkpointing)
    size = config.optim.num_images
    need = Need(model, config.run, config.optim, accelerator.device, 1, size)
    number = most_images(need)
    if number is None:
        raise DoesNotFit
    return number


def _learn(target: Any, batch: Batch, num_images: int) -> None:
    """Learn words from as many images as a run does, one batch again and again."""
    assert isinstance(target, Words)
    images = batch.tensors["image"]
    target.load(fit_to_images(target, images[torch.arange(num_images) % len(images)], 0))


def _take_steps(
    trainer: Trainer, steps: Iterator[list[Batch]], skipped: int, seconds: float
) -> tuple[float, float]:
    """Return the seconds of a step, and the share of it that the images were waited for."""
    begin = marked = _clock()
    waited, number = 0.0, 0
    for step, batches in enumerate(steps, start=1):
        waited += _clock() - marked
        trainer.take(batches)
        marked = _clock()
        number += 1
        if step == skipped:
            begin, waited, number = marked, 0.0, 0
        elif number >= _LEAST_STEPS and marked - begin > seconds:
            break
    return (marked - begin) / number, waited / (marked - begin)


def _clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
