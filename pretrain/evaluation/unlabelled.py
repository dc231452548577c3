"""Measures of an encoder by images without labels, the same on any number of ranks.

Sums over the features of a batch are made where the batch is, and added up in listed order.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from data.batch import LedgerEntry, Request, SamplePlace
from data.devices import exact_device
from data.index.manifest import Manifest
from data.randomness import combine
from data.samples import Samples
from data.settings import require
from data.text import count
from pretrain.evaluation.features import (
    PATCHES,
    Tokens,
    View,
    make_views,
    pool_tokens,
    read_batches,
    read_tokens,
)
from pretrain.evaluation.spectrum import Moments, Scatter
from pretrain.records.bad_samples import Unusable

_SUMS = 3  # tensors of `Moments`


class Pass(NamedTuple):
    """How images are read.

    Attributes:
        accelerator: What `start` gave.
        batch_size: Images a forward pass on each rank.
        workers: Loader processes a rank.
        name: The key of the images, for messages.
    """

    accelerator: Accelerator
    batch_size: int
    workers: int
    name: str


def choose_views(
    encoder: VisionTransformer, layers: Sequence[int], pooling: str, keys: tuple[str, str]
) -> list[View]:
    """Return each layer with a pooling, and with its patches as they are.

    Raises:
        UserError: As `make_views`.
    """
    pooled = make_views(encoder, layers, [pooling], keys)
    return [each for view in pooled for each in (view, View(view.layer, PATCHES))]


def least_images(encoder: VisionTransformer, pooling: str) -> int:
    """Return as many images as features have dimensions."""
    return encoder.embed_dim * (2 if pooling == "both" else 1)


def check_number(number: int, least: int, name: str) -> None:
    """Raise `UserError` unless there are as many images as features have dimensions."""
    require(
        number >= least,
        f"{name}: {count(number, 'image')} for features of {least} dimensions; no rank is above "
        f"the number of images, so name {least:,} images or more",
    )


# ---------------------------------------------------------------- RankMe, alpha-ReQ, dead


class Spectra(NamedTuple):
    """What was read of images.

    Attributes:
        moments: Of the features of each view, on all ranks.
        unusable: The images without features.
    """

    moments: dict[View, Moments]
    unusable: Unusable

    @property
    def num_images(self) -> int:
        """How many have features."""
        return self.unusable.num_samples - len(self.unusable.entries)


def read_spectra(
    how: Pass, encoder: VisionTransformer, samples: Samples, views: Sequence[View]
) -> Spectra:
    """Sum up the features of images by each view, on all ranks.

    Args:
        how: Its processes, its batches and the name of the images.
        encoder: On this rank's device; left in evaluation mode.
        samples: In listed order.
        views: What is read; the pooling may be `PATCHES`.

    Raises:
        RunStopped: What the encoder gives is no number, on all ranks.
    """

    def read(images: Tensor, weight: Tensor) -> list[Tensor]:
        tokens = read_tokens(encoder, images, [view.layer for view in views])
        sums = (_sum(tokens[view.layer], view.pooling, weight) for view in views)
        return [tensor[None] for moments in sums for tensor in moments]

    sums, bad = _add_up(how, encoder, samples, read)
    moments = (Moments(*sums[at : at + _SUMS]) for at in range(0, len(sums), _SUMS))
    unusable = Unusable(how.name, samples.manifest.num_samples, bad)
    return Spectra(dict(zip(views, moments, strict=True)), unusable)


def _sum(tokens: Tokens, pooling: str, weight: Tensor) -> Moments:
    """Sum up a batch's features where there is float64; images of weight 0 are left out."""
    device = exact_device(weight.device)
    if pooling != PATCHES:
        return Moments.of(pool_tokens(tokens, pooling).to(device), weight.to(device))
    each = weight.repeat_interleave(tokens.patches.shape[1])  # (B N,)
    return Moments.of(tokens.patches.flatten(0, 1).to(device), each.to(device))


def _add_up(
    how: Pass,
    encoder: VisionTransformer,
    samples: Samples,
    read: Callable[[Tensor, Tensor], list[Tensor]],
) -> tuple[list[Tensor], list[LedgerEntry]]:
    """Add up what is read of each batch, (1, ...), in listed order; on all ranks."""
    accelerator, batch_size, workers, name = how
    sums: list[Tensor] = []
    bad: list[LedgerEntry] = []
    for batch in read_batches(accelerator, encoder, samples, read, batch_size, workers, name):
        bad += batch.bad
        for part in zip(*batch.values, strict=True):  # rank after rank
            sums = [a + b for a, b in zip(sums, part, strict=True)] if sums else list(part)
    return sums, gather_object(bad)


# ---------------------------------------------------------------- LiDAR


class CropSamples(Samples):
    """Requests -> several random crops of each image, side by side, with no state.

    A crop is a function of the seed, the image and its number. A request of B images has B times as
    many slots.

    Args:
        manifest: The indexed shards.
        size: (H, W) of the crops.
        num_crops: Of each image.
        options: Further arguments of `Samples`, `crop_area` among them.
    """

    def __init__(
        self, manifest: Manifest, size: tuple[int, int], num_crops: int, **options: Any
    ) -> None:
        super().__init__(manifest, size, **options)
        self.is_training = False  # in listed order
        self.num_crops = num_crops

    def _ids(self, request: Request) -> np.ndarray:
        return np.repeat(super()._ids(request), self.num_crops)

    def _keys(self, epoch: int, ids: np.ndarray) -> np.ndarray:
        return combine(super()._keys(epoch, ids), np.arange(ids.size) % self.num_crops)

    def _place_of(self, request: Request, slot: int, shard: int, place: int) -> SamplePlace:
        return super()._place_of(request, slot // self.num_crops, shard, place)


def read_scatters(
    how: Pass, encoder: VisionTransformer, samples: CropSamples, views: Sequence[View]
) -> dict[View, Scatter]:
    """Sum up the features of several crops of each image by each view, on all ranks.

    `batch_size` counts crops, of which an image's are passed together. Images that cannot be used
    are left out; `read_spectra` names them.

    Args:
        how: Its processes, its batches and the name of the images.
        encoder: On this rank's device; left in evaluation mode.
        samples: The crops.
        views: What is read; all of them are pooled.

    Raises:
        RunStopped: What the encoder gives is no number, on all ranks.
    """
    device = exact_device(how.accelerator.device)

    def read(images: Tensor, weight: Tensor) -> list[Tensor]:
        tokens = read_tokens(encoder, images, [view.layer for view in views])
        is_used = weight.unflatten(0, (-1, samples.num_crops)).amin(1).to(device)  # (B,)
        sums: list[Tensor] = []
        for view in views:
            pooled = pool_tokens(tokens[view.layer], view.pooling).to(device)
            means, within = Scatter.of(pooled.unflatten(0, (-1, samples.num_crops)), is_used)
            sums += [*means, within]
        return [tensor[None] for tensor in sums]

    fewer = how._replace(batch_size=max(1, how.batch_size // samples.num_crops))
    sums, _ = _add_up(fewer, encoder, samples, read)
    parts = (sums[at : at + _SUMS + 1] for at in range(0, len(sums), _SUMS + 1))
    scatters = (Scatter(Moments(*means), within) for *means, within in parts)
    return dict(zip(views, scatters, strict=True))
