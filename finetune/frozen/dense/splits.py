"""The images with masks that a measure learns from and is judged on, and the names of classes."""

from typing import NamedTuple

from accelerate import Accelerator

from data.index.manifest import Manifest
from data.labels.classes import Classes, match_classes
from data.segmented import SegmentedSamples, check_masks
from data.settings import require
from finetune.frozen.dense.config import MOST_CLASSES, SegmentedDataConfig
from pretrain.evaluation.probe import open_pair
from pretrain.ranks import on_main


class Segmented(NamedTuple):
    """Both splits, in listed order, and one name a class."""

    train: SegmentedSamples
    val: SegmentedSamples
    names: list[str]


def open_segmented(
    accelerator: Accelerator, data: SegmentedDataConfig, size: tuple[int, int], channels: int
) -> Segmented:
    """Open both splits, and bring their classes under one numbering by their names.

    Args:
        accelerator: What `start` gave.
        data: The images.
        size: (H, W) of images and masks.
        channels: Of the images.

    Raises:
        UserError: There are no such shards, no masks, or nobody says how many classes there are.
    """
    train, val = open_pair(accelerator, data, data, "data", data.fraction, data.val_ratio)

    def look() -> tuple[Classes, list[str]]:
        for key, images in (("data.train", train), (data.val_key, val)):
            check_masks(images, key)
        classes = match_classes(train, val, data.classes, "data")
        return classes, _name_classes(classes, data.num_classes)

    classes, names = on_main(accelerator, look)

    def samples(images: Manifest, split: str) -> SegmentedSamples:
        return SegmentedSamples(
            images,
            size,
            num_classes=len(names),
            ignored=data.ignored,
            channels=channels,
            numbering=getattr(classes, split),
        )

    return Segmented(samples(train, "train"), samples(val, "val"), names)


def _name_classes(classes: Classes, number: int | None) -> list[str]:
    """Return a name for each class; its number where nothing names it."""
    if classes.names is None:
        require(
            number is not None,
            "data.num_classes is missing, and nothing names the classes of the masks; give it, or "
            "data.classes=FILE with a class name a line",
        )
        return [str(place) for place in range(number or 0)]
    named = len(classes.names)
    require(
        number in (None, named),
        f"data.num_classes={number}, but {classes.file} names {named}; leave it out, or name all",
    )
    require(
        named <= MOST_CLASSES,
        f"{classes.file} names {named} classes, and masks of 8 bits hold {MOST_CLASSES} at most",
    )
    return classes.names
