"""How well heads on patch features name pixels: settings chosen on held-out images, and figures."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from data.segmented import IGNORED
from pretrain.evaluation.dense.heads import IMAGES, Fit, Predict
from pretrain.evaluation.dense.patches import Patches

_HELD_OUT = 10  # a tenth of the training images chooses among settings
MIN_IMAGES = _HELD_OUT  # that allow it

Head = Callable[[Patches, Sequence[Any], Fit], Predict]


class Figures(NamedTuple):
    """What a confusion matrix says, over the classes that the masks have.

    Attributes:
        miou: Mean over those classes of `iou`.
        pixel_accuracy: The share of pixels whose class is right.
        class_accuracy: Mean over those classes of `accuracy`.
        iou: By class, the pixels that are rightly of it, over those that are or are said to be;
            None of a class that no mask has.
        accuracy: By class, the share of its pixels that are right; None likewise.
        pixels: By class, its share of all pixels.
    """

    miou: float
    pixel_accuracy: float
    class_accuracy: float
    iou: list[float | None]
    accuracy: list[float | None]
    pixels: list[float]

    @classmethod
    def of(cls, confusion: Tensor) -> "Figures":
        """Read a matrix of pixels, int64 (K, K): the rows are the true classes."""
        right, true, said = confusion.diag(), confusion.sum(1), confusion.sum(0)
        there = true > 0
        iou = right.double() / (true + said - right).clamp(min=1)
        accuracy = right.double() / true.clamp(min=1)
        return cls(
            float(iou[there].mean()),
            float(right.sum() / true.sum()),
            float(accuracy[there].mean()),
            _where(there, iou),
            _where(there, accuracy),
            (true.double() / true.sum()).tolist(),
        )


def _where(there: Tensor, values: Tensor) -> list[float | None]:
    return [v if t else None for v, t in zip(values.tolist(), there.tolist(), strict=True)]


def count_pixels(images: Patches, predict: Predict, num_settings: int, fit: Fit) -> list[Tensor]:
    """Compare each setting's answers with the masks: confusion matrices, int64 (K, K)."""
    matrices = [
        MulticlassConfusionMatrix(fit.num_classes, ignore_index=IGNORED, validate_args=False)
        for _ in range(num_settings)
    ]
    for part in images.split(IMAGES):
        truth = part.masks.long()
        for matrix, classes in zip(matrices, predict(part.values), strict=True):
            matrix.update(classes.cpu(), truth)
        fit.report(0)
    return [matrix.compute() for matrix in matrices]


class Judged(NamedTuple):
    """A head, by the setting that did best on held-out images.

    Attributes:
        setting: That one.
        held_out: Its mIoU there; None where the images are too few to hold some out.
        figures: On the validation images, after a fit on all training images.
        predict: What it is then.
    """

    setting: Any
    held_out: float | None
    figures: Figures
    predict: Predict


def judge(head: Head, settings: Sequence[Any], train: Patches, val: Patches, fit: Fit) -> Judged:
    """Choose the setting of the best mIoU on a tenth of the training images, and judge it on `val`.

    Args:
        head: Fits a head.
        settings: To choose from; with fewer than `MIN_IMAGES` images it is the first.
        train: Features that are standardised.
        val: Likewise.
        fit: The rest.
    """
    best, held_out = settings[0], None
    if len(train.values) >= MIN_IMAGES:
        drawn = torch.from_numpy(np.random.default_rng(0).permutation(len(train.values)))
        held, fitted = (part.sort().values for part in (drawn[::_HELD_OUT], _others(drawn)))
        predict = head(train.at(fitted), settings, fit)
        matrices = count_pixels(train.at(held), predict, len(settings), fit)
        scores = [Figures.of(matrix).miou for matrix in matrices]
        if not np.isnan(scores).all():  # else no pixel there has a class
            place = int(np.nanargmax(scores))
            best, held_out = settings[place], scores[place]
    predict = head(train, [best], fit)
    [matrix] = count_pixels(val, predict, 1, fit)
    return Judged(best, held_out, Figures.of(matrix), predict)


def _others(drawn: Tensor) -> Tensor:
    return drawn[torch.arange(len(drawn)) % _HELD_OUT != 0]


def standardise(train: Patches, val: Patches) -> None:
    """Bring features to mean 0 and deviation 1 over the training patches, in place."""
    mean = _mean_patch(train, lambda values: values)
    deviation = _mean_patch(train, lambda values: (values - mean).square()).sqrt() + 1e-6
    for images in (train, val):
        images.values.sub_(mean.float()).div_(deviation.float())


def _mean_patch(images: Patches, of: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the mean over all patches of what is made of their features, in float64: (D,)."""
    parts = [of(values.double()).sum((0, 1)) for values in images.values.split(IMAGES)]
    return torch.stack(parts).sum(0) / images.values[..., 0].numel()
