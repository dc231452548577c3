"""A transformer over images and sentences with the head of a classifier.

Source: Kim et al. 2021 (ViLT), arXiv:2102.03334, section 4.3, and its code for the layers.
"""

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from data.captions.vocabulary import Vocabulary
from finetune.tuning.class_loss import ClassLoss, summarise
from finetune.vilt.config import ViltFinetuneConfig
from pretrain.encoder.facts import image_data
from pretrain.training.contract import Output, Sums
from pretrain.vilt.building import canvas_of, pieces_of
from pretrain.vilt.pairs import PairEncoder
from pretrain.vilt.text import Pooler

_STD = 0.02


class ViltClassifier(PairEncoder):
    """Images with sentences -> classes: the pooled class token of the sentence, and two layers.

    Args:
        config: The run's, with what was left to `encoder.init` filled in.
        encoder: A timm VisionTransformer, alone the image half.
        vocabulary: Of the sentences.
        class_names: One a class, in order of the labels.
        weights: Of the classes in the loss in training, float32 (K,); None: all are 1.
    """

    def __init__(
        self,
        config: ViltFinetuneConfig,
        encoder: VisionTransformer,
        vocabulary: Vocabulary,
        class_names: list[str],
        weights: np.ndarray | None = None,
    ) -> None:
        data = config.data
        assert data.max_tokens is not None
        pieces, canvas = pieces_of(vocabulary), canvas_of(data)
        super().__init__(encoder, pieces, data.max_tokens, config.text.dropout, canvas)
        self.class_names = class_names
        self.is_multi_label = data.multi_label
        self.pooler = Pooler(self.width)
        self.head = _make_head(self.width, self.num_classes)
        self.class_loss = ClassLoss(
            self.num_classes,
            is_multi_label=data.multi_label,
            label_smoothing=config.head.label_smoothing,
            weights=weights,
        )
        image_data(encoder)["label_names"] = class_names

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def example_batch(self, num_images: int) -> dict[str, Tensor]:
        """Make a batch of sentences and black images, as `forward` takes it."""
        shape = (num_images, self.num_classes) if self.is_multi_label else (num_images,)
        label = torch.zeros(shape, dtype=torch.int64)
        return super().example_batch(num_images) | {"label": label}

    def forward(self, batch: dict[str, Tensor]) -> Output:
        """Classify a batch.

        Args:
            batch: `image`, `tokens`, `weight` and `label` (B,) or (B, K), and with images of their
                own aspect `grid` and `random_key`; see `CaptionedSamples`.
        """
        label = batch["label"].clamp(min=0)
        targets = self.class_loss.targets(label)
        return self.class_loss(self.logits(batch), targets, label, batch["weight"])

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Classify pairs: a batch's `image`, `tokens` and what goes with them -> float32 (B, K)."""
        fused = self.fuse(batch["tokens"], self.image_tokens(batch))
        return self.head(self.pooler(fused.text[:, 0])).float()

    def summarise(self, sums: Sums) -> dict[str, float]:
        """Turn sums into figures; see `finetune.tuning.class_loss`."""
        return summarise(sums)


def _make_head(width: int, num_classes: int) -> nn.Sequential:
    """Make the head: (B, D) -> (B, 2 D) -> (B, K)."""
    first, last = nn.Linear(width, 2 * width), nn.Linear(2 * width, num_classes)
    for layer in (first, last):
        nn.init.normal_(layer.weight, std=_STD)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.LayerNorm(2 * width), nn.GELU(), last)
