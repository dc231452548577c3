"""An encoder with a zero-initialised head: a batch -> the loss, and what the loss means.

Source: Dosovitskiy et al. 2021, section 3.2: the pretraining head is dropped, a D x K layer of
zeros attached. Supervised pretraining has a hidden layer (tanh) before it; section 3.1.
"""

from typing import Any, Self

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from data.settings import UserError, require
from finetune.backbone import is_transformer
from finetune.config import TIMM_POOLINGS, HeadConfig, MixConfig
from finetune.mixing import Mixing, fill_empty_slots
from finetune.tuning.class_loss import ClassLoss, summarise
from pretrain.encoder.facts import image_data
from pretrain.encoder.tokens import Normalise, patch_tokens
from pretrain.training.contract import Output, Sums
from pretrain.training.examples import example_batch

MULTI_LABEL = "multi_label_classification"


class Classifier(nn.Module):
    """An encoder and its head.

    A linear head on one pooling is timm's own `encoder.head`, so that the saved encoder is a whole
    timm classifier. Another head stands beside the encoder, which is then saved without one.

    Args:
        encoder: A timm model, the head of which is replaced.
        class_names: One a class, in order of the labels.
        config: What the head is.
        is_multi_label: A sample has any number of classes.
        mix: Mixing in training.
        weights: Of the classes in the loss in training, float32 (K,); None: all are 1.

    Raises:
        UserError: The encoder has no such pooling or blocks.
    """

    def __init__(
        self,
        encoder: Any,
        class_names: list[str],
        config: HeadConfig,
        *,
        is_multi_label: bool = False,
        mix: MixConfig | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.class_names = class_names
        self.pooling = config.pooling
        self.is_multi_label = is_multi_label
        self.class_loss = ClassLoss(
            self.num_classes,
            is_multi_label=is_multi_label,
            label_smoothing=config.label_smoothing,
            weights=weights,
        )
        self.head = self._make_head(config)
        self.normalise = Normalise(encoder)
        image_data(encoder)["label_names"] = class_names
        if is_multi_label:
            encoder.problem_type = MULTI_LABEL
        self._tuned = self._freeze(config.tuned_blocks)
        self._mixing = None
        if mix is not None and mix.is_on:
            self._mixing = Mixing(mix, self.num_classes, config.label_smoothing, is_multi_label)
        has_batch_norm = any(isinstance(layer, _BatchNorm) for layer in encoder.modules())
        self._fills = has_batch_norm or self._mixing is not None

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def example_batch(self, num_images: int) -> dict[str, Tensor]:
        """Make a batch of black images, as `forward` takes it."""
        shape = (num_images, self.num_classes) if self.is_multi_label else (num_images,)
        label = torch.zeros(shape, dtype=torch.int64)
        return example_batch(self.encoder, num_images) | {"label": label}

    @property
    def last_layer(self) -> nn.Linear:
        """The layer that gives the logits."""
        layer = self.encoder.get_classifier() if self.head is None else self.head[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def _make_head(self, config: HeadConfig) -> nn.Sequential | None:
        """Attach a head to the encoder, or return one to stand beside it."""
        _check_pooling(self.encoder, config.pooling)
        is_timms = config.kind == "linear" and config.pooling != "both"
        pooling = TIMM_POOLINGS.get(config.pooling) if is_transformer(self.encoder) else None
        self.encoder.reset_classifier(self.num_classes if is_timms else 0, pooling)
        head = None
        if not is_timms:
            width = int(self.encoder.head_hidden_size)
            num_inputs = 2 * width if config.pooling == "both" else width
            hidden = [nn.Linear(num_inputs, width), nn.Tanh()] if config.kind == "mlp" else []
            last = nn.Linear(width if hidden else num_inputs, self.num_classes)
            head = nn.Sequential(*hidden, last)
        layer = self.encoder.get_classifier() if head is None else head[-1]
        if not isinstance(layer, nn.Linear):
            raise UserError(
                "encoder.name is a model whose head is not one linear layer; name another"
            )
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return head

    # ---- what is trained

    def _freeze(self, tuned_blocks: int | None) -> list[nn.Module] | None:
        """Freeze what is not tuned; return the tuned parts of the encoder, None for all of it."""
        if tuned_blocks is None:
            return None
        blocks: list[nn.Module] = list(self.encoder.blocks) if is_transformer(self.encoder) else []
        require(
            tuned_blocks <= len(blocks),
            f"head.tuned_blocks={tuned_blocks}, but the encoder has {len(blocks)} transformer "
            "blocks; 0 trains the head alone, null everything",
        )
        tuned = blocks[len(blocks) - tuned_blocks :]
        if tuned:
            tuned.append(self.encoder.norm)
        self.encoder.requires_grad_(False)
        for part in [*tuned, self.last_layer]:
            part.requires_grad_(True)
        return tuned

    def train(self, mode: bool = True) -> Self:
        """Switch to training; frozen parts stay as they are in evaluation."""
        super().train(mode)
        if self._tuned is not None:
            self.encoder.eval()
            for part in self._tuned:
                part.train(mode)
        return self

    # ---- running it

    def forward(self, batch: dict[str, Tensor]) -> Output:
        """Classify a batch.

        Args:
            batch: `image` uint8 (B, C, H, W), `weight` (B,), `label` int64 (B,) or (B, K).
        """
        images, label, weight = batch["image"], batch["label"].clamp(min=0), batch["weight"]
        if self.training and self._fills:
            images, label = fill_empty_slots(images, label, weight)
        normalised, targets = self.normalise(images), self.class_loss.targets(label)
        if self.training and self._mixing is not None:
            normalised, targets = self._mixing(normalised, label)
        return self.class_loss(self._logits(normalised), targets, label, weight)

    def logits(self, images: Tensor) -> Tensor:
        """Classify images: uint8 (B, C, H, W) -> float32 (B, K)."""
        return self._logits(self.normalise(images))

    def _logits(self, images: Tensor) -> Tensor:
        tokens = self.encoder.forward_features(images)
        if self.head is None:
            return self.encoder.forward_head(tokens).float()
        return self.head(self._pool(tokens)).float()

    def _pool(self, tokens: Tensor) -> Tensor:
        if self.pooling != "both":
            return self.encoder.forward_head(tokens, pre_logits=True)
        patches = patch_tokens(self.encoder, tokens)
        return torch.cat([tokens[:, 0], patches.mean(1)], dim=1)  # (B, 2 D)

    def summarise(self, sums: Sums) -> dict[str, float]:
        """Turn sums into figures; see `finetune.tuning.class_loss`."""
        return summarise(sums)


def _check_pooling(encoder: Any, pooling: str) -> None:
    if not is_transformer(encoder):
        require(
            pooling == "average",
            f"head.pooling={pooling} needs a VisionTransformer; use average, the model's own",
        )
        return
    transformer: VisionTransformer = encoder
    require(
        pooling == "average" or transformer.cls_token is not None,
        f"head.pooling={pooling}, but the encoder has no class token; use average",
    )
