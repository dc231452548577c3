"""Heads that are fitted on patch features and name the class of each pixel.

A head is fitted for several settings at once and gives a map of classes for each: so what they
share, such as the nearest patches for several numbers of neighbours, is computed once.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.segmented import IGNORED
from data.settings import require
from pretrain.evaluation.classifiers import Linear, Report
from pretrain.evaluation.dense.patches import Patches, join_pixels, majorities
from pretrain.evaluation.features import Features

# (b, N, D) of some images -> for each setting the class of each pixel, int64 (b, H, W)
Predict = Callable[[Tensor], list[Tensor]]
IMAGES = 16  # at a time, fitted on and predicted


class Fit(NamedTuple):
    """What a head is fitted with, besides the features.

    Attributes:
        num_classes: K.
        device: Where it is computed.
        report: Is told of each setting that is fitted; 0: one goes on.
    """

    num_classes: int
    device: torch.device
    report: Report


# ---------------------------------------------------------------- a linear layer


class LinearSettings(NamedTuple):
    """How a linear layer is trained; only the rate differs between settings."""

    rate: float
    weight_decay: float
    epochs: int


def fit_linear(train: Patches, settings: Sequence[LinearSettings], fit: Fit) -> Predict:
    """Train a linear layer on patch tokens, its logits enlarged bilinearly to the masks' size.

    The loss is the cross-entropy over pixels, by AdamW with a rate that falls to 0 by half a
    cosine; weights start at 0, and the order of the images is drawn once.

    Source: DINOv2, arXiv:2304.07193, section 7.4 "linear", without its layer of batch norm:
    features are standardised.
    """
    layers = [_train_linear(train, one, fit) for one in settings]
    grid, size = train.grid, train.size  # not the features: what predicts outlives them

    @torch.no_grad()
    def predict(values: Tensor) -> list[Tensor]:
        values = values.to(fit.device)
        return [_enlarge(layer(values), grid, size).argmax(1) for layer in layers]

    return predict


def _train_linear(train: Patches, settings: LinearSettings, fit: Fit) -> nn.Linear:
    layer = nn.Linear(train.values.shape[2], fit.num_classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    layer.to(fit.device)
    solver = torch.optim.AdamW(
        layer.parameters(), settings.rate, weight_decay=settings.weight_decay
    )
    steps = -(-len(train.values) // IMAGES)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(solver, settings.epochs * steps)
    generator = np.random.default_rng(0)
    for _ in range(settings.epochs):
        order = torch.from_numpy(generator.permutation(len(train.values)))
        for images in map(train.at, order.split(IMAGES)):
            masks = images.masks.to(fit.device).long()
            logits = _enlarge(layer(images.values.to(fit.device)), train.grid, train.size)
            loss = F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="sum")
            solver.zero_grad()
            (loss / (masks != IGNORED).sum().clamp(min=1)).backward()
            solver.step()
            schedule.step()
            fit.report(0)
    fit.report(1)
    return layer.requires_grad_(False)


def _enlarge(logits: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Logits of patches (b, N, K) -> of pixels (b, K, H, W)."""
    maps = logits.transpose(1, 2).unflatten(2, grid)
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


# ---------------------------------------------------------------- patches that are kept


class Kept(NamedTuple):
    """Patches that heads are fitted on, each of the class that most of its pixels have.

    Attributes:
        values: float32 (M, D).
        pixels: uint8 (M, P), the classes of their pixels or `IGNORED`.
        classes: int64 (M,).
    """

    values: Tensor
    pixels: Tensor
    classes: Tensor


def keep_patches(train: Patches, num_classes: int, most: int) -> Kept:
    """Keep patches most of whose pixels have a class; of more than `most`, a choice drawn once.

    Raises:
        UserError: There is none.
    """
    parts = [part.pixels().flatten(0, 1) for part in train.split(IMAGES)]
    classes = torch.cat([majorities(pixels, num_classes) for pixels in parts])
    known = (classes != IGNORED).nonzero()[:, 0]
    require(
        len(known) > 0,
        "data.train: no patch has a class on most of its pixels; give more images, or smaller "
        "patches",
    )
    if len(known) > most:
        drawn = np.random.default_rng(0).permutation(len(known))[:most]
        known = known[torch.from_numpy(np.sort(drawn))]
    return Kept(train.values.flatten(0, 1)[known], torch.cat(parts)[known], classes[known])


# ---------------------------------------------------------------- logistic regression


def fit_logistic(train: Patches, penalties: Sequence[float], fit: Fit, most: int) -> Predict:
    """Fit a logistic regression on patches; all pixels of a patch get the patch's class.

    Args:
        train: Features that are standardised.
        penalties: As in `classifiers.logistic`.
        fit: The rest.
        most: Patches that it is fitted on at most.

    Source: CAPI, arXiv:2502.08769; its repository's eval_segmentation.py.
    """
    kept = keep_patches(train, fit.num_classes, most)
    places = torch.arange(len(kept.values))
    features = Features(kept.values, kept.classes, places).to(fit.device)
    fitted = [Linear.fit(features, penalty, fit.report) for penalty in penalties]
    grid, size = train.grid, train.size

    def predict(values: Tensor) -> list[Tensor]:
        patches = values.to(fit.device).flatten(0, 1)
        found = [linear(patches).argmax(1).view(len(values), -1, 1) for linear in fitted]
        return [join_pixels(classes, grid, size) for classes in found]

    return predict
