"""Is it learning? Few-shot and k-NN accuracy of the encoder as it is, while it is pretrained."""

import statistics
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from timm.models.vision_transformer import VisionTransformer

from data.config import SHARDS_TYPE, ImageConfig
from data.devices import exact_device
from data.index.manifest import Manifest
from data.labels.labelled import label_splits
from data.reading.overlap import check_apart
from data.samples import Samples
from data.settings import require, setting
from data.stream import Share
from pretrain.encoder.facts import image_size, num_channels
from pretrain.evaluation.classifiers import NEIGHBOURS, choose_shots, few_shot, knn
from pretrain.evaluation.features import Extracted, Features, extract, make_views
from pretrain.ranks import on_main, open_shards
from pretrain.training.contract import Measured
from pretrain.training.parallel import open_to_parts


@dataclass(frozen=True)
class ProbeConfig:
    """How the encoder is measured while it is pretrained; the losses are the same without it."""

    train: Any = setting(
        None,
        "labelled shards that few-shot and k-NN learn from; default: no probe",
        changes_result=False,
        type_name=SHARDS_TYPE,
        is_path=True,
    )
    val: Any = setting(
        None,
        "labelled shards that they are judged on",
        changes_result=False,
        type_name=SHARDS_TYPE,
        is_path=True,
    )
    classes: str | None = setting(
        None,
        "file with a class name a line for both; default: classes.txt beside the shards, if there",
        changes_result=False,
    )
    every: int = setting(
        1000, "steps between measurements; 0: only at the end", changes_result=False
    )
    shots: tuple[int, ...] = setting(
        (1, 5, 10), "labelled images a class for few-shot; [] leaves it out", changes_result=False
    )
    num_seeds: int = setting(3, "choices of those images; the mean is logged", changes_result=False)
    neighbours: int = setting(NEIGHBOURS, "nearest images that vote in k-NN", changes_result=False)
    layer: int = setting(
        0,
        "block whose output is read, from 1 (the middle ones often do better); 0: the last",
        changes_result=False,
    )
    pooling: str = setting(
        "average",
        "average over patches, class (no loss in pretraining), or both",
        changes_result=False,
    )

    def __post_init__(self) -> None:
        for given, missing in (("train", "val"), ("val", "train")):
            require(
                bool(getattr(self, missing)) or not getattr(self, given),
                f"probe.{given} is set, but probe.{missing} is missing; name labelled shards for "
                "both, or for neither",
            )
        require(
            bool(self.train) or self.classes is None,
            f"probe.classes={self.classes} names the classes of probe.train and probe.val, which "
            "are missing; name labelled shards, or leave it out",
        )
        require(self.every >= 0, f"probe.every={self.every} is below 0; 0: only at the end")
        check_shots(self.shots, "probe.shots")
        for key in ("num_seeds", "neighbours"):
            value = getattr(self, key)
            require(value > 0, f"probe.{key}={value} must be above 0")


def check_shots(shots: tuple[int, ...], key: str) -> None:
    """Raise `UserError` unless all are numbers from 1."""
    require(
        all(num > 0 for num in shots),
        f"{key}={list(shots)} must be numbers from 1; try [1, 5, 10, 25]",
    )


class Splits(NamedTuple):
    """Labelled images to learn from and to be judged on.

    Attributes:
        train: In listed order, and so is `val`.
        val: Of no class that `train` lacks.
        labels: int64 (N,), of all images that `train` lists.
    """

    train: Samples
    val: Samples
    labels: np.ndarray


def open_splits(
    accelerator: Accelerator,
    specs: Any,
    data: ImageConfig,
    size: tuple[int, int],
    group: str,
    fraction: float = 1.0,
    channels: int = 3,
) -> Splits:
    """Open both splits and read their labels, before any image is read.

    Args:
        accelerator: What `start` gave.
        specs: Has the keys `train`, `val` and `classes`.
        data: How shards are read.
        size: (H, W) of the images.
        group: Where those keys are, for messages.
        fraction: Of the training images, how many are used at all.
        channels: Of the images.

    Raises:
        UserError: There are no such shards, one is in both, a sample has no label, or `val` has a
            class more.
    """
    train, val = (
        open_shards(accelerator, getattr(specs, key), f"{group}.{key}", data.storage, share)
        for key, share in (("train", fraction), ("val", 1.0))
    )
    on_main(accelerator, lambda: check_apart(train, val, (f"{group}.train", f"{group}.val")))
    labels, values = on_main(
        accelerator, lambda: label_splits(train, val, specs.classes, group, fraction)
    )
    train_samples, val_samples = (
        Samples(shards, size, seed=0, labelled=True, channels=channels, numbering=numbering)
        for shards, numbering in ((train, labels.train), (val, labels.val))
    )
    return Splits(train_samples, val_samples, values)


def check_neighbours(neighbours: int, labels: np.ndarray, keys: tuple[str, str]) -> None:
    """Raise `UserError` unless there are as many training images as are to vote."""
    require(
        neighbours <= len(labels),
        f"{keys[0]}={neighbours} is more than the {len(labels)} images of {keys[1]}; lower it",
    )


class Probe:
    """Measures a model's encoder on all ranks, and leaves stream and generators alone.

    Args:
        accelerator: What `start` gave.
        config: What is measured.
        data: How shards are read.
        encoder: As the model's; only its shape is looked at.
        part: This rank, and how many images it passes at a time.

    Raises:
        UserError: The probe's images or the encoder do not allow what is asked for.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: ProbeConfig,
        data: ImageConfig,
        encoder: VisionTransformer,
        part: Share,
    ) -> None:
        keys = ("probe.layer", "probe.pooling")
        [self._view] = make_views(encoder, [config.layer], [config.pooling], keys)
        size, channels = image_size(encoder), num_channels(encoder)
        self._splits = open_splits(accelerator, config, data, size, "probe", channels=channels)
        labels = self._splits.labels
        self._choices = choose_shots(
            labels, config.shots, config.num_seeds, ("probe.shots", "probe.train")
        )
        check_neighbours(config.neighbours, labels, ("probe.neighbours", "probe.train"))
        self._accelerator = accelerator
        self._neighbours = config.neighbours
        self._batch_size = part.micro_batch_size
        self._workers = data.workers

    @property
    def val(self) -> Manifest:
        """The shards that it is judged on."""
        return self._splits.val.manifest

    def __call__(self, model: Any) -> Measured:
        """Return `knn` and `{k}shot`, top-1 accuracies on `probe.val`; all ranks have to ask."""
        with open_to_parts(model):
            train, val = (self._extract(model.encoder, key) for key in ("train", "val"))
        unusable = (train.unusable, val.unusable)
        if any(split.is_all for split in unusable):
            return Measured({}, unusable)
        features = (found.features.get(self._view) for found in (train, val))
        figures = on_main(self._accelerator, lambda: self._figures(*features))
        return Measured(figures, unusable)

    def _extract(self, encoder: VisionTransformer, key: str) -> Extracted:
        samples: Samples = getattr(self._splits, key)
        size, workers = self._batch_size, self._workers
        name, views = f"probe.{key}", [self._view]
        return extract(self._accelerator, encoder, samples, views, size, workers, name)

    def _figures(self, train: Features | None, val: Features | None) -> dict[str, float]:
        assert train is not None, "the main process holds the features"
        assert val is not None
        device = exact_device(self._accelerator.device)
        train, val = train.to(device), val.to(device)
        accuracies = few_shot(train, val, self._choices)
        shots = {f"{num}shot": statistics.fmean(found) for num, found in accuracies.items()}
        return {"knn": knn(train, val, self._neighbours).top1, **shots}
