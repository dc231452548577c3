"""Probes while pretraining: few-shot and k-NN accuracy of the encoder as it is; its spectrum."""

import logging
import statistics
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from timm.models.vision_transformer import VisionTransformer

from data.config import ImageConfig
from data.devices import exact_device
from data.index.manifest import Manifest
from data.labels.labelled import label_splits
from data.reading.overlap import check_apart
from data.samples import Samples
from data.settings import require
from data.stream import Share
from pretrain.encoder.facts import image_size, num_channels
from pretrain.evaluation.classifiers import choose_shots, few_shot, knn
from pretrain.evaluation.config import ProbeConfig
from pretrain.evaluation.features import PATCHES, Extracted, Features, View, extract, make_views
from pretrain.evaluation.spectrum import Figures, Moments, describe_spectrum
from pretrain.evaluation.unlabelled import (
    Pass,
    check_number,
    choose_views,
    least_images,
    read_spectra,
)
from pretrain.ranks import on_main, open_shards, open_val
from pretrain.training.contract import Measured
from pretrain.training.parallel import open_to_parts

logger = logging.getLogger(__name__)


class Splits(NamedTuple):
    """Labelled images to learn from and to be judged on.

    Attributes:
        train: In listed order, and so is `val`.
        val: Of no class that `train` lacks.
        labels: int64 (N,), of all images that `train` lists.
        class_names: One a class, in the order of the labels.
    """

    train: Samples
    val: Samples
    labels: np.ndarray
    class_names: list[str]


def open_splits(
    accelerator: Accelerator,
    specs: Any,
    data: ImageConfig,
    size: tuple[int, int],
    group: str,
    fraction: float = 1.0,
    channels: int = 3,
    val_ratio: float = 0.0,
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
        val_ratio: Of the training images, how many are set aside and are `val`.

    Raises:
        UserError: There are no such shards, one is in both, a sample has no label, or `val` has a
            class more.
    """
    train, val = open_pair(accelerator, specs, data, group, fraction, val_ratio)
    labels, values = on_main(
        accelerator, lambda: label_splits(train, val, specs.classes, group, fraction)
    )
    train_samples, val_samples = (
        Samples(shards, size, seed=0, labelled=True, channels=channels, numbering=numbering)
        for shards, numbering in ((train, labels.train), (val, labels.val))
    )
    return Splits(train_samples, val_samples, values, labels.names)


def open_pair(
    accelerator: Accelerator,
    specs: Any,
    data: ImageConfig,
    group: str,
    fraction: float = 1.0,
    val_ratio: float = 0.0,
) -> tuple[Manifest, Manifest]:
    """Open the shards of both splits; arguments and what is raised are those of `open_splits`."""
    keys = f"{group}.train", f"{group}.val"
    train = open_shards(accelerator, specs.train, keys[0], data.storage, fraction, None, val_ratio)
    val = open_val(accelerator, train, specs.val, keys[1], data.storage)
    on_main(accelerator, lambda: check_apart(train, val, keys))
    return train, val


def check_neighbours(neighbours: int, labels: np.ndarray, keys: tuple[str, str]) -> None:
    """Raise `UserError` unless there are as many training images as are to vote."""
    require(
        neighbours <= len(labels),
        f"{keys[0]}={neighbours} is more than the {len(labels)} images of {keys[1]}; lower it",
    )


_KEYS = ("probe.layer", "probe.pooling")


class Probe:
    """Measures a model's encoder by labelled images, and leaves stream and generators alone.

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
        [self._view] = make_views(encoder, [config.layer], [config.pooling], _KEYS)
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


class SpectrumProbe:
    """Measures a model's encoder by images without labels, as `Probe` does by labelled ones.

    Args:
        accelerator: What `start` gave.
        config: What is measured.
        data: How shards are read.
        encoder: As the model's; only its shape is looked at.
        part: This rank, and how many images it passes at a time.

    Raises:
        UserError: The images or the encoder do not allow what is asked for.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: ProbeConfig,
        data: ImageConfig,
        encoder: VisionTransformer,
        part: Share,
    ) -> None:
        name = "probe.images"
        self._views = choose_views(encoder, [config.layer], config.pooling, _KEYS)
        images = open_shards(accelerator, config.images, name, data.storage)
        self._least = least_images(encoder, config.pooling)
        check_number(images.num_samples, self._least, name)
        size, channels = image_size(encoder), num_channels(encoder)
        self._samples = Samples(images, size, seed=0, channels=channels)
        self._pass = Pass(accelerator, part.micro_batch_size, data.workers, name)

    def __call__(self, model: Any) -> Measured:
        """Return `MEASURES`, and those of patches; all ranks have to ask."""
        with open_to_parts(model):
            found = read_spectra(self._pass, model.encoder, self._samples, self._views)
        if found.num_images < self._least:
            logger.warning(
                "%s: %d images can be read, and %d are the least: no figures of them",
                *(self._pass.name, found.num_images, self._least),
            )
            return Measured({}, (found.unusable,))
        figures = on_main(self._pass.accelerator, lambda: _name_figures(found.moments))
        return Measured(figures, (found.unusable,))


def _name_figures(moments: dict[View, Moments]) -> Figures:
    figures: Figures = {}
    for view, of_view in moments.items():
        end = f"_{PATCHES}" if view.pooling == PATCHES else ""
        figures |= {f"{name}{end}": value for name, value in describe_spectrum(of_view).items()}
    return figures
