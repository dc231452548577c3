"""Requests -> batches: read, decode and crop.

The dataset is stateless: a request names an epoch and a range of positions, and what comes back
depends on nothing else. So any number of workers gives the same batches.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from data.index import Manifest
from data.order import Order
from data.randomness import combine, derive, uniform
from data.reader import BadSample, ShardReader
from data.settings import require, setting
from data.shards import IMAGE_EXTENSIONS, LABEL_EXTENSION
from data.transforms import (
    NUM_UNIFORM,
    UnreadableImage,
    decode,
    evaluation_crop,
    training_crop,
)

NO_LABEL = -1
SHARDS_TYPE = "str | list[str]"
_CROP = 1  # purpose of a sample's random numbers
_PADDING = -1
_MAX_LABEL = 10  # bytes of a `cls` member: beyond, it is no class number


@dataclass(frozen=True)
class ImageConfig:
    """What every stream of images states."""

    image_size: Any = setting(
        None,
        "pixels a side, or [height, width]; default: the encoder's own",
        type_name="int | [int, int]",
    )
    mean: tuple[float, float, float] | None = setting(
        None, "channel means of pixels in 0..1; default: the encoder's own"
    )
    std: tuple[float, float, float] | None = setting(
        None, "channel deviations of pixels in 0..1; default: the encoder's own"
    )
    crop_area: tuple[float, float] = setting(
        (0.08, 1.0), "range of a training crop's area, as a fraction of the image's"
    )
    workers: int = setting(
        2, "loader processes a rank; 0 decodes in the training process", changes_result=False
    )
    trace: bool = setting(
        False, "write the keys of each step's samples to trace/", changes_result=False
    )

    def __post_init__(self) -> None:
        require(
            self.image_size is None or _is_size(self.image_size),
            f"data.image_size={self.image_size} is no size; give pixels, or [height, width]",
        )
        low, high = self.crop_area
        require(
            0 < low <= high <= 1,
            f"data.crop_area={list(self.crop_area)} is no range within (0, 1]; try [0.08, 1]",
        )
        require(
            self.std is None or min(self.std) > 0,
            f"data.std={self.std} must be above 0 in each channel; try [0.5, 0.5, 0.5]",
        )
        require(self.workers >= 0, f"data.workers={self.workers} is below 0; 0 needs no process")

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W), or None for the encoder's own."""
        if self.image_size is None:
            return None
        if isinstance(self.image_size, int):
            return (self.image_size, self.image_size)
        return (self.image_size[0], self.image_size[1])


def _is_size(value: object) -> bool:
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    return len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)


@dataclass(frozen=True)
class DataConfig(ImageConfig):
    """The shards that pretraining reads."""

    # a resume compares what the shards hold, not how they are named
    shards: Any = setting(
        None,
        "training shards: brace pattern, glob, folder, or a list of them",
        changes_result=False,
        type_name=SHARDS_TYPE,
    )
    val_shards: Any = setting(
        None,
        "validation shards, in the same forms; default: none",
        changes_result=False,
        type_name=SHARDS_TYPE,
    )


class Request(NamedTuple):
    """Positions `start` to `stop` of an epoch; those past its last sample are padding."""

    epoch: int
    start: int
    stop: int


class LedgerEntry(NamedTuple):
    """A sample that could not be used, as bad_samples.jsonl names it."""

    epoch: int
    position: int
    shard: str
    key: str
    reason: str


class Batch(NamedTuple):
    """What a request gives.

    Attributes:
        tensors: `image` uint8 (B, 3, H, W); `weight` float32 (B,), 0 for padding and bad samples;
            `key` int64 (B,), each sample's random key in this epoch; `label` int64 (B,).
        names: SHARD/KEY of the samples with weight 1, in order.
        bad: The samples that could not be used.
    """

    tensors: dict[str, Tensor]
    names: list[str]
    bad: list[LedgerEntry]


class Samples(Dataset[Batch]):
    """Requests -> batches, with no state.

    Args:
        manifest: The indexed shards.
        size: (H, W) of the images.
        seed: The run's seed.
        crop_area: Range of training crops' areas; None cuts evaluation crops and keeps the order
            of the shards.
        labelled: A sample without a label is bad.
    """

    def __init__(
        self,
        manifest: Manifest,
        size: tuple[int, int],
        seed: int,
        crop_area: tuple[float, float] | None = None,
        labelled: bool = False,
    ) -> None:
        self.manifest = manifest
        self.order = Order(manifest.starts, seed)
        self.reader = ShardReader(manifest)
        self.size = size
        self.crop_area = crop_area
        self.labelled = labelled

    def __getitem__(self, request: Request) -> Batch:
        """Read, decode and crop one request's samples."""
        ids = self._ids(request)
        keys = combine(np.full(ids.size, derive(self.order.seed, request.epoch)), ids)
        numbers = uniform(combine(keys, _CROP), NUM_UNIFORM)
        image = _blank_images((ids.size, 3, *self.size))
        weight = torch.zeros(ids.size)
        label = torch.full((ids.size,), NO_LABEL)
        names: list[str] = []
        bad: list[LedgerEntry] = []
        for slot in np.flatnonzero(ids != _PADDING):
            shard, place = self.order.locate(int(ids[slot]))
            name, key = self.manifest.shards[shard].name, self.reader.key(shard, place)
            try:
                content, label[slot] = self._read(shard, place)
                image[slot] = self._crop(decode(content), numbers[slot])
            except (BadSample, UnreadableImage) as error:
                position = request.start + int(slot)
                bad.append(LedgerEntry(request.epoch, position, name, key, str(error)))
                continue
            weight[slot] = 1
            names.append(f"{name}/{key}")
        tensors = {"image": image, "weight": weight, "key": torch.from_numpy(keys), "label": label}
        return Batch(tensors, names, bad)

    def _ids(self, request: Request) -> np.ndarray:
        """Return the sample ids of a request's slots; padding has the id -1."""
        ids = np.full(request.stop - request.start, _PADDING)
        positions = np.arange(request.start, min(request.stop, self.manifest.num_samples))
        is_training = self.crop_area is not None
        ids[: positions.size] = (
            self.order.samples(request.epoch, positions) if is_training else positions
        )
        return ids

    def _read(self, shard: int, place: int) -> tuple[bytes, int]:
        """Return the image's bytes and the label; a label is only asked for where it matters."""
        wanted = IMAGE_EXTENSIONS | {LABEL_EXTENSION} if self.labelled else IMAGE_EXTENSIONS
        members = self.reader.read(shard, place, wanted)
        label = read_label(members) if self.labelled else NO_LABEL
        images = [
            content for extension, content in members.items() if extension in IMAGE_EXTENSIONS
        ]
        if not images:
            raise BadSample("no image among its members")
        return images[0], label

    def _crop(self, image: Tensor, numbers: np.ndarray) -> Tensor:
        if self.crop_area is None:
            return evaluation_crop(image, self.size)
        return training_crop(image, numbers, self.size, self.crop_area)


def read_label(members: dict[str, bytes]) -> int:
    """Return a sample's class number from its `cls` member.

    Raises:
        BadSample: There is none, or it is no number from 0.
    """
    text = members.get(LABEL_EXTENSION)
    if text is None:
        raise BadSample(f"no .{LABEL_EXTENSION} member")
    if not text.strip().isdigit() or len(text) > _MAX_LABEL:
        raise BadSample(f".{LABEL_EXTENSION} holds {text[:20]!r}, not a class number")
    return int(text)


def _blank_images(shape: tuple[int, ...]) -> Tensor:
    """Make uint8 zeros, in a worker at once in the memory that it shares with its parent.

    Private memory would be copied there, and its holes stay with the worker: measured over 20
    epochs of 200 photographs, it grew from 472 to 746 MiB, and so does not.
    """
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # new pages are zero
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
