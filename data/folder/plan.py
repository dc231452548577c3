"""The images of a source, and the plan of the shards that they become.

A source is a folder here, or one of data/sources/. The plan is a pure function of the list of its
images, their sizes and the options, so that writing can stop at any shard and go on later.
scripts/make_shards.py carries it out.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from data.disks import explain
from data.folder.classes import folders_without_images, in_no_class, label_folders
from data.folder.images import Listing, extension_of
from data.settings import RunStopped, UserError, require
from data.shards import ImageFile, split_name
from data.text import printable

_BLOCK = 512  # a tar's unit, bytes


@dataclass(frozen=True)
class SourceImage:
    """One image file of the source.

    Attributes:
        path: Below the source, with "/"; unique in it.
        key: The sample's key, unique in the source.
        num_bytes: The file's size.
        label: The class number, or None without labels.
        is_val: Whether it is for validation, where the source itself says so; else None.
        captions: What it shows, a line each; none where no captions are taken.
    """

    path: str
    key: str
    num_bytes: int
    label: int | None
    is_val: bool | None = None
    captions: tuple[str, ...] = ()


Reader = Callable[[Sequence[SourceImage]], Iterator[bytes]]


@dataclass(frozen=True)
class SourceImages:
    """The images and classes of a source.

    Attributes:
        images: Sorted by path, or in the order of a table's rows.
        classes: Class names in the order of their labels; empty without labels.
        left_out: What was left out and how much of it, in words.
        why_unlabelled: Why there are no labels; None where there are.
        read: Yields the bytes of images in the order in which they are given.
        origin: What the source is and what of it was looked at, in words; "" for a folder.
    """

    images: tuple[SourceImage, ...]
    classes: tuple[str, ...]
    left_out: tuple[str, ...]
    why_unlabelled: str | None
    read: Reader
    origin: str = ""


@dataclass(frozen=True)
class PlanOptions:
    """The options that decide, beside the source, what each shard holds.

    Attributes:
        shard_bytes: The largest size of a shard, unless one image is larger; of the images as they
            are in the source.
        val_ratio: The part of the images, by a hash of path and seed, that goes to validation.
        shuffle: Whether images are in an order drawn from `seed`; else sorted by path.
        seed: For the split and the order.
        max_side: The pixels to which longer sides are shrunk; None: images stay as they are.
        quality: Of the JPEGs that this makes.
    """

    shard_bytes: int
    val_ratio: float
    shuffle: bool
    seed: int
    max_side: int | None = None
    quality: int | None = None


def take_images(
    listing: Listing,
    *,
    is_unlabelled: bool = False,
    classes: Sequence[str] | None = None,
    skip_unreadable: bool = False,
) -> SourceImages:
    """Take the images of a folder that was listed.

    Args:
        listing: What `list_images` gave.
        is_unlabelled: Take no labels. Else the first folder of each path is its class, unless an
            image lies directly in the source: then there are no labels either.
        classes: The names of the classes in the order of their labels. None: those of the
            folders, sorted.
        skip_unreadable: Leave out what may not be read, in place of refusing it.

    Raises:
        UserError: It holds no image, or something that cannot be read; or its folders cannot be
            classes.
    """
    if skip_unreadable:
        listing = listing.without_unreadable()
    else:
        listing.require_readable("SOURCE")
    listing.require_images("SOURCE")
    read = partial(read_files, listing.folder)
    return label_by_folder(listing, read, is_unlabelled, classes)


def label_by_folder(
    listing: Listing, read: Reader, is_unlabelled: bool, classes: Sequence[str] | None
) -> SourceImages:
    """Give each image of a listing its class: the first folder of its path; see `take_images`."""
    source = listing.folder
    why = _why_unlabelled(listing, is_unlabelled)
    require(
        why is None or classes is None,
        f"--classes numbers the folders of a SOURCE with labels, and SOURCE={source} has none: "
        f"{why}",
    )
    labels = {} if why else label_folders(listing, classes)
    images = tuple(
        SourceImage(path, key, listing.found.sizes[path], labels.get(path.split("/")[0]))
        for path, key in zip(listing.images, unique_keys(listing.images), strict=True)
    )
    names = tuple(labels if classes is None else classes)
    no_class = [] if why else folders_without_images(listing)
    return SourceImages(images, names, (*listing.left_out(), *no_class), why, read)


def _why_unlabelled(listing: Listing, is_unlabelled: bool) -> str | None:
    return "--unlabelled" if is_unlabelled else in_no_class(listing)


def unique_keys(paths: Sequence[str]) -> list[str]:
    """Make a key of each path: without extension, "_" for dots, numbered if it occurs again."""
    counts: Counter[str] = Counter()
    taken: set[str] = set()
    keys: list[str] = []
    for path in paths:
        base = key = safe_key(path)
        while key in taken:
            counts[base] += 1
            key = f"{base}~{counts[base]}"
        taken.add(key)
        keys.append(key)
    return keys


def safe_key(path: str) -> str:
    """Return a path as a key that webdataset reads back."""
    key = path.rpartition(".")[0].replace(".", "_").replace("\n", "_").lstrip("/")
    # webdataset takes names such as __this__ for metadata and skips them.
    return key if split_name(key + ".jpg") is not None else "x" + key


# ---------------------------------------------------------------- the plan


def plan_shards(
    images: Sequence[SourceImage], options: PlanOptions
) -> dict[str, list[SourceImage]]:
    """Distribute images over shards.

    Returns:
        The images of each shard by file name: train-000000.tar and so on, then val-000000.tar.

    Raises:
        UserError: If an option is out of range or no image is left for training.
    """
    ratio = options.val_ratio
    require(0 <= ratio < 1, f"--val-ratio={ratio} is not in [0, 1); try 0.05")
    require(options.shard_bytes > 0, "--shard-mb is not above 0; try 256")
    require(
        ratio == 0 or all(image.is_val is None for image in images),
        f"--val-ratio={ratio} draws images for validation, and SOURCE has its own; leave it out",
    )
    kept = kept_in_training(images, options)
    splits: dict[str, list[SourceImage]] = {"train": [], "val": []}
    for image in images:
        is_val = _is_drawn(image, options) and image.path not in kept
        splits["val" if is_val or image.is_val else "train"].append(image)
    require(len(splits["train"]) > 0, f"--val-ratio={ratio} leaves no image for training; lower it")
    plan: dict[str, list[SourceImage]] = {}
    for split, members in splits.items():
        if options.shuffle:
            members.sort(key=lambda image: order_key(image.path, options.seed))
        shards = _cut(members, options.shard_bytes)
        plan |= {f"{split}-{number:06d}.tar": shard for number, shard in enumerate(shards)}
    return plan


def kept_in_training(images: Sequence[SourceImage], options: PlanOptions) -> set[str]:
    """Choose an image of each class that the draw would put into validation as a whole.

    Returns:
        Their paths. It is the one drawn last, so that other files change it as little as can be.
    """
    last: dict[int, tuple[float, str]] = {}
    for image in images if options.val_ratio > 0 else ():
        if image.label is not None:
            own = (_draw(options.seed, "split", image.path), image.path)
            last[image.label] = max(own, last.get(image.label, own))
    return {path for draw, path in last.values() if draw < options.val_ratio}


def _is_drawn(image: SourceImage, options: PlanOptions) -> bool:
    """Tell whether the draw puts an image into validation."""
    return _draw(options.seed, "split", image.path) < options.val_ratio


def order_key(path: str, seed: int = 0) -> float:
    """Return the number by which images are sorted, so that neighbours in a folder are none."""
    return _draw(seed, "order", path)


def _draw(seed: int, purpose: str, path: str) -> float:
    """Draw from [0, 1) by a hash, so that neither a library nor other files can change it."""
    digest = sha256(os.fsencode(f"{seed}:{purpose}:{path}")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _cut(images: Sequence[SourceImage], shard_bytes: int) -> list[list[SourceImage]]:
    """Cut a list into shards of at most `shard_bytes`, as they will be on disk."""
    shards: list[list[SourceImage]] = []
    room = 0
    for image in images:
        size = _tar_bytes(image)
        if size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(image)
        room -= size
    return shards


def _tar_bytes(image: SourceImage) -> int:
    """Return what a sample takes in a tar: a header and whole blocks for each member."""
    texts = sum(len(caption.encode()) + 1 for caption in image.captions)
    sizes = [image.num_bytes, *([] if image.label is None else [1]), *([texts] if texts else [])]
    return sum(_BLOCK + -(-size // _BLOCK) * _BLOCK for size in sizes)


def plan_hash(source: SourceImages, options: PlanOptions) -> str:
    """Hash what decides the shards' bytes: files, sizes, labels, captions, splits and options."""
    given = {name: value for name, value in asdict(options).items() if value is not None}
    digest = sha256(json.dumps([given, source.classes]).encode())
    for image in source.images:
        split = [] if image.is_val is None else [image.is_val]
        texts = [image.captions] if image.captions else []
        row = [image.path, image.num_bytes, image.label, *split, *texts]
        digest.update(json.dumps(row).encode())
    if kept := sorted(kept_in_training(source.images, options)):
        digest.update(json.dumps(kept).encode())
    return digest.hexdigest()


def read_files(folder: Path, images: Iterable[SourceImage]) -> Iterator[bytes]:
    """Yield the bytes of images that are files below a folder; b"" for one that has gone.

    Raises:
        RunStopped: If the disk does not give one.
    """
    for image in images:
        path = folder / image.path
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise RunStopped(f"{path}: {explain(error)}; then the same command goes on") from error
        yield data


def load_samples(
    place: Path, source: SourceImages, images: Sequence[SourceImage]
) -> Iterator[ImageFile]:
    """Read images into samples, in their order.

    Args:
        place: Where the source is, for messages.
        source: What was found there.
        images: Some of its images.

    Raises:
        RunStopped: If the disk does not give one.
        UserError: If one is not as it was when the plan was made.
    """
    for image, data in zip(images, source.read(images), strict=True):
        if len(data) != image.num_bytes:
            path = printable(str(place / image.path))
            raise UserError(f"{path} has changed since it was listed; start again when it is whole")
        yield ImageFile(image.key, extension_of(image.path), data, image.label, image.captions)
