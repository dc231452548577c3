"""Measuring a frozen encoder: what both scripts are told, and what they share.

`fewshot.py` and `probe.py` read an encoder's features by layer and pooling, judge each, and write a
table and `result.json`.
"""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from accelerate import Accelerator
from timm.models.vision_transformer import VisionTransformer

from data.devices import exact_device
from data.samples import Samples
from data.text import count
from finetune.config import FewshotConfig, FrozenConfig
from finetune.frozen.config import LinearConfig
from finetune.frozen.feature_cache import CachedSplit
from finetune.frozen.opening import (
    Opened,
    begin_reading,
    claim_folder,
    count_images,
    open_encoder,
    say_fitted,
    show_fits,
)
from finetune.frozen.patch_file import require_room
from finetune.results import make_table, name_encoder, write_result
from pretrain.encoder import make_encoder
from pretrain.encoder.facts import image_size, num_channels
from pretrain.evaluation.classifiers import Report
from pretrain.evaluation.config import PATCH_HEADS
from pretrain.evaluation.features import PATCHES, Features, View, make_views
from pretrain.evaluation.probe import Splits, open_splits
from pretrain.ranks import on_main

logger = logging.getLogger(__name__)

Figures = dict[str, float]


# ---------------------------------------------------------------- one measurement


class Measurement(NamedTuple):
    """The result of a measure, on the main process.

    Attributes:
        text: The encoder's name, and the table.
        cells: What was judged: each view with its figures.
        encoder: The encoder that was measured.
        class_names: One a class, in the order of the labels.
        folder: Where the result is.
    """

    text: str
    cells: list[dict[str, Any]]
    encoder: VisionTransformer
    class_names: list[str]
    folder: Path


class Measured(NamedTuple):
    """An encoder's features of both splits, on the main process; empty on the others."""

    train: dict[View, Features]
    val: dict[View, Features]


class Judge(Protocol):
    """What turns features into figures."""

    def prepare(self, encoder: VisionTransformer, labels: np.ndarray) -> None:
        """See the labels of all training images; refuse what cannot be done with them."""
        ...

    def num_fits(self, view: View) -> int:
        """Return of how many fits it tells."""
        ...

    def __call__(self, view: View, train: Features, val: Features, report: Report) -> Figures:
        """Return the figures of a layer, with a pooling or a head that reads patches."""
        ...


def measure(
    config: FewshotConfig | LinearConfig, judge: Judge, about: dict[str, Any]
) -> Measurement | None:
    """Read the features on all ranks, judge each view on the main process, and write the result.

    Args:
        config: What is asked for.
        judge: What the features are told to, before any image is read and after.
        about: What else `result.json` says of the measure.

    Returns:
        What was found, on the main process.

    Raises:
        UserError: The images or the encoder do not allow what is asked for.
        RunStopped: Too many images cannot be used, or the result cannot be written.
    """
    begin, frozen = time.monotonic(), config.frozen
    opened = open_encoder(config, make_encoder)
    accelerator, data, encoder = opened
    views = _views(encoder, frozen)
    folder, of_encoder = claim_folder(opened, config)
    about = of_encoder | about
    splits = open_splits(
        accelerator,
        data,
        data,
        image_size(encoder),
        "data",
        data.fraction,
        num_channels(encoder),
        data.val_ratio,
    )
    judge.prepare(encoder, splits.labels)
    begin_reading(opened, frozen, len(splits.labels), splits.val.manifest.num_samples)
    features = _read(opened, splits, views, frozen, folder)
    accelerator.end_training()  # the other ranks need not wait for what follows
    if not accelerator.is_main_process:
        return None
    counts = _count(features, splits, data.max_bad_ratio)
    with show_fits(sum(map(judge.num_fits, views))) as progress:
        cells: list[dict[str, Any]] = []
        for view in views:
            figures = judge(view, *_on(accelerator, features, view), progress.update)
            cells.append({**view._asdict(), **figures})
            say_fitted(progress, f"layer {view.layer}, {view.pooling}: judged")
    result = {
        **about,
        "precision": frozen.precision,
        **counts,
        "seconds": round(time.monotonic() - begin, 3),
        "cells": cells,
        **cells[0],  # what is asked for first stands by itself
    }
    table = make_table(cells)
    logger.info("the result is in %s, the table below in %s", *write_result(folder, result, table))
    text = f"{name_encoder(about)}: {count(counts['num_val'], 'image')}\n\n{table}"
    return Measurement(text, cells, encoder, splits.class_names, folder)


def _views(encoder: VisionTransformer, frozen: FrozenConfig) -> list[View]:
    """Return what is judged, layer by layer: each pooling, then each head that reads patches."""
    keys = (f"{frozen.group}.layers", f"{frozen.group}.poolings")
    views: list[View] = []
    for layer in dict.fromkeys(frozen.numbers(len(encoder.blocks))):
        views += make_views(encoder, [layer], frozen.pooled, keys)
        views += [View(layer, head) for head in dict.fromkeys(frozen.patch_heads)]
    return views


def _source(view: View) -> View:
    """Return the view whose features are read for it."""
    return View(view.layer, PATCHES) if view.pooling in PATCH_HEADS else view


def _read(
    opened: Opened, splits: Splits, views: list[View], frozen: FrozenConfig, folder: Path
) -> Measured:
    accelerator, data, encoder = opened
    kept = Path(frozen.features or folder / "features")
    sources = list(dict.fromkeys(map(_source, views)))
    train, val = (
        CachedSplit(accelerator, encoder, samples, sources, kept, key)
        for key, samples in (("train", splits.train), ("val", splits.val))
    )
    num_bytes = train.num_new_bytes + val.num_new_bytes
    if num_bytes:
        keys = (f"{frozen.group}.features", f"{frozen.group}.layers")
        on_main(accelerator, lambda: require_room(kept, num_bytes, keys))
    return Measured(*(of.features(frozen.batch_size, data.workers) for of in (train, val)))


def _on(accelerator: Accelerator, features: Measured, view: View) -> tuple[Features, Features]:
    """Return the features of both splits on the device; of patches the labels alone."""
    device, source = exact_device(accelerator.device), _source(view)
    train, val = features.train[source], features.val[source]
    if source.pooling != PATCHES:
        return train.to(device), val.to(device)
    return (
        replace(train, labels=train.labels.to(device)),
        replace(val, labels=val.labels.to(device)),
    )


def _count(found: Measured, splits: Splits, max_bad_ratio: float) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    for key in ("train", "val"):
        samples: Samples = getattr(splits, key)
        features: dict[View, Features] = getattr(found, key)
        used = len(next(iter(features.values())).labels)
        counts |= count_images(key, samples.manifest, used, max_bad_ratio)
    return counts
