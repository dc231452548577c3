"""An encoder with one zero-initialised linear head, and its loss.

Source: Dosovitskiy et al. 2021, section 3.2: the pretraining head is dropped, a D x K layer of
zeros attached.
"""

from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_stat_scores

from data.settings import require, setting
from pretrain.encoder import Normalise
from pretrain.model import Output, Sums

_TOP = 5


@dataclass(frozen=True)
class HeadConfig:
    """How the head is trained."""

    label_smoothing: float = setting(0.0, "probability spread over all classes")

    def __post_init__(self) -> None:
        require(
            0 <= self.label_smoothing < 1,
            f"head.label_smoothing={self.label_smoothing} is not in [0, 1)",
        )


class Classifier(nn.Module):
    """An encoder whose own `head` classifies its patch average.

    The head is timm's, so the saved encoder is a whole timm classifier.

    Args:
        encoder: Its head is replaced.
        num_classes: K.
        config: How the head is trained.
    """

    def __init__(self, encoder: VisionTransformer, num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        encoder.reset_classifier(num_classes)
        assert isinstance(encoder.head, nn.Linear)
        nn.init.zeros_(encoder.head.weight)
        nn.init.zeros_(encoder.head.bias)
        self.encoder = encoder
        self.normalise = Normalise(encoder)
        self.num_classes = num_classes
        self.label_smoothing = config.label_smoothing

    def forward(self, batch: dict[str, Tensor]) -> Output:
        """Classify a batch.

        Args:
            batch: `image` uint8 (B, 3, H, W), `weight` (B,), `label` int64 (B,).
        """
        weight = batch["weight"]
        label = batch["label"].clamp(min=0)  # padding has none, and weight 0
        logits = self.encoder(self.normalise(batch["image"])).float()  # (B, K)
        smoothing = self.label_smoothing if self.training else 0.0
        losses = F.cross_entropy(logits, label, reduction="none", label_smoothing=smoothing)
        loss = (losses * weight).sum()
        with torch.no_grad():
            sums = self._sums(logits, label, weight)
            sums["loss"] = loss.detach().double()
        return Output(loss, sums)

    def _sums(self, logits: Tensor, label: Tensor, weight: Tensor) -> Sums:
        # samples of weight 0 count as of a class that is ignored
        counted = label.masked_fill(weight == 0, -1)
        scores = multiclass_stat_scores(
            logits, counted, self.num_classes, average=None, ignore_index=-1, validate_args=False
        )  # (K, 5): true and false positives, true and false negatives, support
        top = logits.topk(min(_TOP, self.num_classes)).indices  # (B, 5)
        return {
            "right": scores[:, 0].double(),
            "support": scores[:, 4].double(),
            "right_top5": ((top == counted[:, None]).any(1)).double().sum(),
            "weight": weight.double().sum(),
        }

    def summarise(self, sums: Sums) -> dict[str, float]:
        """Turn sums into `loss` (nats), `accuracy`, `accuracy_top5` and `accuracy_balanced`.

        The balanced accuracy is the mean over the classes that occur.
        """
        occurs = sums["support"] > 0
        figures = {
            "loss": sums["loss"] / sums["weight"],
            "accuracy": sums["right"].sum() / sums["weight"],
            "accuracy_top5": sums["right_top5"] / sums["weight"],
            "accuracy_balanced": (sums["right"][occurs] / sums["support"][occurs]).mean(),
        }
        return {name: float(value) for name, value in figures.items()}
