"""The labelled splits of a fine-tuning run, opened and read on all ranks alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from accelerate import Accelerator

from data.index.manifest import Manifest
from data.labels.balance import class_weights, positive_weights
from data.labels.labelled import check_names
from data.reading.overlap import check_apart
from finetune.tuning.config import Tuned
from finetune.tuning.steps import RESULT
from pretrain.encoder.saved import find_saved
from pretrain.ranks import on_main, open_shards, open_val


class Named(Protocol):
    """The labels of two splits, whatever they are read from."""

    @property
    def names(self) -> list[str]:
        """Of the classes, in the order of their numbers."""
        ...


Labels = TypeVar("Labels", bound=Named)
Read = Callable[[Manifest, Manifest], tuple[Labels, np.ndarray]]


class LabelledSplits(NamedTuple, Generic[Labels]):
    """What a run trains on and is validated on.

    Attributes:
        train: The training samples.
        val: The validation samples.
        labels: What `read` gave of them.
        weights: Of the classes in the training loss, float32 (K,); None: all are 1.
    """

    train: Manifest
    val: Manifest
    labels: Labels
    weights: np.ndarray | None


def open_labelled(
    accelerator: Accelerator, config: Tuned, read: Read[Labels]
) -> LabelledSplits[Labels]:
    """Open the splits of a run and read their labels.

    The classes of a run that goes on are what they were.

    Args:
        accelerator: What `start` gave.
        config: The run's.
        read: Both splits -> the labels, and all of `data.train`: int64 (N,), of many labels one
            sample's after the other's.

    Raises:
        UserError: The splits overlap, or their labels do not fit together or to the run's model.
        RunStopped: A rank sees other files, or a server cannot be asked.
    """
    data, folder = config.data, Path(config.run.dir)
    if not on_main(accelerator, lambda: (folder / RESULT).is_file()):  # else: measured on others
        data.require_one("val")
    how = data.storage, data.fraction, folder, data.val_ratio
    train = open_shards(accelerator, data.train, "data.train", *how)
    val = open_val(accelerator, train, data.val, "data.val", data.storage)
    on_main(accelerator, lambda: check_apart(train, val, ("data.train", data.val_key)))

    def find() -> tuple[Labels, np.ndarray]:
        labels, values = read(train, val)
        saved = saved_names(folder)
        if saved is not None:
            check_names(labels.names, saved, f"run.dir={config.run.dir}")
        return labels, values

    labels, values = on_main(accelerator, find)
    weights = None
    if data.balance and data.multi_label:
        weights = positive_weights(values, len(labels.names), train.num_samples)
    elif data.balance:
        weights = class_weights(values, len(labels.names))
    return LabelledSplits(train, val, labels, weights)


def saved_names(run: str | Path) -> list[str] | None:
    """Return the names of the classes of a fine-tuning run's model; None if it has none yet."""
    saved = find_saved(Path(run, "encoder"))
    return None if saved is None else saved.class_names
