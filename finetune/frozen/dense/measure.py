"""Dense evaluation: patch features by layer on all ranks, heads judged on the main process."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from data.devices import exact_device
from data.disks import explain
from data.index.manifest import Manifest
from data.segmented import IGNORED
from data.settings import require
from data.text import count, name_some
from finetune.backbone import make_backbone
from finetune.frozen.dense.config import DenseConfig, SegmentationConfig
from finetune.frozen.dense.pictures import choose_places, draw_predictions, save_png
from finetune.frozen.dense.splits import Segmented, open_segmented
from finetune.frozen.dense.table import best_of, make_cell, make_tables
from finetune.frozen.opening import (
    begin_reading,
    claim_folder,
    count_images,
    open_encoder,
    say_edges,
    say_fitted,
    show_fits,
)
from finetune.results import name_encoder, write_result
from pretrain.encoder.facts import image_size, num_channels
from pretrain.evaluation.dense.heads import Fit, LinearSettings, fit_linear, fit_logistic
from pretrain.evaluation.dense.judging import MIN_IMAGES, Head, Judged, judge, standardise
from pretrain.evaluation.dense.memory import check_memory, count_bytes
from pretrain.evaluation.dense.nearest import NearestSettings, fit_nearest
from pretrain.evaluation.dense.patches import (
    Extracted,
    Layer,
    Patches,
    count_layers,
    extract_patches,
    find_layers,
)
from pretrain.pictures import draw
from pretrain.ranks import on_main
from pretrain.records.bad_samples import name_once
from pretrain.records.logs import JsonLines

logger = logging.getLogger(__name__)

_LEDGER, _PICTURE = "bad_samples.jsonl", "predictions.png"


def measure(config: SegmentationConfig) -> str | None:
    """Read patch features and masks, judge each head on each layer, and write the result.

    Returns:
        The encoder's name and the tables, on the main process.

    Raises:
        UserError: The images or the encoder do not allow what is asked for, or memory does not.
        RunStopped: Too many images cannot be used, or the result cannot be written.
    """
    begin, dense = time.monotonic(), config.dense
    opened = open_encoder(config, make_backbone)
    accelerator, data, encoder = opened
    size = image_size(encoder)
    layers = find_layers(encoder, dense.numbers(count_layers(encoder)), "dense.layers")
    folder, about = claim_folder(opened, config)
    splits = open_segmented(accelerator, data, size, num_channels(encoder))
    num_train, num_val = (s.manifest.num_samples for s in (splits.train, splits.val))
    _check_settings(dense, num_train, data.used)
    most = 0 if set(dense.heads) == {"linear"} else dense.max_patches
    needed = count_bytes(layers, num_train, num_val, size, most)
    on_main(accelerator, lambda: check_memory(needed, num_train + num_val))

    begin_reading(opened, dense, num_train, num_val)
    train, val = (
        extract_patches(accelerator, encoder, samples, layers, dense.batch_size, data.workers, key)
        for key, samples in (("data.train", splits.train), (data.val_key, splits.val))
    )
    accelerator.end_training()  # the other ranks need not wait for what follows
    if not accelerator.is_main_process:
        return None
    counts = _count(train, val, splits, folder, data.max_bad_ratio)
    _name_unlearnt(train, val, splits.names)
    found = _judge_all(layers, train, val, dense, len(splits.names), accelerator.device)
    result = {
        **about,
        "precision": dense.precision,
        "image_size": list(size),
        "classes": splits.names,
        **counts,
        "seconds": round(time.monotonic() - begin, 3),
        "pixels_by_class": found.pixels,
        "cells": found.cells,
        **found.cells[0],  # what is asked for first stands by itself
    }
    tables = make_tables(found.cells, splits.names, found.pixels)
    logger.info(
        "the result is in %s, the tables below in %s", *write_result(folder, result, tables)
    )
    _draw(found, val, splits, folder)
    return f"{name_encoder(about)}: {count(counts['num_val'], 'image')}\n\n{tables}"


def _check_settings(dense: DenseConfig, num_images: int, used: str) -> None:
    """Raise `UserError` where there are too few images to choose among settings with."""
    for head, number in dense.num_settings.items():
        require(
            number == 1 or num_images >= MIN_IMAGES,
            f"dense.heads: {head} has {number} settings, but {used} only {num_images} images to "
            "choose among them; name one rate, penalty, number of neighbours and distance",
        )


def _count(
    train: Extracted, val: Extracted, splits: Segmented, folder: Path, max_bad_ratio: float
) -> dict[str, Any]:
    """Name the images that cannot be used in the ledger of this run, and count the others."""
    (folder / _LEDGER).unlink(missing_ok=True)
    ledger = JsonLines(folder / _LEDGER)
    try:
        for found in (train, val):
            entries = sorted(found.unusable.entries, key=lambda entry: entry.position or 0)
            name_once(ledger, 0, entries, found.unusable.split)
    finally:
        ledger.close()
    counts: dict[str, Any] = {}
    images: Manifest
    for key, found, images in (
        ("train", train, splits.train.manifest),
        ("val", val, splits.val.manifest),
    ):
        counts |= count_images(key, images, len(found.places), max_bad_ratio)
    return counts


def _name_unlearnt(train: Extracted, val: Extracted, names: list[str]) -> None:
    """Say which classes are judged although no training mask has them.

    Raises:
        UserError: No pixel of a split has a class.
    """
    if missing := sorted(_classes_of(val) - _classes_of(train)):
        logger.warning(
            "%s has the %s [%s], which no mask of data.train has: no head can name them, and their "
            "IoU counts as 0",
            val.unusable.split,
            "class" if len(missing) == 1 else "classes",
            name_some([names[number] for number in missing]),
        )


def _classes_of(found: Extracted) -> set[int]:
    classes = set(np.unique(found.patches[0].masks.numpy()).tolist()) - {IGNORED}
    require(
        len(classes) > 0,
        f"{found.unusable.split}: no pixel has a class, all are data.ignored; give other images, "
        "or mend the key",
    )
    return classes


# ---------------------------------------------------------------- heads


class _Found(NamedTuple):
    """What was judged.

    Attributes:
        cells: For `result.json`.
        pixels: By class, its share of the validation images' pixels.
        shown: Places of the usable validation images of the picture.
        best: Their classes by the best head, int64 (n, H, W).
    """

    cells: list[dict[str, Any]]
    pixels: list[float]
    shown: Tensor
    best: Tensor


def _judge_all(
    layers: Sequence[Layer],
    train: Extracted,
    val: Extracted,
    dense: DenseConfig,
    num_classes: int,
    device: Any,
) -> _Found:
    shown = choose_places(len(val.places), dense.pictures)
    cells: list[dict[str, Any]] = []
    pictures: list[Tensor] = []
    pixels: list[float] = []
    heads = _make_heads(dense)
    chosen: dict[str, list[Any]] = {name: [] for name in heads}
    num_fits = len(layers) * sum(number + 1 for number in dense.num_settings.values())
    with show_fits(num_fits) as progress:
        fit = Fit(num_classes, exact_device(device), progress.update)
        for layer, own_train, own_val in zip(layers, train.patches, val.patches, strict=True):
            standardise(own_train, own_val)
            for name, (head, settings) in heads.items():
                judged = judge(head, settings, own_train, own_val, fit)
                cells.append(make_cell(layer.number, name, judged))
                chosen[name].append(judged.setting)
                say_fitted(
                    progress, f"layer {layer.number}, {name}: {judged.figures.miou:.1%} mIoU"
                )
                pictures.append(_show(own_val, shown, judged))
                pixels = judged.figures.pixels
    _say_edges(dense, chosen)
    return _Found(cells, pixels, shown, pictures[best_of(cells)])


def _say_edges(dense: DenseConfig, chosen: dict[str, list[Any]]) -> None:
    rates = [settings.rate for settings in chosen.get("linear", [])]
    say_edges("dense.rates", dense.rates, rates)
    say_edges("dense.penalties", dense.penalties, chosen.get("logistic", []))


def _make_heads(dense: DenseConfig) -> dict[str, tuple[Head, Sequence[Any]]]:
    """Return by name what fits a head, and the settings to choose from."""
    rates = [LinearSettings(rate, dense.weight_decay, dense.epochs) for rate in dense.rates]
    nearest = [NearestSettings(k, by) for by in dense.distances for k in dense.neighbours]
    kept = {"most": dense.max_patches}
    every: dict[str, tuple[Callable[..., Any], Sequence[Any]]] = {
        "linear": (fit_linear, rates),
        "logistic": (partial(fit_logistic, **kept), list(dense.penalties)),
        "knn": (partial(fit_nearest, **kept), nearest),
    }
    return {head: every[head] for head in dict.fromkeys(dense.heads)}


def _show(val: Patches, places: Tensor, judged: Judged) -> Tensor:
    chosen = val.at(places)
    if not len(places):
        return chosen.masks.long()
    [classes] = judged.predict(chosen.values)
    return classes.cpu()


def _draw(found: _Found, val: Extracted, splits: Segmented, folder: Path) -> None:
    if not len(found.shown):
        return
    if not draw.is_possible():
        logger.info("no %s: it needs matplotlib (pip install -e '.[report]')", _PICTURE)
        return
    places, masks = val.places[found.shown], val.patches[0].masks[found.shown]
    path = folder / _PICTURE
    try:
        save_png(draw_predictions(splits.val, places, masks, found.best, splits.names), path)
    except OSError as error:
        logger.warning("%s cannot be written: %s", path, explain(error))
