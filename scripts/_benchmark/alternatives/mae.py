"""MAE by transformers' `ViTMAEForPreTraining`: its masks, its decoder, its loss, over our encoder.

Source: He et al. 2022 (arXiv:2111.06377). As there, the encoder's positions are a fixed table of
sines and cosines while it is pretrained; it lies in `pos_embed`, and fine-tuning may move it.

Everything begins as in its authors' code. transformers 5.23 leaves both tables of positions and the
mask token at 0 where a model is made from a configuration, and such a model learns next to nothing;
nor does it draw weights by Xavier's rule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from data.randomness import combine, uniform
from data.settings import require, setting
from pretrain.encoder.facts import grid_size
from pretrain.encoder.tokens import embed
from scripts._benchmark.alternatives.encoder import Holder, transformers_settings
from scripts._benchmark.installed import TRANSFORMERS

_NOISE = 20  # purpose of a sample's random numbers


@dataclass(frozen=True)
class MaeConfig:
    """How MAE masks and decodes; the defaults are its authors', for ViT-L/16."""

    mask_ratio: float = setting(0.75, "fraction of the patches that the encoder does not see")
    normalised_pixels: bool = setting(True, "predict pixels less their patch's mean, over its std")
    decoder_depth: int = setting(8, "blocks of the decoder")
    decoder_width: int = setting(512, "its width")
    decoder_heads: int = setting(16, "its attention heads")

    def __post_init__(self) -> None:
        require(0 < self.mask_ratio < 1, f"mae.mask_ratio={self.mask_ratio} is not in 0..1")
        for key in ("decoder_depth", "decoder_width", "decoder_heads"):
            value = getattr(self, key)
            require(value > 0, f"mae.{key}={value} must be above 0")
        require(
            self.decoder_width % self.decoder_heads == 0 and self.decoder_width % 4 == 0,
            f"mae.decoder_width={self.decoder_width} must be a multiple of mae.decoder_heads="
            f"{self.decoder_heads} and of 4; set both",
        )


class Mae(nn.Module):
    """Pixels -> the mean loss of a batch, by transformers' `ViTMAEForPreTraining`.

    Args:
        encoder: A plain one; its positions become fixed.
        config: How it masks and decodes.

    Raises:
        UserError: transformers is not installed, or nothing is left to see.
    """

    def __init__(self, encoder: VisionTransformer, config: MaeConfig) -> None:
        super().__init__()
        transformers = TRANSFORMERS.require_for("alternative.name=mae")
        self.num_patches = encoder.patch_embed.num_patches
        require(
            0 < int(self.num_patches * (1 - config.mask_ratio)) < self.num_patches,
            f"mae.mask_ratio={config.mask_ratio} leaves all or none of the {grid_size(encoder)} "
            "patches; try 0.75",
        )
        settings = transformers.ViTMAEConfig(
            **transformers_settings(encoder),
            mask_ratio=config.mask_ratio,
            norm_pix_loss=config.normalised_pixels,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_hidden_size=config.decoder_width,
            decoder_num_attention_heads=config.decoder_heads,
            decoder_intermediate_size=4 * config.decoder_width,
        )
        self.model: Any = transformers.ViTMAEForPreTraining(settings)
        masking = type(self.model.vit.embeddings).random_masking
        self.model.vit = _Encoder(encoder, masking, settings)
        self._begin(encoder)

    @torch.no_grad()
    def _begin(self, encoder: VisionTransformer) -> None:
        """Draw all weights and set the positions, as `initialize_weights` of MAE's code does."""
        decoder, positions = self.model.decoder, cast(Tensor, encoder.pos_embed)
        for part in (encoder, decoder):
            part.apply(_draw)
        kernel = cast(Any, encoder.patch_embed).proj.weight
        nn.init.xavier_uniform_(kernel.view(len(kernel), -1))
        nn.init.normal_(decoder.mask_token, std=0.02)
        positions.requires_grad_(False)
        for table in (positions, decoder.decoder_pos_embed):
            places = build_sincos2d_pos_embed(list(grid_size(encoder)), table.shape[2])
            table.zero_()[0, 1:] = places  # the class token has no place

    @property
    def fused_attn(self) -> bool:
        """Whether the decoder takes torch's fused attention; `choose_attention` sets it.

        In bf16 on a CPU a step with transformers' plain one is 1.2 to 1.3 times as fast.
        """
        return self.model.config._attn_implementation == "sdpa"

    @fused_attn.setter
    def fused_attn(self, is_fused: bool) -> None:
        for module in self.model.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = "sdpa" if is_fused else "eager"

    def forward(self, pixels: Tensor, keys: Tensor) -> Tensor:
        """Return the mean loss over a batch.

        Args:
            pixels: Normalised, (B, C, H, W).
            keys: int64 (B,); an image's mask follows from its own.
        """
        noise = uniform(combine(keys, _NOISE), self.num_patches)  # (B, N)
        return self.model(pixels, noise=noise).loss


class _Encoder(Holder):
    """Our encoder in the place of transformers' `ViTMAEModel`.

    Args:
        encoder: A plain one.
        random_masking: transformers' own; it reads `config.mask_ratio` of its first argument.
        config: transformers' own.
    """

    def __init__(
        self, encoder: VisionTransformer, random_masking: Callable[..., Any], config: Any
    ) -> None:
        super().__init__(encoder)
        self.random_masking = random_masking
        self.config = config

    def forward(self, pixel_values: Tensor, noise: Tensor | None = None, **_: object) -> Any:
        encoder, positions = self.encoder, self.encoder.pos_embed
        patches = embed(encoder, pixel_values) + positions[:, 1:]  # (B, N, D)
        patches, mask, ids_restore = self.random_masking(self, patches, noise)  # (B, V, D)
        first = (encoder.cls_token + positions[:, :1]).expand(len(patches), -1, -1)
        tokens = encoder.pos_drop(torch.cat((first, patches), dim=1))
        return SimpleNamespace(
            last_hidden_state=self.encode(tokens),
            mask=mask,
            ids_restore=ids_restore,
            hidden_states=None,
            attentions=None,
        )


def _draw(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
