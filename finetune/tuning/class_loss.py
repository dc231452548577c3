"""Logits -> the loss of a classifier and what it means, whatever gives the logits."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.devices import sum_dtype
from pretrain.training.contract import Output, Sums


class ClassLoss(nn.Module):
    """The loss of a classifier, without parameters.

    Args:
        num_classes: K.
        is_multi_label: A sample has any number of classes.
        label_smoothing: Probability spread over all classes in training.
        weights: Of the classes in training, float32 (K,); None: all are 1.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        is_multi_label: bool = False,
        label_smoothing: float = 0.0,
        weights: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.is_multi_label = is_multi_label
        self.label_smoothing = label_smoothing
        buffer = None if weights is None else torch.from_numpy(weights)
        self.register_buffer("class_weights", buffer, persistent=False)

    def targets(self, label: Tensor) -> Tensor:
        """Return the probabilities that are asked for: float (B, K), smoothed in training.

        Args:
            label: int64 (B,) or, of many labels, (B, K) of 0 and 1.
        """
        smoothing = self.label_smoothing if self.training else 0.0
        if self.is_multi_label:
            return label.float() * (1 - smoothing) + smoothing / 2
        hot = F.one_hot(label, self.num_classes).float()
        return hot * (1 - smoothing) + smoothing / self.num_classes

    def forward(self, logits: Tensor, targets: Tensor, label: Tensor, weight: Tensor) -> Output:
        """Add up the losses of a batch.

        Args:
            logits: float32 (B, K).
            targets: What `targets` gave, or a mixture of such.
            label: int64 (B,) or (B, K), of the figures.
            weight: (B,).
        """
        loss = (self._losses(logits, targets) * weight).sum()
        with torch.no_grad():
            sums = self._sums(logits, label, weight)
            sums["loss"] = loss.detach().to(sum_dtype(loss.device))
        return Output(loss, sums, logits)

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of each image, in nats: (B,); of many labels, the mean over the classes."""
        weights = self.class_weights if self.training else None
        if self.is_multi_label:
            losses = F.binary_cross_entropy_with_logits(
                logits, targets, reduction="none", pos_weight=weights
            )
            return losses.mean(1)
        return F.cross_entropy(logits, targets, weights, reduction="none")

    def _sums(self, logits: Tensor, label: Tensor, weight: Tensor) -> Sums:
        dtype = sum_dtype(weight.device)
        sums = {"weight": weight.to(dtype).sum()}
        if not self.is_multi_label:
            sums["right"] = ((logits.argmax(1) == label) * weight).to(dtype).sum()
        return sums


def summarise(sums: Sums) -> dict[str, float]:
    """Turn sums into `loss` (nats) and, where a sample has one class, `accuracy`.

    Where images are mixed, the accuracy is against each image's own label.
    """
    figures = {"loss": sums["loss"] / sums["weight"]}
    if "right" in sums:
        figures["accuracy"] = sums["right"] / sums["weight"]
    return {name: float(value) for name, value in figures.items()}
