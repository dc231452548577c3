"""Visual words: learnt from a run's first images, before its first step, by k-means.

They are of the training crops that the run would begin with, whatever the number of ranks, so they
follow from the shards and the seed; a checkpoint holds them, and a resume takes its own.

Source: as `pretrain.classes.Words`.
"""

import logging
from typing import NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor

from data.loader import LedgerEntry
from data.settings import RunStopped, UserError
from data.stream import Share, TrainingStream
from data.text import count, printable
from pretrain.classes import Words, nearest_word
from pretrain.pixels import to_patches
from pretrain.ranks import on_main
from pretrain.targets import Target

_logger = logging.getLogger(__name__)

NUM_IMAGES, NUM_PATCHES = 1_024, 65_536  # that are looked at, at most
_NUM_ROUNDS = 25  # of k-means
_FLOOR = 0.01  # of the largest variance, added to all: what is next to nothing is not blown up
_BLOCK = 4_096  # patches whose distances are in memory at a time
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
    patches = to_patches(images, target.patch).flatten(2).flatten(0, 1)  # uint8 (n, V)
    num_words = target.num_classes
    if len(patches) < num_words:
        _refuse(target, to_patches(images, target.patch).shape[1], len(images), bad)
    _logger.info("learning %d visual words from the first %d images", num_words, len(images))
    seed = stream.samples.order.seed
    return fit(patches, num_words, target.num_components, seed)


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
            f"patches for {words}: mend the shards",
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
    images = [batch.tensors["image"][batch.tensors["weight"] > 0] for batch in batches]
    return torch.cat(images)[:num_images], [entry for batch in batches for entry in batch.bad]


def fit(patches: Tensor, num_words: int, num_components: int, seed: int) -> dict[str, Tensor]:
    """Learn words by k-means over whitened principal components.

    Args:
        patches: uint8 (n, V), at least as many as words; of more than `NUM_PATCHES` so many are
            drawn.
        num_words: `K`.
        num_components: `D`, at most `V`.
        seed: Of that draw, and of the patches that k-means begins with.

    Returns:
        The buffers of `pretrain.classes.Words`, float32: `mean` (V,), `components` (V, D), `words`
        (K, D) and `pixels` (K, V).
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(patches), generator=generator)[:NUM_PATCHES]
    values = patches[chosen].float()
    mean = values.mean(0)
    centred = values - mean
    covariance = (centred.T.double() @ centred.double()) / len(centred)
    variances, directions = torch.linalg.eigh(covariance)  # ascending
    variances, directions = variances[-num_components:], directions[:, -num_components:]
    # patches of one colour have no variance at all
    scale = (variances + _FLOOR * variances.max()).clamp(min=1e-6).rsqrt()
    components = (directions * scale).float()
    places = centred @ components  # (n, D)
    words = places[:num_words]
    nearest = torch.empty(0)
    for _ in range(_NUM_ROUNDS):
        nearest = torch.cat([nearest_word(part, words) for part in places.split(_BLOCK)])
        words = _means(places, nearest, words)
    return {
        "mean": mean,
        "components": components,
        "words": words,
        "pixels": _means(values, nearest, words @ torch.linalg.pinv(components) + mean),
    }


def _means(values: Tensor, nearest: Tensor, otherwise: Tensor) -> Tensor:
    """Return the mean of each word's values, (K, V); `otherwise` that of a word without any."""
    sums = torch.zeros_like(otherwise).index_add_(0, nearest, values)
    count = torch.bincount(nearest, minlength=len(otherwise))[:, None]
    return torch.where(count > 0, sums / count.clamp(min=1), otherwise)
