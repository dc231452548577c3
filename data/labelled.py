"""Class-labelled splits: their configuration, their labels, k-shot subsets."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from data.index.manifest import Manifest
from data.loader import SHARDS_TYPE, ImageConfig, read_label, read_label_set
from data.reader import BadSample, ShardReader
from data.settings import UserError, require, setting
from data.shards import LABEL_EXTENSION
from data.storage import is_remote

Label = TypeVar("Label")


@dataclass(frozen=True)
class LabelledDataConfig(ImageConfig):
    """The labelled shards that fine-tuning and probes read."""

    train: Any = setting(
        None,
        "labelled training shards: brace pattern, glob, folder, or a list of them",
        changes_result=False,
        type_name=SHARDS_TYPE,
    )
    val: Any = setting(
        None,
        "labelled validation shards, in the same forms",
        changes_result=False,
        type_name=SHARDS_TYPE,
    )

    augment: str | None = setting(
        None, "timm's RandAugment on training crops, such as rand-m9-mstd0.5-inc1; default: none"
    )
    multi_label: bool = setting(
        False, "a sample has any number of classes: its cls member holds numbers, apart by spaces"
    )

    classes: str | None = setting(
        None,
        "file with a class name a line; default: classes.txt beside local shards, if it is there",
        changes_result=False,
    )

    def require_splits(self) -> None:
        """Raise `UserError` unless both splits are named."""
        for key in ("train", "val"):
            require(
                bool(getattr(self, key)),
                f"data.{key} is missing; name labelled shards, such as "
                f"data.{key}='shards/{key}-*.tar'",
            )


def read_labels(manifest: Manifest, key: str) -> np.ndarray:
    """Read all labels of a split: int64 (N,), in listed order.

    Args:
        manifest: The split's shards.
        key: The configuration key that names them, for messages.

    Raises:
        UserError: A sample has no label; it is named.
    """
    labels = _read_all(manifest, key, read_label, "a class number from 0")
    return np.fromiter(labels, np.int64, manifest.num_samples)


def read_label_sets(manifest: Manifest, key: str) -> np.ndarray:
    """Read the class numbers of a multi-label split, one sample's after the other's: int64 (n,).

    Raises:
        UserError: A sample has no label; it is named.
    """
    rule = "class numbers from 0, apart by spaces,"
    sets = _read_all(manifest, key, read_label_set, rule)
    return np.array([number for numbers in sets for number in numbers], np.int64)


def count_classes(train: np.ndarray, val: np.ndarray, group: str = "data") -> int:
    """Return the number of classes `K`: one more than the largest training label.

    Args:
        train: Labels.
        val: Likewise.
        group: Where the keys `train` and `val` are, for messages.

    Raises:
        UserError: The validation split has a class that training lacks.
    """
    require(train.size > 0, f"{group}.train has no sample of any class; give labelled shards")
    unknown = np.setdiff1d(val, train)
    require(
        unknown.size == 0,
        f"{group}.val has class {unknown[:1].tolist()}, which {group}.train lacks; "
        "train on all classes that are validated",
    )
    return int(train.max()) + 1


def _read_all(
    manifest: Manifest, key: str, read: Callable[[dict[str, bytes]], Label], rule: str
) -> Iterator[Label]:
    """Yield all labels of a split, in listed order."""
    reader = ShardReader(manifest)
    places = [(s, i) for s, shard in enumerate(manifest.shards) for i in range(shard.num_samples)]
    for shard, place in tqdm(places, f"labels of {key}", unit="image", delay=2, disable=None):
        try:
            yield read(reader.read(shard, place, {LABEL_EXTENSION}))
        except BadSample as error:
            name = f"{manifest.shards[shard].name}/{reader.key(shard, place)}"
            raise UserError(
                f"{key}: {name}: {error}; each sample needs {rule} beside its image"
            ) from error


def class_names(manifest: Manifest, path: str | None, num_classes: int) -> list[str]:
    """Return the names of the classes, `num_classes` at least; the numbers where there are none.

    Args:
        manifest: The training shards.
        path: A file with a name a line; None looks for `classes.txt` beside local shards.
        num_classes: One more than the largest label.

    Raises:
        UserError: The file is not there, or names too few.
    """
    location = manifest.shards[0].location
    beside = None if is_remote(location) else Path(location).with_name("classes.txt")
    file = Path(path) if path else beside
    require(not path or Path(path).is_file(), f"data.classes={path}: no such file")
    if file is None or not file.is_file():
        return [str(number) for number in range(num_classes)]
    names = file.read_text(encoding="utf-8").split("\n")
    names = names[: -1 if names[-1] == "" else None]
    require(
        len(names) >= num_classes,
        f"data.train has class {num_classes - 1}, but {file} names {len(names)}; "
        "mend the labels, or name all classes there",
    )
    return names


def k_shot(
    labels: np.ndarray,
    num_shots: int,
    seed: int,
    keys: tuple[str, str] = ("fewshot.shots", "data.train"),
) -> np.ndarray:
    """Choose `num_shots` samples of each class at random: places in `labels`, int64 (k * K,).

    Args:
        labels: Of the training images.
        num_shots: k.
        seed: Of the choice.
        keys: The configuration keys of the shots and of the images, for messages.

    Raises:
        UserError: A class has fewer.
    """
    generator = np.random.default_rng(seed)
    chosen: list[np.ndarray] = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        require(
            places.size >= num_shots,
            f"{keys[0]} has {num_shots}, but class {label} of {keys[1]} has only "
            f"{places.size} images",
        )
        chosen.append(generator.permutation(places)[:num_shots])
    return np.concatenate(chosen)
