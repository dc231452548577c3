"""Features of each image by a frozen encoder: for search, clustering, classifiers.

A pass gives part after part, each of a fixed range of images, so that no more than one is held, and
a pass that begins at a later part gives the same ones, to the bit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from data.batch import LedgerEntry
from data.samples import Samples
from data.settings import require
from data.storage.locations import Storage
from pretrain.encoder import EncoderConfig, load_encoder, make_encoder
from pretrain.encoder.facts import grid_size, image_size, num_channels
from pretrain.encoder.tokens import choose_attention
from pretrain.evaluation.features import (
    PATCHES,
    Gathered,
    View,
    make_views,
    pool,
    read_batches,
    read_tokens,
)
from pretrain.ranks import on_main, open_shards
from pretrain.records.bad_samples import Unusable, say_unusable
from pretrain.training.config import RunConfig
from pretrain.training.launch import start

NAME = "images"  # what messages call them


class Embeddings(NamedTuple):
    """The features of the images that can be read, in listed order.

    Attributes:
        keys: SHARD/KEY of each.
        values: float32 (N, D), or (N, 2D) of both poolings; of patches float16 (N, P, D).
    """

    keys: list[str]
    values: np.ndarray


@dataclass(frozen=True)
class EmbedConfig:
    """How features are read.

    Attributes:
        layer: A block from 1 on; 0 is the last.
        pooling: average, class or both; patches: not pooled.
        batch_size: Images a forward pass on each process.
        workers: Loader processes a rank; 0 decodes in the process itself.
        precision: fp32 or bf16.
        mirror: Whether features are the mean of an image's and those of its mirror image, which
            then has the same.
    """

    layer: int = 0
    pooling: str = "average"
    batch_size: int = 64
    workers: int = 2
    precision: str = "fp32"
    mirror: bool = False

    def __post_init__(self) -> None:
        check_reading(self.batch_size, self.workers, self.precision)
        require(
            not (self.mirror and self.pooling == PATCHES),
            "mirror=true with pooling=patches, but a patch lies elsewhere in the mirror image; "
            "leave one of them out",
        )


def check_reading(batch_size: int, workers: int, precision: str) -> None:
    """Raise `UserError` unless images can be read so."""
    require(batch_size > 0, f"batch_size={batch_size} must be above 0")
    require(workers >= 0, f"workers={workers} is below 0; 0 needs no process")
    require(precision in ("fp32", "bf16"), f"precision={precision} is not one of fp32, bf16")


class Part(NamedTuple):
    """The features of a range of the listed images.

    Attributes:
        start: The position at which the range begins.
        positions: int64 (n,), the places of those that can be read among all that are listed.
        values: (n, ...), theirs.
        bad: The others.
    """

    start: int
    positions: np.ndarray
    values: np.ndarray
    bad: list[LedgerEntry]


@dataclass(frozen=True)
class Reading:
    """An encoder on its device, the images that it reads, and what is read of them.

    Attributes:
        accelerator: What `start` gave.
        encoder: In evaluation mode.
        samples: In listed order.
        view: The layer and the pooling.
        config: As it was asked for.
    """

    accelerator: Accelerator
    encoder: VisionTransformer
    samples: Samples
    view: View
    config: EmbedConfig

    @property
    def num_images(self) -> int:
        """All that are listed."""
        return self.samples.manifest.num_samples

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image's features."""
        width = self.encoder.embed_dim
        if self.view.pooling == PATCHES:
            return math.prod(grid_size(self.encoder)), width
        return (2 * width if self.view.pooling == "both" else width,)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Their type: patches, of which there are many, take half of the bytes."""
        return np.dtype(np.float16 if self.view.pooling == PATCHES else np.float32)

    @property
    def row_bytes(self) -> int:
        """The bytes of an image's features."""
        return math.prod(self.shape) * self.dtype.itemsize

    def names(self, part: Part) -> list[str]:
        """Return SHARD/KEY of a part's images."""
        return [self.samples.name(position) for position in part.positions.tolist()]

    def judge(self, bad: list[LedgerEntry]) -> None:
        """Count and name what cannot be read; raise `RunStopped` where that is all."""
        unusable = Unusable(NAME, self.num_images, bad)
        say_unusable(unusable)
        unusable.judge(max_ratio=1)


class Opened(NamedTuple):
    """An encoder on its device in evaluation mode, and images in listed order; none is read."""

    accelerator: Accelerator
    encoder: VisionTransformer
    samples: Samples


def open_images(encoder: Any, images: Any, precision: str, *, is_untrained: bool = False) -> Opened:
    """Start the processes, load the encoder, and list images without labels.

    Args:
        encoder: What `load_encoder` takes or gives.
        images: A folder of images, a list of paths, or shards.
        precision: Of the forward pass.
        is_untrained: Take the encoder as it was before its first step, as `encoder.like` does.

    Raises:
        UserError: There is no such encoder, or there are no such images.
    """
    accelerator = start(RunConfig(precision=precision))
    if is_untrained:
        model = make_encoder(EncoderConfig(like=str(encoder)))
    else:
        model = encoder if isinstance(encoder, VisionTransformer) else load_encoder(encoder)
    manifest = open_shards(accelerator, images, NAME, Storage())
    samples = Samples(manifest, image_size(model), seed=0, channels=num_channels(model))
    choose_attention(model, accelerator.device, accelerator.mixed_precision)
    return Opened(accelerator, model.to(accelerator.device).eval(), samples)


def open_reading(encoder: Any, images: Any, config: EmbedConfig) -> Reading:
    """Load the encoder and list the images; none is read.

    Args:
        encoder: What `load_encoder` takes or gives.
        images: A folder of images, a list of paths, or shards.
        config: How.

    Raises:
        UserError: There are no such images, or the encoder has no such layer or pooling.
    """
    accelerator, model, samples = open_images(encoder, images, config.precision)
    pooling = "average" if config.pooling == PATCHES else config.pooling
    [view] = make_views(model, [config.layer], [pooling], ("layer", "pooling"))
    return Reading(accelerator, model, samples, View(view.layer, config.pooling), config)


def read_parts(
    reading: Reading, num_images: int, keep: Callable[[Part], object], first: int = 0
) -> None:
    """Read the features of all images from a position on, part after part.

    A part is the same on any number of ranks, and wherever the pass begins: every batch has the
    same positions there.

    Args:
        reading: What `open_reading` gave.
        num_images: The images of a part; the last one has fewer.
        keep: What is done with each, on the main process; what it raises, all ranks raise.
        first: A multiple of `num_images`, as that is one of the batch size.

    Raises:
        RunStopped: What the encoder gives is no number.
    """
    config, accelerator = reading.config, reading.accelerator
    assert num_images % config.batch_size == 0
    assert first % num_images == 0
    stop = min(first + num_images, reading.num_images)
    pending = _Pending(first)
    batches = read_batches(
        accelerator,
        reading.encoder,
        reading.samples,
        partial(_read, reading),
        config.batch_size,
        config.workers,
        NAME,
        first,
    )
    for batch in batches:
        pending.add(batch, accelerator.is_main_process)
        while first < stop <= pending.position:
            bad: list[LedgerEntry] = gather_object(pending.bad)
            pending.bad = []
            if accelerator.is_main_process:
                pending.bad, bad = _split(bad, stop)
            on_main(accelerator, lambda: keep(pending.cut(first, stop, bad)))  # noqa: B023 - called here
            first, stop = stop, min(stop + num_images, reading.num_images)


def _read(reading: Reading, images: Tensor, _: Tensor) -> list[Tensor]:
    view = reading.view
    if view.pooling == PATCHES:
        patches = read_tokens(reading.encoder, images, [view.layer])[view.layer].patches
        return [patches.half()]
    [values] = pool(reading.encoder, images, [view])
    if reading.config.mirror:
        [mirrored] = pool(reading.encoder, images.flip(-1), [view])
        values = (values + mirrored) / 2
    return [values]


class _Pending:
    """What was read and is in no part yet, on the main process.

    Attributes:
        position: Up to which images were read; on all ranks.
        bad: Those that cannot be read.
    """

    def __init__(self, first: int) -> None:
        self.position = first
        self.bad: list[LedgerEntry] = []
        self._rows: list[tuple[Tensor, Tensor]] = []  # positions, values

    def add(self, batch: Gathered, is_kept: bool) -> None:
        """Take a batch of all ranks."""
        self.bad += batch.bad
        if is_kept:
            is_good = batch.weight > 0
            [values] = batch.values
            places = self.position + is_good.nonzero()[:, 0]
            self._rows.append((places.cpu(), values[is_good].cpu()))
        self.position += len(batch.weight)

    def cut(self, start: int, stop: int, bad: list[LedgerEntry]) -> Part:
        """Take the images from `start` on and before `stop` out, as a part."""
        positions, values = (torch.cat(column) for column in zip(*self._rows, strict=True))
        num = int((positions < stop).sum())
        self._rows = [(positions[num:], values[num:].clone())]
        return Part(start, positions[:num].numpy(), values[:num].numpy(), bad)


def _split(bad: list[LedgerEntry], stop: int) -> tuple[list[LedgerEntry], list[LedgerEntry]]:
    """Return those from the position `stop` on, and those before it."""
    bad = sorted(bad, key=lambda entry: entry.position or 0)
    num = sum((entry.position or 0) < stop for entry in bad)
    return bad[num:], bad[:num]


def embed_images(encoder: Any, images: Any, config: EmbedConfig) -> Embeddings:
    """Return the features of all images; those that cannot be read are counted and left out.

    The main process holds all of them, and twice that for a moment; on the others nothing comes
    back.

    Args:
        encoder: What `load_encoder` takes or gives.
        images: A folder of images, a list of paths, or shards.
        config: How.

    Raises:
        UserError: There are no such images, or the encoder has no such layer or pooling.
        RunStopped: No image can be read, or what the encoder gives is no number.
    """
    reading = open_reading(encoder, images, config)
    parts: list[Part] = []
    whole = -(-reading.num_images // config.batch_size) * config.batch_size
    read_parts(reading, whole, parts.append)
    reading.accelerator.end_training()
    if not reading.accelerator.is_main_process:
        return Embeddings([], np.empty((0, *reading.shape), reading.dtype))
    [part] = parts
    reading.judge(part.bad)
    return Embeddings(reading.names(part), part.values)
