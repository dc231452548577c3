"""Learning visual words from a run's first images."""

import logging
from typing import NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor

from data.batch import LedgerEntry
from data.settings import RunStopped, UserError
from data.stream import Share, TrainingStream
from data.text import count, printable
from pretrain.objective.pixels import to_patches
from pretrain.objective.targets import Target
from pretrain.objective.words import NUM_IMAGES, Words, fit
from pretrain.ranks import on_main

_logger = logging.getLogger(__name__)


_BATCH = 64  # images; not the run's own, or bad images would count by it


def learn_words(accelerator: Accelerator, target: Target, stream: object) -> None:
    """Let a target of words learn them; every other kind has nothing to learn.

    Args:
        accelerator: What `start` gave; its main process alone reads and computes.
        target: A model's.
        stream: The run's; it is left as it is.

    Raises:
        RunStopped: There are fewer patches than words, since images cannot be used.
        UserError: There are fewer although they can.
    """
    if not isinstance(target, Words):
        return
    assert isinstance(stream, TrainingStream), "pretrain.config refuses data.read=sequential"
    target.load(on_main(accelerator, lambda: _learn(target, stream)))


def _learn(target: Words, stream: TrainingStream) -> dict[str, Tensor]:
    images, bad = first_images(stream, NUM_IMAGES)
    patches_per_image = to_patches(images[:1], target.patch).shape[1]
    if len(images) * patches_per_image < target.num_classes:
        _refuse(target, patches_per_image, len(images), bad)
    _logger.info(
        "learning %d visual words from the first %d images", target.num_classes, len(images)
    )
    return fit_to_images(target, images, stream.samples.order.seed)


def fit_to_images(target: Words, images: Tensor, seed: int) -> dict[str, Tensor]:
    """Learn words from the patches of images, uint8 (B, C, H, W), as `words.fit` returns them."""
    patches = to_patches(images, target.patch).flatten(2).flatten(0, 1)  # uint8 (n, V)
    return fit(patches, target.num_classes, target.num_components, seed)


def _refuse(
    target: Words, patches_per_image: int, num_good: int, bad: list[LedgerEntry]
) -> NoReturn:
    """Say why there are too few patches: there are few images, or few that can be used."""
    total, words = num_good + len(bad), f"target.num_words={target.num_classes}"
    if bad and total * patches_per_image >= target.num_classes:
        first = bad[0]
        raise RunStopped(
            f"{len(bad):,} of the first {count(total, 'training image')} cannot be used, such as "
            f"{printable(f'{first.shard}/{first.key}')}: {first.reason}; so there are too few "
            f"patches for {words}: mend the images",
            is_agreed=True,
        )
    raise UserError(
        f"{words} is more than the {count(num_good * patches_per_image, 'patch')} of the first "
        f"{count(num_good, 'usable training image')}; lower it"
    )


def first_images(stream: TrainingStream, num_images: int) -> tuple[Tensor, list[LedgerEntry]]:
    """Read the first images of a run's first epoch, of all its ranks.

    Returns:
        uint8 (B, C, H, W), and those among them that cannot be used.
    """
    alone = TrainingStream(stream.samples, _BATCH, Share(0, 1, _BATCH), stream.workers)
    num_steps = min(-(-num_images // _BATCH), alone.steps_per_epoch)
    batches = [batch for [batch] in alone.steps(0, num_steps)]
    images = [batch.tensors["image"].cpu()[batch.tensors["weight"] > 0] for batch in batches]
    return torch.cat(images)[:num_images], [entry for batch in batches for entry in batch.bad]
