"""Blocks whose parts are computed again for the backward pass, so that less memory is held.

Source: Chen et al. 2016, arXiv:1604.06174; selective: Korthikanti et al. 2022, arXiv:2205.05198.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from data.settings import require

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
_KEPT = (  # by selective: what linear layers and fused attention return
    *_PRODUCTS,
    torch.ops.aten.linear.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
)


def recompute_blocks(encoder: nn.Module, kind: str) -> None:
    """Let each block keep less than all that its backward pass reads, and compute the rest again.

    - `none`: all is kept.
    - `selective`: what linear layers and fused attention return is kept. Norms, activations, sums
      and attention that is not fused are computed again, which is cheap.
    - `full`: the block's input alone is kept.

    Weights after a step are the same. Of a light decoder's blocks all is kept.

    Raises:
        UserError: It is no vision transformer.
    """
    if kind == "none":
        return
    require(
        isinstance(encoder, VisionTransformer),
        f"run.grad_checkpointing={kind} is for vision transformers, not {type(encoder).__name__}; "
        "leave it out",
    )
    # timm's own setter would also have a CNN stem computed again, whose batch norms count
    cast(Any, encoder).grad_checkpointing = kind


@contextmanager
def nothing_recomputed(encoder: Any) -> Generator[None]:
    """Let all blocks keep all, whatever `recompute_blocks` said."""
    kind = getattr(encoder, "grad_checkpointing", False)
    if kind:
        encoder.grad_checkpointing = False
    try:
        yield
    finally:
        if kind:
            encoder.grad_checkpointing = kind


def recomputed(encoder: nn.Module, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what runs a block as `run(block, ...)`, and keeps what `recompute_blocks` said."""
    kind = cast(Any, encoder).grad_checkpointing
    if not kind:
        return run
    again: Any = partial(checkpoint, run, use_reentrant=False)
    if kind == "selective":
        again = partial(again, context_fn=partial(create_selective_checkpoint_contexts, _policy))
    return again


def _policy(_context: object, operation: object, *args: Any, **_: object) -> CheckpointPolicy:
    """Say whether an operation's result is kept.

    That of an MLP's second layer is not: nothing but the next block reads it, which keeps its own
    input. It is not computed again either, since torch stops at the last that is needed.
    """
    if operation in _PRODUCTS:
        inputs, weights = args[-2:]
        if inputs.shape[-1] > weights.shape[-1]:
            return CheckpointPolicy.PREFER_RECOMPUTE
    is_kept = operation in _KEPT
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE
