"""SimMIM by transformers' `ViTForMaskedImageModeling`: its decoder and its loss, over our encoder.

transformers has no mask for it; as SimMIM's own code does, squares of patches are masked whole.
Source: Xie et al. 2022 (arXiv:2111.09886), section 3.2, and its `MaskGenerator`.
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from data.randomness import combine, uniform
from data.settings import require, setting
from pretrain.encoder.facts import grid_size, patch_size
from pretrain.encoder.tokens import embed
from scripts._benchmark.alternatives.encoder import Holder, transformers_settings
from scripts._benchmark.installed import TRANSFORMERS

_SQUARES = 21  # purpose of a sample's random numbers


@dataclass(frozen=True)
class SimmimConfig:
    """How SimMIM masks; the defaults are its authors': 32 pixels of 16 a patch."""

    mask_ratio: float = setting(0.6, "fraction of the squares that are masked, rounded up")
    unit: int = setting(2, "patches a side of the squares")

    def __post_init__(self) -> None:
        require(0 < self.mask_ratio <= 1, f"simmim.mask_ratio={self.mask_ratio} is not in 0..1")
        require(self.unit > 0, f"simmim.unit={self.unit} must be above 0")


class Simmim(nn.Module):
    """Pixels -> the mean loss of a batch, by transformers' `ViTForMaskedImageModeling`.

    Args:
        encoder: A plain one.
        config: How it masks.

    Raises:
        UserError: transformers is not installed, or the squares do not fit the patches.
    """

    def __init__(self, encoder: VisionTransformer, config: SimmimConfig) -> None:
        super().__init__()
        transformers = TRANSFORMERS.require_for("alternative.name=simmim")
        self.config = config
        self.grid = grid_size(encoder)
        side = self.grid[0]
        require(
            side % config.unit == 0 and config.unit < side,
            f"simmim.unit={config.unit} does not cut {side}x{side} patches into squares; try 1",
        )
        settings = transformers.ViTConfig(
            **transformers_settings(encoder), encoder_stride=patch_size(encoder)[0]
        )
        self.model: Any = transformers.ViTForMaskedImageModeling(settings)
        self.model.vit = _Encoder(encoder, self.model.vit.embeddings.mask_token)

    def forward(self, pixels: Tensor, keys: Tensor) -> Tensor:
        """Return the mean loss over a batch.

        Args:
            pixels: Normalised, (B, C, H, W).
            keys: int64 (B,); an image's mask follows from its own.
        """
        is_masked = draw_squares(keys, self.grid, self.config)
        return self.model(pixels, bool_masked_pos=is_masked).loss


def draw_squares(keys: Tensor, grid: tuple[int, int], config: SimmimConfig) -> Tensor:
    """Choose the patches that are masked: int64 (B,) -> bool (B, N)."""
    rows, columns = (side // config.unit for side in grid)
    noise = uniform(combine(keys, _SQUARES), rows * columns)
    num_masked = math.ceil(rows * columns * config.mask_ratio)
    chosen = noise.argsort(dim=1, stable=True)[:, :num_masked]
    is_masked = torch.zeros_like(noise, dtype=torch.bool).scatter(1, chosen, True)
    squares = is_masked.unflatten(1, (rows, columns))
    patches = squares.repeat_interleave(config.unit, dim=1).repeat_interleave(config.unit, dim=2)
    return patches.flatten(1)


class _Encoder(Holder):
    """Our encoder in the place of transformers' `ViTModel`, with its mask token.

    Args:
        encoder: A plain one.
        mask_token: (1, 1, D).
    """

    def __init__(self, encoder: VisionTransformer, mask_token: nn.Parameter) -> None:
        super().__init__(encoder)
        self.mask_token = mask_token

    def forward(self, pixel_values: Tensor, bool_masked_pos: Tensor, **_: object) -> Any:
        encoder = self.encoder
        embeddings = embed(encoder, pixel_values)  # (B, N, D)
        is_masked = bool_masked_pos[..., None]
        embeddings = torch.where(is_masked, self.mask_token.to(embeddings.dtype), embeddings)
        first = encoder.cls_token.expand(len(embeddings), -1, -1)
        tokens = torch.cat((first, embeddings), dim=1) + encoder.pos_embed
        return SimpleNamespace(
            last_hidden_state=self.encode(encoder.pos_drop(tokens)),
            hidden_states=None,
            attentions=None,
        )
