"""vit-pytorch's masked patch prediction: its masks, its targets and its loss, over our encoder.

Source: vit_pytorch/mpp.py of release 1.16.0, the last in which it runs. What is odd in it stays: it
masks pixels and not embeddings, and an exact edge between two colours goes to the lower one.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from data.settings import require, setting
from pretrain.encoder.facts import image_data, num_channels, patch_size
from scripts._benchmark.alternatives.encoder import Holder
from scripts._benchmark.installed import VIT_PYTORCH


@dataclass(frozen=True)
class MppConfig:
    """How vit-pytorch's MPP masks; the defaults are those of the example in its README."""

    mask_ratio: float = setting(0.15, "its mask_prob: fraction of the patches that are predicted")
    replace_ratio: float = setting(0.5, "its replace_prob: of those, what becomes the mask token")
    random_ratio: float = setting(
        0.3, "its random_patch_prob: of those, what becomes another patch; the rest stay"
    )

    def __post_init__(self) -> None:
        for key in ("mask_ratio", "replace_ratio", "random_ratio"):
            value = getattr(self, key)
            require(0 <= value <= 1, f"mpp.{key}={value} is not in 0..1")
        require(self.mask_ratio > 0, "mpp.mask_ratio=0.0 leaves nothing to predict; try 0.15")
        require(
            self.replace_ratio < 1 and self.replace_ratio + self.random_ratio <= 1,
            f"mpp.replace_ratio={self.replace_ratio} must be under 1, and with mpp.random_ratio="
            f"{self.random_ratio} not over 1; try 0.5 and 0.3",
        )


class Mpp(nn.Module):
    """Pixels -> the mean loss of a batch, by vit-pytorch's `MPP`.

    Args:
        encoder: A plain one.
        config: How it masks.

    Raises:
        UserError: vit-pytorch is not installed.
    """

    def __init__(self, encoder: VisionTransformer, config: MppConfig) -> None:
        super().__init__()
        data = image_data(encoder)
        self.model: Any = VIT_PYTORCH.require_for("alternative.name=mpp").MPP(
            transformer=_Transformer(encoder),
            patch_size=patch_size(encoder)[0],
            dim=encoder.embed_dim,
            channels=num_channels(encoder),
            mask_prob=config.mask_ratio,
            replace_prob=config.replace_ratio,
            random_patch_prob=config.random_ratio,
            mean=list(data["mean"]),
            std=list(data["std"]),
        )

    def forward(self, pixels: Tensor, keys: Tensor) -> Tensor:
        """Return the mean loss over a batch, in nats.

        Args:
            pixels: Normalised, (B, C, H, W).
            keys: int64 (B,). In training MPP draws from torch's generator, which the loop seeds
                for each pass; in validation the generator is seeded by the first key.
        """
        loss = self.model.loss
        loss.mean, loss.std = loss.mean.to(pixels.device), loss.std.to(pixels.device)
        if self.training:
            return self.model(pixels)
        with _seeded(int(keys[0]), pixels.device):
            return self.model(pixels)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Generator[None]:
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type="cuda"):
        torch.manual_seed(seed)
        yield


class _Transformer(Holder):
    """Our encoder with the attributes that `MPP` reads of vit-pytorch's `ViT`."""

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__(encoder)
        # MPP cuts the patches itself, and leaves the first part out
        self.to_patch_embedding = nn.Sequential(nn.Identity(), _Embedding(encoder))

    @property
    def cls_token(self) -> Tensor:
        return self.encoder.cls_token

    @property
    def pos_embedding(self) -> Tensor:
        return self.encoder.pos_embed

    def dropout(self, tokens: Tensor) -> Tensor:
        return self.encoder.pos_drop(tokens)

    def transformer(self, tokens: Tensor) -> Tensor:
        return self.encode(tokens)


class _Embedding(Holder):
    """Patches as `MPP` cuts them, (B, N, P * P * C), each row by row -> embeddings (B, N, D)."""

    def forward(self, patches: Tensor) -> Tensor:
        projection = self.encoder.patch_embed.proj
        by_pixel = patches.unflatten(2, (*projection.kernel_size, -1))  # (B, N, P, P, C)
        ordered = by_pixel.permute(0, 1, 4, 2, 3).flatten(2)  # as the convolution's weights
        return F.linear(ordered, projection.weight.flatten(1), projection.bias)
