"""All that reaches into timm's private parts: a timm that changes them is mended here alone."""

from typing import Any, cast

from timm.models._hub import save_config_for_hf
from timm.models._input import update_model_args
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

__all__ = ["add_positions", "save_config_for_hf", "update_model_args"]


def add_positions(encoder: VisionTransformer, patches: Tensor) -> Tensor:
    """Add position embeddings and prefix tokens, as `forward_features` does before its blocks.

    Args:
        encoder: A timm VisionTransformer.
        patches: Patch embeddings (B, N, D), or (B, H, W, D) where timm resizes positions itself.

    Returns:
        Tokens (B, T, D).
    """
    return cast(Any, encoder)._pos_embed(patches)
