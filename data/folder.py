"""A folder of images, and the plan of the shards that it becomes.

The plan is a pure function of the sorted list of files, their sizes and the options, so that
writing can stop at any shard and go on later. scripts/make_shards.py carries it out.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from data.settings import UserError, require
from data.shards import (
    ARRAY_EXTENSION,
    IMAGE_EXTENSIONS,
    PICTURE_EXTENSIONS,
    ImageFile,
    split_name,
)

_BLOCK = 512  # a tar's unit, bytes


@dataclass(frozen=True)
class SourceImage:
    """One image file of the source.

    Attributes:
        path: Below the source, with "/".
        key: The sample's key, unique in the source.
        num_bytes: The file's size.
        label: The class number, or None without labels.
    """

    path: str
    key: str
    num_bytes: int
    label: int | None


@dataclass(frozen=True)
class Source:
    """What a source folder holds.

    Attributes:
        images: Sorted by path.
        classes: Class names in the order of their labels; empty without labels.
        num_empty: Image files of zero bytes, left out.
        num_other: Files without an image's extension, left out.
    """

    images: tuple[SourceImage, ...]
    classes: tuple[str, ...]
    num_empty: int
    num_other: int


@dataclass(frozen=True)
class PlanOptions:
    """What decides, beside the source, what each shard holds.

    Attributes:
        shard_bytes: The largest size of a shard, unless one image is larger.
        val_ratio: The part of the images, by a hash of path and seed, that goes to validation.
        shuffle: Whether images are in an order drawn from `seed`; else sorted by path.
        seed: For the split and the order.
    """

    shard_bytes: int
    val_ratio: float
    shuffle: bool
    seed: int


def find_images(source: Path, *, is_unlabelled: bool = False) -> Source:
    """List the images below a folder (see `image_paths`); what is hidden is passed over.

    Args:
        source: The folder.
        is_unlabelled: Take no labels. Else the first folder of each path is its class, unless an
            image lies directly in `source`: then there are no labels either.

    Raises:
        UserError: If it is no folder, or holds no image.
    """
    require(source.is_dir(), f"SOURCE={source} is not a folder; give the folder of the images")
    sizes = file_sizes(source)
    found = {path: sizes[path] for path in image_paths(sizes)}
    paths = sorted(path for path, size in found.items() if size > 0)
    require(
        len(paths) > 0,
        f"SOURCE={source} holds no image; known extensions: {', '.join(sorted(IMAGE_EXTENSIONS))}",
    )
    is_labelled = not is_unlabelled and all("/" in path for path in paths)
    classes = sorted({path.split("/")[0] for path in paths}) if is_labelled else []
    labels = {name: label for label, name in enumerate(classes)}
    images = tuple(
        SourceImage(path, key, found[path], labels.get(path.split("/")[0]))
        for path, key in zip(paths, unique_keys(paths), strict=True)
    )
    return Source(images, tuple(classes), len(found) - len(paths), len(sizes) - len(found))


def image_paths(paths: Iterable[str]) -> list[str]:
    """Return those of a folder's files that are images; NumPy's only where there are no others.

    Beside pictures they may be anything, such as features.
    """
    by_kind = {path: extension_of(path) for path in paths}
    pictures = [path for path, kind in by_kind.items() if kind in PICTURE_EXTENSIONS]
    return pictures or [path for path, kind in by_kind.items() if kind == ARRAY_EXTENSION]


def file_sizes(source: Path) -> dict[str, int]:
    """Map the path of each file that is not hidden, below `source`, to its size."""
    sizes: dict[str, int] = {}
    for folder, folders, files in os.walk(source, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                sizes[path.relative_to(source).as_posix()] = path.stat().st_size
    return sizes


def extension_of(path: str) -> str:
    """Return a file name's extension in lower case, without the dot."""
    return Path(path).suffix.lower().removeprefix(".")


def unique_keys(paths: Sequence[str]) -> list[str]:
    """Make a key of each path: without extension, "_" for dots, numbered if it occurs again."""
    counts: Counter[str] = Counter()
    taken: set[str] = set()
    keys: list[str] = []
    for path in paths:
        base = key = _safe_key(path)
        while key in taken:
            counts[base] += 1
            key = f"{base}~{counts[base]}"
        taken.add(key)
        keys.append(key)
    return keys


def _safe_key(path: str) -> str:
    key = path.rpartition(".")[0].replace(".", "_")
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
    splits: dict[str, list[SourceImage]] = {"train": [], "val": []}
    for image in images:
        is_val = _draw(options.seed, "split", image.path) < ratio
        splits["val" if is_val else "train"].append(image)
    require(len(splits["train"]) > 0, f"--val-ratio={ratio} leaves no image for training; lower it")
    plan: dict[str, list[SourceImage]] = {}
    for split, members in splits.items():
        if options.shuffle:
            members.sort(key=lambda image: _draw(options.seed, "order", image.path))
        shards = _cut(members, options.shard_bytes)
        plan |= {f"{split}-{number:06d}.tar": shard for number, shard in enumerate(shards)}
    return plan


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
    label_bytes = 0 if image.label is None else 2 * _BLOCK
    return _BLOCK + -(-image.num_bytes // _BLOCK) * _BLOCK + label_bytes


def plan_hash(source: Source, options: PlanOptions) -> str:
    """Hash what decides the shards' bytes: files, sizes, labels, classes and options."""
    digest = sha256(json.dumps([asdict(options), source.classes]).encode())
    for image in source.images:
        digest.update(json.dumps([image.path, image.num_bytes, image.label]).encode())
    return digest.hexdigest()


def load_image(source: Path, image: SourceImage) -> ImageFile:
    """Read an image's file into a sample.

    Raises:
        UserError: If the file is not as it was when the plan was made.
    """
    path = source / image.path
    data = path.read_bytes() if path.exists() else b""
    if len(data) != image.num_bytes:
        raise UserError(f"{path} has changed since it was listed; start again when it is whole")
    return ImageFile(image.key, extension_of(image.path), data, image.label)
