"""The encoder run in two halves, so that patch embeddings can be corrupted in between."""

from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from data.settings import require
from pretrain.encoder.blocks import answer, select
from pretrain.encoder.facts import image_data
from pretrain.encoder.position_blocks import PositionedBlock
from pretrain.encoder.recompute import recomputed
from pretrain.encoder.timm_internals import add_positions


class Normalise(nn.Module):
    """Pixels -> what an encoder takes: uint8 (B, C, H, W) -> float (B, C, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        # buffers, so that they follow .to(device); not saved, config.json holds them
        for key in ("mean", "std"):
            value = torch.tensor(image_data(encoder)[key], dtype=torch.float32)
            self.register_buffer(key, value.view(1, -1, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Subtract the mean and divide by the deviation."""
        return (images.float() - self.mean) / self.std


def choose_attention(model: nn.Module, device: torch.device, precision: str) -> None:
    """Take timm's plain attention where torch's fused kernel is slow: bf16 on a CPU without AMX.

    Forward and backward of an attention layer then take 1.2 to 2.1 times as long with the fused
    kernel (65 to 2,305 tokens, AMD EPYC with AVX-512 bf16, torch 2.15), at equal distance from
    fp32's result. In fp32 and on GPUs the fused kernel is the faster one. The price is memory: the
    backward pass keeps (B, heads, T, T) probabilities of each layer.

    Args:
        model: Its attention layers are told.
        device: Where it runs.
        precision: Accelerate's name: bf16, fp16 or no.
    """
    if device.type != "cpu" or precision != "bf16" or torch.cpu._is_amx_tile_supported():
        return
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            cast(Any, module).fused_attn = False


def narrow_residual(encoder: nn.Module) -> None:
    """Keep the tokens between blocks in autocast's precision; without autocast nothing changes.

    Norms and the loss compute in fp32 as before, and weights stay fp32. Megatron-LM's default,
    where `fp32_residual_connection` is what is chosen.

    Raises:
        UserError: The encoder is no transformer.
    """
    require(
        isinstance(encoder, VisionTransformer),
        "run.bf16_residual=true is for a VisionTransformer's blocks, and this encoder has none; "
        "leave it out",
    )
    for block in cast(Any, encoder).blocks:  # a scale or a position may have widened them again
        block.register_forward_pre_hook(_narrow)


def _narrow(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    tokens, *others = arguments
    kind = tokens.device.type
    if torch.is_autocast_enabled(kind):
        tokens = tokens.to(torch.get_autocast_dtype(kind))
    return tokens, *others


def embed(encoder: VisionTransformer, images: Tensor) -> Tensor:
    """Images -> patch embeddings without positions: (B, C, H, W) -> (B, N, D)."""
    return encoder.patch_embed(images)


def encode(
    encoder: VisionTransformer,
    embeddings: Tensor,
    visible: Tensor | None = None,
    queries: Tensor | None = None,
) -> Tensor:
    """Patch embeddings -> tokens: (B, N, D) -> (B, T, D), prefix tokens first.

    `encode(embed(images))` equals timm's `forward_features(images)`.

    Args:
        encoder: Any.
        embeddings: (B, N, D) of all patches.
        visible: int64 (B, V), the patches whose tokens enter the blocks; None: all.
        queries: int64 (B, M), the patches whose tokens alone are returned, (B, M, D); then all
            enter.
    """
    tokens = add_positions(encoder, embeddings)
    if visible is not None:
        assert queries is None, "those who ask for some patches let all of them enter"
        prefix = tokens[:, : encoder.num_prefix_tokens]
        tokens = torch.cat([prefix, select(patch_tokens(encoder, tokens), visible)], dim=1)
    tokens = encoder.norm_pre(tokens)  # (B, T, D); T is prefix + V where some are visible
    run = recomputed(encoder, _run)
    *blocks, last = cast(Any, encoder.blocks)
    for block in blocks:
        tokens = run(block, tokens, visible)
    queries = None if queries is None else queries + encoder.num_prefix_tokens
    return encoder.norm(run(last, tokens, visible, queries))


def _run(
    block: nn.Module, tokens: Tensor, visible: Tensor | None, queries: Tensor | None = None
) -> Tensor:
    if queries is not None:
        return answer(block, tokens, queries)
    if visible is not None and isinstance(block, PositionedBlock):
        return block(tokens, places=visible)
    return block(tokens)


def patch_tokens(encoder: VisionTransformer, tokens: Tensor) -> Tensor:
    """Drop the prefix tokens: (B, T, D) -> (B, N, D)."""
    return tokens[:, encoder.num_prefix_tokens :]
