"""How right a classifier is, over all ranks: each adds up its batches, torchmetrics gathers them.

Samples of weight 0 (padding, and those that could not be read) count nowhere, so a figure is the
same on any number of ranks.
"""

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import (
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MultilabelAveragePrecision,
)
from torchmetrics.functional.classification import (
    binary_average_precision,
    multilabel_average_precision,
)
from torchmetrics.utilities import dim_zero_cat

from data.devices import exact_device
from data.labels.parse import NO_LABEL

_TOP = 5
_NUM_BINS = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks", section 5
_MAX_CONFUSION = 1_000  # classes; its matrix is then 8 MB on each rank


@dataclass(frozen=True)
class Figures:
    """The result of an evaluation.

    Attributes:
        scalars: By name; NaN where there was no sample.
        details: By class; plain lists and numbers for JSON, None where a class has no sample.
    """

    scalars: dict[str, float]
    details: dict[str, Any]


class Scores:
    """A classifier's figures, added up batch by batch; the same on any number of ranks.

    With one label: `loss` (cross entropy, nats), `accuracy`, `accuracy_top5` (top-K of fewer
    classes), `accuracy_balanced` (mean over the classes that occur), `calibration_error` (expected,
    over 15 bins of the confidence). Classes whose logits are equal rank by their number, as in
    `argmax`: all logits equal count as class 0 alone. A sample of no class, with the label
    `NO_LABEL`, counts as wrong in the first two accuracies and nowhere else; the details have
    `num_of_no_class` where there are some.

    With many: `loss` (binary cross entropy, nats, mean over the classes), `map` (average precision,
    mean over the classes with a positive), `map_micro` (of all decisions together). All scores are
    kept and gathered: 16 bytes a sample and class, on each rank.

    Args:
        num_classes: K.
        is_multi_label: Whether a sample has any number of classes.
        device: Where the logits are; without float64 there, all is counted on the CPU.
    """

    def __init__(
        self, num_classes: int, is_multi_label: bool, device: torch.device | str = "cpu"
    ) -> None:
        device = self._device = exact_device(torch.device(device))
        # in this order: `to` sets a metric back to single precision
        self._loss = MeanMetric(nan_strategy="disable").to(device).set_dtype(torch.float64)
        kind = _ManyLabels if is_multi_label else _OneLabel
        self._answers = kind(num_classes).to(device)
        # a rank that never has a sample must know shapes and types too when all are gathered
        logits = torch.zeros(0, num_classes, device=device)
        labels = torch.zeros_like(logits) if is_multi_label else torch.zeros(0, device=device)
        self.update(logits, labels.long(), torch.zeros(0, device=device))

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor, weight: Tensor) -> None:
        """Count a batch.

        Args:
            logits: float (B, K).
            labels: int64 (B,), `NO_LABEL` of no class; or (B, K) of 0 and 1 with many labels.
            weight: (B,); samples of weight 0 are left out.
        """
        logits, labels, weight = (part.to(self._device) for part in (logits, labels, weight))
        is_counted = weight > 0
        logits, labels = logits[is_counted].double(), labels[is_counted]
        self._loss.update(self._answers.losses(logits, labels))
        self._answers.count(logits, labels)

    def compute(self) -> Figures:
        """Return the figures over all ranks; all of them must call it."""
        figures = self._answers.figures()
        return Figures({"loss": float(self._loss.compute()), **figures.scalars}, figures.details)


# ---------------------------------------------------------------- one label a sample


class _ClassCounts(Metric):
    """Samples of each class, those right among them, and those whose label is among the top five.

    torchmetrics' own stat scores count them in a table of K x K a batch (3.5 GB of ImageNet-21k),
    and take no empty batch.
    """

    right: Tensor
    right_top5: Tensor
    support: Tensor
    others: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for name in ("right", "right_top5", "support"):
            zeros = torch.zeros(num_classes, dtype=torch.int64)
            self.add_state(name, zeros, dist_reduce_fx="sum")
        self.add_state("others", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, ranked: Tensor, labels: Tensor, num_others: Tensor) -> None:
        is_right = ranked[:, :_TOP] == labels[:, None]  # (B, 5)
        num_classes = len(self.support)
        self.right += labels[is_right[:, 0]].bincount(minlength=num_classes)
        self.right_top5 += labels[is_right.any(1)].bincount(minlength=num_classes)
        self.support += labels.bincount(minlength=num_classes)
        self.others += num_others

    def compute(self) -> tuple[list[int], list[int], list[int], int]:
        others = int(self.others)
        return self.right.tolist(), self.right_top5.tolist(), self.support.tolist(), others


class _OneLabel(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.counts = _ClassCounts(num_classes)
        self.calibration = MulticlassCalibrationError(num_classes, _NUM_BINS, validate_args=False)
        self.confusion = (
            MulticlassConfusionMatrix(num_classes, validate_args=False)
            if num_classes <= _MAX_CONFUSION
            else None
        )

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        has_class = labels != NO_LABEL
        return F.cross_entropy(logits[has_class], labels[has_class], reduction="none")

    def count(self, logits: Tensor, labels: Tensor) -> None:
        has_class = labels != NO_LABEL
        num_others = (~has_class).sum()
        logits, labels = logits[has_class], labels[has_class]
        # stable: topk may name any of the equal logits of a zero-initialised head
        ranked = logits.sort(dim=1, descending=True, stable=True).indices  # (B, K)
        self.counts.update(ranked, labels, num_others)
        # torchmetrics takes a batch of logits that are all in 0..1 for probabilities
        self.calibration.update(logits.softmax(1), labels)
        if self.confusion is not None:
            with _counting_freely():
                self.confusion.update(ranked[:, 0], labels)

    def figures(self) -> Figures:
        right, right_top5, support, num_others = self.counts.compute()
        total = sum(support) + num_others
        by_class = [_ratio(r, n) for r, n in zip(right, support, strict=True)]
        occurring = [ratio for ratio in by_class if ratio is not None]
        scalars = {
            "accuracy": _ratio(sum(right), total, math.nan),
            "accuracy_top5": _ratio(sum(right_top5), total, math.nan),
            "accuracy_balanced": _ratio(math.fsum(occurring), len(occurring), math.nan),
            "calibration_error": float(self.calibration.compute()),
        }
        details: dict[str, Any] = {"accuracy_by_class": by_class, "support": support}
        if num_others:
            details["num_of_no_class"] = num_others
        if self.confusion is None:
            details["no_confusion"] = f"{len(support)} classes, over {_MAX_CONFUSION}"
        else:
            table = self.confusion.compute().reshape(len(support), -1)  # torchmetrics squeezes one
            details["confusion"] = table.tolist()  # by true class, then by answer
        return Figures(scalars, details)


@contextmanager
def _counting_freely() -> Generator[None]:
    """Leave deterministic mode: torchmetrics then counts in (B, K^2) integers, 2 GB of ImageNet.

    Whole numbers have the same sum in any order.
    """
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(is_deterministic)


# ---------------------------------------------------------------- many labels a sample


class _AveragePrecision(MultilabelAveragePrecision):
    """Average precision (K,), NaN without a positive; that of all decisions; and positives (K,).

    torchmetrics gives a class without a positive a figure and a warning.
    """

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scores, targets = dim_zero_cat(self.preds), dim_zero_cat(self.target)  # (N, K)
        support = targets.sum(0)
        occurs = support > 0
        by_class = scores.new_full(support.shape, math.nan)
        micro = scores.new_tensor(math.nan)
        if occurs.any():
            options: Any = {"validate_args": False}
            own, num = (scores[:, occurs], targets[:, occurs]), int(occurs.sum())
            found = multilabel_average_precision(*own, num_labels=num, average=None, **options)
            by_class[occurs] = found.to(by_class.dtype)
            micro = binary_average_precision(scores.flatten(), targets.flatten(), **options)
        return by_class, micro, support


class _ManyLabels(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.precision = _AveragePrecision(num_classes, average=None, validate_args=False)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none").mean(1)

    def count(self, logits: Tensor, labels: Tensor) -> None:
        self.precision.update(logits.sigmoid(), labels.long())

    def figures(self) -> Figures:
        by_class, micro, support = self.precision.compute()
        by_class, support = by_class.reshape(-1), support.reshape(-1)
        scalars = {"map": float(by_class[support > 0].mean()), "map_micro": float(micro)}
        plain = [None if math.isnan(value) else value for value in by_class.tolist()]
        return Figures(scalars, {"average_precision": plain, "support": support.tolist()})


def _ratio(part: float, whole: int, otherwise: Any = None) -> Any:
    return part / whole if whole else otherwise
