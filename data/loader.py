"""Requests -> batches: read, decode and crop.

The dataset is stateless: a request names an epoch and a range of positions, and what comes back
depends on nothing else. So any number of workers gives the same batches.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.boxes import AUGMENTATION, NUM_UNIFORM
from data.classes import Numbering, as_it_is
from data.index.manifest import Manifest
from data.lending import blank_images
from data.order import Order
from data.randomness import combine, derive, uniform
from data.reader import BadSample, ShardReader
from data.settings import require, setting
from data.shards import (
    ARRAY_EXTENSION,
    IMAGE_EXTENSIONS,
    LABEL_EXTENSION,
    PICTURE_EXTENSIONS,
    choose_image,
)
from data.storage import Storage, user_cache
from data.text import count, name_some
from data.transforms import MODES, UnreadableImage, evaluation_crop, training_crop

NO_LABEL = -1
SHARDS_TYPE = "str | list[str]"
_CROP = 1  # purpose of a sample's random numbers
_PADDING = -1
_MAX_LABEL = 10  # bytes: beyond, it is no class number


@dataclass(frozen=True)
class ImageConfig:
    """What every stream of images states."""

    image_size: Any = setting(
        None,
        "pixels a side, or [height, width]; default: the encoder's own",
        type_name="int | [int, int]",
    )
    channels: int | None = setting(
        None, "3: RGB; 1: grey; others: npy, or TIFF of so many pages; default: the encoder's own"
    )
    mean: tuple[float, ...] | None = setting(
        None, "means of pixels in 0..1, one a channel; default: the encoder's own"
    )
    std: tuple[float, ...] | None = setting(
        None, "deviations of pixels in 0..1, one a channel; default: the encoder's own"
    )
    crop_area: tuple[float, float] = setting(
        (0.08, 1.0), "range of a training crop's area, as a fraction of the image's"
    )
    fraction: float = setting(1.0, "fraction of the training samples that are used at all")
    workers: int = setting(
        2, "loader processes a rank; 0 decodes in the training process", changes_result=False
    )
    trace: bool = setting(
        False, "write the keys of each step's samples to trace/", changes_result=False
    )
    max_bad_ratio: float = setting(
        0.05, "stop when more of the samples than this cannot be used", changes_result=False
    )
    cache_dir: str | None = setting(
        None,
        "folder for remote shards read ahead; default: ~/.cache/masked-patch-pretraining/shards",
        changes_result=False,
        is_path=True,
    )
    cache_gb: float = setting(
        20.0,
        "that folder's largest size, in 1e9 bytes; 0 reads nothing ahead",
        changes_result=False,
    )
    timeout_seconds: float = setting(
        30.0, "silence after which a request to a server is given up", changes_result=False
    )
    retry_minutes: float = setting(
        10.0,
        "how long a failing request is tried again, before the run stops",
        changes_result=False,
    )

    def __post_init__(self) -> None:
        require(
            self.image_size is None or _is_size(self.image_size),
            f"data.image_size={self.image_size} is no size; give pixels, or [height, width]",
        )
        require(
            self.channels is None or self.channels > 0,
            f"data.channels={self.channels} must be above 0; 3 is RGB, 1 is grey",
        )
        if self.channels is not None:
            check_values(self.mean, self.std, self.channels)
        low, high = self.crop_area
        require(
            0 < low <= high <= 1,
            f"data.crop_area={list(self.crop_area)} is no range within (0, 1]; try [0.08, 1]",
        )
        require(
            self.std is None or min(self.std, default=1) > 0,
            f"data.std={self.std} must be above 0 in each channel; try 0.5 each",
        )
        require(
            0 < self.fraction <= 1, f"data.fraction={self.fraction} is not in (0, 1]; 1 uses all"
        )
        require(self.workers >= 0, f"data.workers={self.workers} is below 0; 0 needs no process")
        require(
            0 <= self.max_bad_ratio <= 1,
            f"data.max_bad_ratio={self.max_bad_ratio} is not in [0, 1]; 1 never stops",
        )
        require(self.cache_gb >= 0, f"data.cache_gb={self.cache_gb} is below 0; 0 is no cache")
        require(
            self.timeout_seconds > 0,
            f"data.timeout_seconds={self.timeout_seconds} must be above 0; try 30",
        )
        require(
            self.retry_minutes >= 0,
            f"data.retry_minutes={self.retry_minutes} is below 0; 0 tries once",
        )

    @property
    def storage(self) -> Storage:
        """How remote shards are read."""
        cache_dir = Path(self.cache_dir or user_cache("shards"))
        return Storage(
            timeout_seconds=self.timeout_seconds,
            retry_seconds=60 * self.retry_minutes,
            cache_dir=cache_dir if self.cache_gb else None,
            cache_bytes=int(self.cache_gb * 1e9),
        )

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W), or None for the encoder's own."""
        if self.image_size is None:
            return None
        if isinstance(self.image_size, int):
            return (self.image_size, self.image_size)
        return (self.image_size[0], self.image_size[1])


def check_values(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> None:
    """Raise `UserError` unless what is given of mean and deviation is one value a channel."""
    for key, values in (("mean", mean), ("std", std)):
        require(
            values is None or len(values) == channels,
            f"data.{key} has {count(len(values or ()), 'value')}, data.channels={channels}; "
            "give one a channel",
        )


def _is_size(value: object) -> bool:
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    return len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)


@dataclass(frozen=True)
class DataConfig(ImageConfig):
    """The shards that pretraining reads."""

    read: str = setting(
        "random",
        "random (by index), or sequential (pipes, stdin: a stop may repeat or miss samples)",
    )
    allow_pipe: bool = setting(
        False, "let data.shards name pipe: commands, which run in a shell", changes_result=False
    )

    # a resume compares what the shards hold, not how they are named
    shards: Any = setting(
        None,
        "training shards: brace pattern, glob, folder, or a list of them",
        changes_result=False,
        type_name=SHARDS_TYPE,
        is_path=True,
    )
    val_shards: Any = setting(
        None,
        "validation shards, in the same forms; default: none",
        changes_result=False,
        type_name=SHARDS_TYPE,
        is_path=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.read in ("random", "sequential"),
            f"data.read={self.read} is neither random nor sequential",
        )
        require(
            self.read == "random" or self.fraction == 1,
            f"data.fraction={self.fraction} needs data.read=random: a stream has no index",
        )


class Request(NamedTuple):
    """Positions `start` to `stop` of an epoch; those past its last sample are padding."""

    epoch: int
    start: int
    stop: int


class Place(NamedTuple):
    """A sample, and where an epoch has it."""

    epoch: int
    position: int
    shard: str
    key: str

    @property
    def name(self) -> str:
        """SHARD/KEY, as traces have it."""
        return f"{self.shard}/{self.key}"


class LedgerEntry(NamedTuple):
    """What was not used, as bad_samples.jsonl names it.

    A damaged shard is named whole, with neither position nor key.
    """

    epoch: int
    position: int | None
    shard: str
    key: str | None
    reason: str


class Batch(NamedTuple):
    """What a request gives.

    Attributes:
        tensors: `image` uint8 (B, C, H, W); `weight` float32 (B,), 0 for padding and bad samples;
            `key` int64 (B,), each sample's random key in this epoch; `label` int64 (B,), or of a
            multi-label set 0 and 1 in int64 (B, K).
        places: The samples with weight 1, in order.
        bad: The samples that could not be used.
    """

    tensors: dict[str, Tensor]
    places: list[Place]
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
        num_classes: K of a multi-label set; None where a sample has one class.
        augment: A training crop, uint8 (C, H, W), and a 32-bit seed -> such a crop.
        channels: C. A sample that is neither of so many nor can be converted is bad.
        numbering: From the class numbers in the shards to those of the labels; None where they are
            the same.
    """

    def __init__(
        self,
        manifest: Manifest,
        size: tuple[int, int],
        seed: int,
        crop_area: tuple[float, float] | None = None,
        labelled: bool = False,
        num_classes: int | None = None,
        augment: Callable[[Tensor, int], Tensor] | None = None,
        channels: int = 3,
        numbering: Numbering | None = None,
    ) -> None:
        self.manifest = manifest
        self.order = Order(manifest.starts, seed)
        self.reader = ShardReader(manifest)
        self.size = size
        self.crop_area = crop_area
        self.labelled = labelled
        self.num_classes = num_classes
        self.augment = augment
        self.channels = channels
        self.numbering = numbering
        # an array beside a picture may be its features: read only where there is no picture
        self._wanted = PICTURE_EXTENSIONS if channels in MODES else IMAGE_EXTENSIONS

    def __getitem__(self, request: Request) -> Batch:
        """Read, decode and crop one request's samples."""
        ids = self._ids(request)
        keys = combine(np.full(ids.size, derive(self.order.seed, request.epoch)), ids)
        located = {
            slot: self.order.locate(int(ids[slot]))
            for slot in np.flatnonzero(ids != _PADDING).tolist()
        }
        places = {
            slot: Place(
                request.epoch,
                request.start + slot,
                self.manifest.shards.names[shard],
                self.reader.key(shard, place),
            )
            for slot, (shard, place) in located.items()
        }
        return fill_batch(
            keys,
            places,
            (self.channels, *self.size),
            lambda slot: self._read(*located[slot]),
            self._crop,
            self.num_classes,
        )

    def _ids(self, request: Request) -> np.ndarray:
        """Return the sample ids of a request's slots; padding has the id -1."""
        ids = np.full(request.stop - request.start, _PADDING)
        positions = np.arange(request.start, min(request.stop, self.manifest.num_samples))
        is_training = self.crop_area is not None
        ids[: positions.size] = (
            self.order.samples(request.epoch, positions) if is_training else positions
        )
        return ids

    def _read(self, shard: int, place: int) -> tuple[bytes, int | np.ndarray]:
        """Return the image's bytes and the label; a label is only asked for where it matters."""
        wanted = self._wanted | {LABEL_EXTENSION} if self.labelled else self._wanted
        members = self.reader.read(shard, place, wanted)
        if choose_image(members, self.channels) is None:
            members |= self.reader.read(shard, place, {ARRAY_EXTENSION})
        if choose_image(members, self.channels) is None:
            raise BadSample(_without_image(self.reader.extensions(shard, place)))
        label = self._label(shard, members) if self.labelled else NO_LABEL
        return pick_image(members, self.channels), label

    def _label(self, shard: int, members: dict[str, bytes]) -> int | np.ndarray:
        """Return a sample's class, or those of a multi-label set as 0 and 1."""
        renumber = self.numbering or as_it_is
        if self.num_classes is None:
            return renumber(shard, read_label(members))
        classes = [renumber(shard, number) for number in read_label_set(members)]
        return multi_hot(classes, self.num_classes)

    def _crop(self, content: bytes, numbers: np.ndarray) -> Tensor:
        if self.crop_area is None:
            return evaluation_crop(content, self.size, self.channels)
        crop = training_crop(content, numbers, self.size, self.crop_area, self.channels)
        return self.augment(crop, int(numbers[AUGMENTATION] * 2**32)) if self.augment else crop


def fill_batch(
    keys: np.ndarray,
    places: Mapping[int, Place],
    shape: tuple[int, int, int],
    read: Callable[[int], tuple[bytes, int | np.ndarray]],
    crop: Callable[[bytes, np.ndarray], Tensor],
    num_classes: int | None = None,
) -> Batch:
    """Decode and crop samples into a batch; one that cannot be used keeps its slot with weight 0.

    Args:
        keys: int64 (B,), each slot's random key.
        places: The samples by slot; the other slots are padding.
        shape: (C, H, W) of the images.
        read: A slot -> the image's bytes and the label; may raise `BadSample`.
        crop: An image's bytes and its (NUM_UNIFORM,) numbers -> uint8 (C, H, W); may raise
            `UnreadableImage`.
        num_classes: K of a multi-label set.
    """
    numbers = uniform(combine(keys, _CROP), NUM_UNIFORM)
    image = blank_images((keys.size, *shape))
    pixels = image.numpy()  # its item assignment takes a tenth of a tensor's time
    weight = np.zeros(keys.size, np.float32)
    label = np.full((keys.size, *([] if num_classes is None else [num_classes])), NO_LABEL)
    bad: list[LedgerEntry] = []
    for slot, place in places.items():
        try:
            content, label[slot] = read(slot)
            pixels[slot] = crop(content, numbers[slot]).numpy()
        except (BadSample, UnreadableImage) as error:
            bad.append(LedgerEntry(*place, str(error)))
            continue
        weight[slot] = 1
    arrays = {"weight": weight, "key": keys, "label": label}
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    good = [place for slot, place in places.items() if weight[slot]]
    return Batch({"image": image, **tensors}, good, bad)


def pick_image(members: dict[str, bytes], channels: int = 3) -> bytes:
    """Return the image among a sample's members, given by extension.

    Raises:
        BadSample: There is none.
    """
    extension = choose_image(members, channels)
    if extension is None:
        raise BadSample(_without_image([name for name in members if not name.startswith("__")]))
    return members[extension]


def _without_image(extensions: Sequence[str]) -> str:
    endings = name_some([f".{extension}" for extension in extensions])
    return f"no image among its members ({endings}); a key ends at the first dot of a name"


def read_label(members: dict[str, bytes]) -> int:
    """Return a sample's class number from its `cls` member.

    Raises:
        BadSample: There is none, or it is no number from 0.
    """
    text = _label_text(members)
    if not _is_class(text):
        raise BadSample(f".{LABEL_EXTENSION} holds {text[:20]!r}, not a class number")
    return int(text)


def read_label_set(members: dict[str, bytes]) -> list[int]:
    """Return the class numbers in a `cls` member, none or several, apart by spaces or commas.

    Raises:
        BadSample: There is no such member, or it holds something else.
    """
    text = _label_text(members)
    numbers = text.replace(b",", b" ").split()
    if not all(map(_is_class, numbers)):
        raise BadSample(f".{LABEL_EXTENSION} holds {text[:20]!r}, not class numbers")
    return [int(number) for number in numbers]


def _label_text(members: dict[str, bytes]) -> bytes:
    text = members.get(LABEL_EXTENSION)
    if text is None:
        raise BadSample(f"no .{LABEL_EXTENSION} member")
    return text


def _is_class(text: bytes) -> bool:
    return text.strip().isdigit() and len(text) <= _MAX_LABEL


def multi_hot(classes: list[int], num_classes: int) -> np.ndarray:
    """Return int64 (K,): 1 at the classes, 0 elsewhere.

    Raises:
        BadSample: There is no such class.
    """
    label = np.zeros(num_classes, np.int64)
    if classes and max(classes) >= num_classes:
        raise BadSample(f".{LABEL_EXTENSION} has class {max(classes)} of {num_classes}")
    label[classes] = 1
    return label
