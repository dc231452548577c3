"""Class-labelled splits: their configuration, their labels, k-shot subsets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.index.manifest import Manifest
from data.loader import SHARDS_TYPE, ImageConfig, read_label
from data.reader import BadSample, ShardReader
from data.settings import UserError, require, setting
from data.shards import LABEL_EXTENSION
from data.storage import is_remote


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
    reader = ShardReader(manifest)
    places = [(s, i) for s, shard in enumerate(manifest.shards) for i in range(shard.num_samples)]
    labels = np.empty(len(places), dtype=np.int64)
    progress = tqdm(places, f"labels of {key}", unit="image", delay=2, disable=None)
    for number, (shard, place) in enumerate(progress):
        try:
            labels[number] = read_label(reader.read(shard, place, {LABEL_EXTENSION}))
        except BadSample as error:
            name = f"{manifest.shards[shard].name}/{reader.key(shard, place)}"
            raise UserError(
                f"{key}: {name}: {error}; each sample needs a class number from 0 beside its image"
            ) from error
    return labels


def count_classes(train: np.ndarray, val: np.ndarray) -> int:
    """Return the number of classes `K`: one more than the largest training label.

    Raises:
        UserError: The validation split has a class that training lacks.
    """
    unknown = np.setdiff1d(val, train)
    require(
        unknown.size == 0,
        f"data.val has class {unknown[:1].tolist()}, which data.train lacks; "
        "train on all classes that are validated",
    )
    return int(train.max()) + 1


def class_names(manifest: Manifest, num_classes: int) -> list[str]:
    """Return the names in `classes.txt` beside local shards, else the numbers."""
    location = manifest.shards[0].location
    path = Path(location).parent / "classes.txt"
    has_names = not is_remote(location) and path.is_file()
    names = path.read_text().split("\n")[:num_classes] if has_names else []
    return names if len(names) == num_classes else [str(n) for n in range(num_classes)]


def k_shot(labels: np.ndarray, num_shots: int, seed: int) -> np.ndarray:
    """Choose `num_shots` samples of each class at random: places in `labels`, int64 (k * K,).

    Raises:
        UserError: A class has fewer.
    """
    generator = np.random.default_rng(seed)
    chosen: list[np.ndarray] = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        require(
            places.size >= num_shots,
            f"fewshot.shots has {num_shots}, but class {label} of data.train has only "
            f"{places.size} images",
        )
        chosen.append(generator.permutation(places)[:num_shots])
    return np.concatenate(chosen)
