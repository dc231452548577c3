"""The configurations of image streams: `data.*` of each entry point."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.settings import require, setting
from data.storage.locations import Storage, user_cache
from data.text import count

SHARDS_TYPE = "str | list[str]"


@dataclass(frozen=True)
class ImageConfig:
    """The keys that every stream of images has."""

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
    val_ratio: float = setting(
        0.0,
        "share of the training samples that is set aside for validation, by a hash of their keys",
    )
    workers: Any = setting(
        "auto",
        "loader processes a rank: a number, 0 decodes in the training process; auto: by the cores",
        changes_result=False,
        type_name="int | auto",
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
        low, high = self.crop_area or (1, 1)  # null is a value of captioned images
        require(
            0 < low <= high <= 1,
            f"data.crop_area={[low, high]} is no range within (0, 1]; try [0.08, 1]",
        )
        require(
            self.std is None or min(self.std, default=1) > 0,
            f"data.std={self.std} must be above 0 in each channel; try 0.5 each",
        )
        require(
            0 < self.fraction <= 1, f"data.fraction={self.fraction} is not in (0, 1]; 1 uses all"
        )
        require(
            0 <= self.val_ratio < 1,
            f"data.val_ratio={self.val_ratio} is not in [0, 1); 0 sets nothing aside, try 0.1",
        )
        workers: int = 0 if self.workers == "auto" else self.workers
        require(type(workers) is int, f"data.workers={workers} is neither a number nor auto")
        require(workers >= 0, f"data.workers={workers} is below 0; 0 needs no process")
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

    def require_one(self, key: str) -> None:
        """Raise `UserError` where validation images are named, and also set aside."""
        given = getattr(self, key)
        require(
            not (given and self.val_ratio),
            f"data.{key}={given} and data.val_ratio={self.val_ratio} both choose the validation "
            f"images; leave out one, as with data.{key}=null or data.val_ratio=0",
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
    """The images that pretraining reads."""

    read: str = setting(
        "random",
        "random (by index), or sequential (pipes, stdin: a stop may repeat or miss samples)",
    )
    allow_pipe: bool = setting(
        False, "let data.shards name pipe: commands, which run in a shell", changes_result=False
    )
    resident: Any = setting(
        "auto",
        "keep decoded training images in the device's memory: auto (small, on a GPU), true, false",
        changes_result=False,
        type_name="auto | true | false",
    )

    # a resume compares what the shards hold, not how they are named
    shards: Any = setting(
        None,
        "training images: a folder, a .txt of paths, shards (pattern, glob), or a list of those",
        changes_result=False,
        type_name=SHARDS_TYPE,
        is_path=True,
    )
    val_shards: Any = setting(
        None,
        "validation images, in the same forms; default: none",
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
            self.resident in ("auto", True, False),
            f"data.resident={self.resident} is neither auto, true nor false",
        )
        require(
            self.read == "random" or self.resident is not True,
            "data.resident=true needs data.read=random: a stream is not read twice",
        )
        require(
            self.read == "random" or self.fraction == 1,
            f"data.fraction={self.fraction} needs data.read=random: a stream has no index",
        )
        require(
            self.read == "random" or not self.val_ratio,
            f"data.val_ratio={self.val_ratio} needs data.read=random: a stream has no index",
        )
        self.require_one("val_shards")

    @property
    def val_key(self) -> str:
        """The key that chooses the validation images; empty where none does."""
        return "data.val_ratio" if self.val_ratio else "data.val_shards" if self.val_shards else ""


@dataclass(frozen=True)
class LabelledDataConfig(ImageConfig):
    """The labelled images that fine-tuning and probes read."""

    train: Any = setting(
        None,
        "labelled images: a folder of class folders, shards (pattern, glob), or a list of those",
        changes_result=False,
        type_name=SHARDS_TYPE,
        is_path=True,
    )
    val: Any = setting(
        None,
        "labelled validation images, in the same forms",
        changes_result=False,
        type_name=SHARDS_TYPE,
        is_path=True,
    )

    augment: str | None = setting(
        None, "timm's RandAugment on training crops, such as rand-m9-mstd0.5-inc1; default: none"
    )
    multi_label: bool = setting(
        False, "a sample has any number of classes: its cls member holds numbers, apart by spaces"
    )

    balance: bool = setting(
        False, "weight the classes in the training loss, so that rare ones count as much"
    )

    classes: str | None = setting(
        None,
        "file with a class name a line; default: classes.txt beside the shards, if it is there",
        changes_result=False,
        is_path=True,
    )

    @property
    def used(self) -> str:
        """How messages name the training images that are used."""
        return "data.train" if self.fraction == 1 else f"data.train (data.fraction={self.fraction})"

    @property
    def val_key(self) -> str:
        """The key that chooses the validation images."""
        return "data.val_ratio" if self.val_ratio and not self.val else "data.val"

    def require_splits(self) -> None:
        """Raise `UserError` unless both splits are there."""
        for key in ("train", "val"):
            require(
                bool(getattr(self, key)) or (key == "val" and self.val_ratio > 0),
                f"data.{key} is missing; name a folder with one folder a class, or labelled "
                f"shards, such as data.{key}='shards/{key}-*.tar'",
            )
