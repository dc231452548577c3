"""Our own training step, in both forms, and timm's bare encoder: steps on a batch that is ready."""

from dataclasses import replace
from itertools import count
from typing import Any, cast

import torch

from data.batch import Batch
from pretrain.objective.config import CorruptionConfig, DecoderConfig, TargetConfig
from pretrain.objective.model import MaskedPatchModel
from pretrain.training.config import OptimConfig
from pretrain.training.launch import start
from pretrain.training.trainer import Trainer
from scripts._benchmark.subject import Step, Subject

ENDLESS = 1_000_000_000  # steps
MASKFREE = CorruptionConfig(ratio=0.75, mask_ratio=1.0, random_ratio=0.0)


def make_model(subject: Subject, *, sees_masked: bool = True) -> MaskedPatchModel:
    """Build our model with all defaults, or mask-free: three quarters masked, the light decoder.

    Raises:
        UserError: The subject's encoder cannot be used.
    """
    encoder = subject.make_encoder(sees_masked=sees_masked)
    if sees_masked:
        return MaskedPatchModel(encoder, CorruptionConfig(), TargetConfig())
    return MaskedPatchModel(encoder, MASKFREE, TargetConfig(), DecoderConfig())


def step(subject: Subject) -> Step:
    """Make our whole step: from uint8 images to new weights, with metrics and the clip."""
    return _whole_step(subject, sees_masked=True)


def maskfree(subject: Subject) -> Step:
    """Make the same of a mask-free encoder and its light decoder."""
    return _whole_step(subject, sees_masked=False)


def selective(subject: Subject) -> Step:
    """Make the whole step with `run.grad_checkpointing=selective`."""
    return _whole_step(subject, sees_masked=True, grad_checkpointing="selective")


def _whole_step(subject: Subject, *, sees_masked: bool, **keys: Any) -> Step:
    run = replace(subject.run_config(), **keys)
    accelerator = start(run)
    optim = OptimConfig(batch_size=subject.batch_size, steps=ENDLESS)
    model = make_model(subject, sees_masked=sees_masked)
    trainer = Trainer(accelerator, run, optim, model, cast(Any, None))  # it is given its batch
    return bare_step(trainer, random_batch(subject))


def bare_step(trainer: Trainer, batch: Batch) -> Step:
    """Return a trainer's step on one batch, again and again, as its loop takes it."""
    batch = _pinned(batch)
    numbers = count()

    def take() -> None:
        number = next(numbers)
        trainer._step(number, [batch])
        trainer._settle(number)

    return take


def timm(subject: Subject) -> Step:
    """Make the baseline: timm's encoder as it comes, forward and backward on normalised floats.

    Without loss, optimizer or uint8 input.
    """
    device = start(subject.run_config()).device
    model = subject.make_bare().to(device)
    images = torch.randn(subject.batch_size, 3, subject.side, subject.side, device=device)
    forward: Any = cast(Any, model).forward_features
    if subject.compile:
        forward = torch.compile(forward)

    def take() -> None:
        with torch.autocast(device.type, torch.bfloat16, subject.precision == "bf16"):
            tokens = forward(images)
        tokens.float().mean().backward()
        model.zero_grad()

    return take


def random_batch(subject: Subject) -> Batch:
    """Make a batch of random pixels, all of weight 1."""
    size, side = subject.batch_size, subject.side
    tensors = {
        "image": torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8),
        "weight": torch.ones(size),
        "random_key": torch.arange(size),
    }
    return Batch(tensors, [], [])


def _pinned(batch: Batch) -> Batch:
    """Put a batch where the loader would have put it."""
    if not torch.cuda.is_available():
        return batch
    return batch._replace(tensors={k: tensor.pin_memory() for k, tensor in batch.tensors.items()})
