"""Our own training step as a configuration has it, on a batch that is ready."""

from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch

from data.batch import Batch
from pretrain.config import PretrainConfig
from pretrain.encoder import make_encoder
from pretrain.encoder.facts import image_size
from pretrain.objective.model import MaskedPatchModel
from pretrain.training.launch import start
from pretrain.training.trainer import Trainer
from scripts._benchmark.training.costs import Work

ENDLESS = 1_000_000_000  # steps


def make_model(config: PretrainConfig) -> MaskedPatchModel:
    """Build the model of a configuration.

    Raises:
        UserError: The encoder cannot be used.
    """
    data = config.data
    encoder = make_encoder(config.encoder, data.size, data.mean, data.std, data.channels)
    return MaskedPatchModel(encoder, config.corruption, config.target, config.light_decoder)


def whole_step(config: PretrainConfig) -> Work:
    """Make the trainer's step: from uint8 images to new weights, with metrics and the clip.

    Raises:
        UserError: The encoder cannot be used.
    """
    return step_of(make_model(config), config)


def step_of(model: MaskedPatchModel, config: PretrainConfig) -> Work:
    """Make the same step of a model that is there."""
    optim = replace(config.optim, steps=ENDLESS)
    none = cast(Any, None)  # no stream: it is given its batch
    trainer = Trainer(start(config.run), config.run, optim, model, none)
    encoder = model.encoder
    shape = (optim.num_images, encoder.in_chans, *image_size(encoder))
    return bare_step(trainer, random_batch(shape))


def bare_step(trainer: Trainer, batch: Batch) -> Work:
    """Return a trainer's step on one batch, again and again, as its loop takes it."""
    if torch.cuda.is_available():  # where the loader would have put it
        pinned = {
            key: tensor if tensor.is_cuda else tensor.pin_memory()
            for key, tensor in batch.tensors.items()
        }
        batch = batch._replace(tensors=pinned)
    return partial(trainer.take, [batch])


def random_batch(shape: tuple[int, ...]) -> Batch:
    """Make a batch of random pixels (B, C, H, W), all of weight 1."""
    tensors = {
        "image": torch.randint(0, 256, shape, dtype=torch.uint8),
        "weight": torch.ones(shape[0]),
        "random_key": torch.arange(shape[0]),
    }
    return Batch(tensors, [], [])
