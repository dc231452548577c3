"""Where an encoder looks: mean attention distance by head and layer, and attention rollout.

Both are made from attention maps, which the fused kernel never forms. They are computed here a
second time, from what enters each attention layer: in evaluation, in float32, one layer, one small
batch and one chunk of queries at a time. Training keeps its kernel; nothing stays on the encoder.

That takes up to about 1 GiB beside the weights: measured on the CPU in fp32 with 12 heads, patch 16
and the encoder's own activations, 0.2 GiB at 224 pixels a side (16 images, 197 tokens), 0.95 at
1,024 (4,097 tokens) and 1.04 at 1,440 (8,101 tokens). Distances go beyond that, rollout does not.
Relative positions take what their own layer takes besides, N * N * d numbers for each of them.

Sources: Dosovitskiy et al. 2021, section 4.5, Figures 6, 7, 11 and 14; Abnar and Zuidema 2020,
"Quantifying Attention Flow in Transformers", section 4.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from data.settings import UserError, require
from pretrain.encoder.facts import grid_size, patch_size
from pretrain.encoder.position_blocks import RelativeAttention

BUDGET = 2**28  # bytes of attention maps at a time; a few such tensors are alive at once
MOST_TOKENS = 8192  # of rollout: three (T, T) matrices are then 3 BUDGET
ROWS = ("patches", "class")

Look = Callable[[int, Iterator[tuple[int, Tensor]]], None]


def distances(encoder: VisionTransformer, images: Tensor) -> Tensor:
    """Return how far each head looks: the mean attention distance in pixels.

    It is the distance between the centres of the query's patch and the key's, weighted by the
    attention and averaged over queries and images. Prefix tokens have no place: they are left out,
    and each query's attention is renormalised over the patches. The number of patches is not
    limited: beyond `BUDGET`, queries come in chunks.

    Args:
        encoder: A timm VisionTransformer, left as it is.
        images: Normalised float (B, C, H, W), on any device.

    Returns:
        float32 (L, heads) on the CPU, L the number of blocks.

    Raises:
        UserError: Its blocks have no attention maps of timm's usual kind.
    """
    centres = _centres(encoder)
    prefix, num_patches = encoder.num_prefix_tokens, len(centres)
    totals = torch.zeros(len(encoder.blocks), _num_heads(encoder), dtype=torch.float64)

    def look(layer: int, parts: Iterator[tuple[int, Tensor]]) -> None:
        for first, logits in parts:
            here = centres[first - prefix :][: logits.shape[2]].to(logits.device)  # (Q, 2)
            weights = logits[..., prefix:].softmax(-1)  # (B, heads, Q, N)
            weights *= torch.cdist(here, centres.to(logits.device), compute_mode=_EXACT)
            totals[layer] += weights.sum((0, 2, 3)).cpu().double()

    _pass(encoder, images, look, first=prefix)
    return (totals / (len(images) * num_patches)).float()


def rollout(encoder: VisionTransformer, images: Tensor, row: str = "patches") -> Tensor:
    """Return how much each patch of the input reaches the output, through all layers.

    Each layer's maps are averaged over heads, mixed half and half with the identity, for the
    residual path, and multiplied. The encoders here pool by patch average: so the default is the
    mean of all patches' rows. Rows are cut to the patches and renormalised.

    Args:
        encoder: A timm VisionTransformer, left as it is.
        images: Normalised float (B, C, H, W), on any device.
        row: `patches`, or `class` for the class token's own row, as in the paper.

    Returns:
        float32 (B, rows, columns) on the CPU, which sums to 1 an image.

    Raises:
        UserError: There is no class token, there are more than `MOST_TOKENS` tokens, or the blocks
            have no attention maps of timm's usual kind.
    """
    require(row in ROWS, f"row={row} is not one of {', '.join(ROWS)}")
    require(
        row == "patches" or encoder.cls_token is not None,
        f"row={row}, but the encoder has no class token; use patches",
    )
    num = num_tokens(encoder)
    require(
        num <= MOST_TOKENS,
        f"rollout of {num} tokens takes {12 * num**2 / 2**30:.1f} GiB, more than is "
        f"allowed ({MOST_TOKENS} tokens); use a smaller data.image_size",
    )
    prefix = encoder.num_prefix_tokens
    rows = slice(prefix, None) if row == "patches" else slice(0, 1)
    maps: list[Tensor] = []
    for part in _batches(encoder, images):
        flow = _flow(encoder, part)[:, rows, prefix:].mean(1)  # (b, N)
        maps.append((flow / flow.sum(1, keepdim=True)).cpu())
    return torch.cat(maps).unflatten(1, grid_size(encoder))


def num_tokens(encoder: VisionTransformer) -> int:
    """Return `T`: patches and prefix tokens."""
    rows, columns = grid_size(encoder)
    return encoder.num_prefix_tokens + rows * columns


def is_supported(encoder: VisionTransformer) -> bool:
    """Whether the attention maps of its blocks are known here."""
    kinds = {type(getattr(block, "attn", None)) for block in encoder.blocks}
    return kinds <= {Attention, RelativeAttention}


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Set a model to evaluation; each of its modules gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


# ---------------------------------------------------------------- one pass


_EXACT = "donot_use_mm_for_euclid_dist"  # the other way loses half of the digits


def _flow(encoder: VisionTransformer, images: Tensor) -> Tensor:
    """Multiply all layers' mean maps: (b, T, T), the share of each input token in each output."""
    flow: list[Tensor] = []

    def look(_: int, parts: Iterator[tuple[int, Tensor]]) -> None:
        means = [logits.softmax(-1).mean(1) for _first, logits in parts]  # (b, Q, T) each
        mixed = torch.cat(means, dim=1).mul_(0.5)  # its rows sum to a half
        mixed.diagonal(dim1=1, dim2=2).add_(0.5)
        flow[:] = [mixed @ flow[0] if flow else mixed]

    _pass(encoder, images, look)
    return flow[0]


@torch.no_grad()
def _pass(encoder: VisionTransformer, images: Tensor, look: Look, first: int = 0) -> None:
    """Run the encoder on small batches, and show `look` each layer's attention on the way.

    Args:
        encoder: Left in the mode in which it was.
        images: Float (B, C, H, W).
        look: As `watched` calls it.
        first: The first query that counts.
    """
    check(encoder)
    device = next(encoder.parameters()).device
    with evaluating(encoder), watched(encoder, look, first):
        for part in _batches(encoder, images):
            with torch.autocast(device.type, enabled=False):
                encoder.forward_features(part.to(device))


@contextmanager
def watched(encoder: VisionTransformer, look: Look, first: int = 0) -> Generator[None]:
    """Show `look` each layer's attention while the blocks run, whatever tokens go through them.

    Args:
        encoder: With attention of a kind that `is_supported`.
        look: Told the layer, and parts of its queries: the number of the first one, and their
            logits over all keys before any mask, float32 (B, heads, Q, T). What it does not read
            is not computed.
        first: The first query that counts.
    """
    with ExitStack() as hooks:
        for layer, block in enumerate(encoder.blocks):
            attention = cast(Any, block).attn
            hook = partial(_hook, look, layer, first)
            hooks.callback(attention.register_forward_pre_hook(hook).remove)
        yield


def _hook(
    look: Look,
    layer: int,
    first: int,
    attention: Attention,
    inputs: tuple[Tensor, ...],
) -> None:
    look(layer, _logits(attention, inputs[0], first))


def _logits(attention: Attention, tokens: Tensor, first: int) -> Iterator[tuple[int, Tensor]]:
    """Yield a layer's logits, some queries at a time, as timm's own plain attention has them."""
    shape = (3, attention.num_heads, attention.head_dim)
    query, key, _ = attention.qkv(tokens).unflatten(2, shape).permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(query).float(), attention.k_norm(key).float()
    batch, heads, num, _ = key.shape  # (b, heads, T, d)
    chunk = max(1, BUDGET // (4 * batch * heads * num))
    query = query * attention.scale
    bias = _relative(attention, query)
    for start in range(first, num, chunk):
        part = slice(start, start + chunk)
        logits = query[:, :, part] @ key.transpose(2, 3)  # (b, heads, Q, T)
        yield start, logits if bias is None else logits + bias[:, :, part]


def _relative(attention: Attention, query: Tensor) -> Tensor | None:
    """Return what relative positions add: (b, heads, T, T), at once, as their own layer has it."""
    if not isinstance(attention, RelativeAttention):
        return None
    prefix = attention.num_prefix
    return F.pad(attention.position(query[:, :, prefix:]), (prefix, 0, prefix, 0))


def _batches(encoder: VisionTransformer, images: Tensor) -> tuple[Tensor, ...]:
    """Cut images into batches whose whole maps of one layer are within the budget, if they can."""
    per_image = 4 * _num_heads(encoder) * num_tokens(encoder) ** 2
    return images.split(max(1, BUDGET // per_image))


# ---------------------------------------------------------------- what it is


def check(encoder: VisionTransformer) -> None:
    """Raise `UserError` for blocks whose attention maps are not known here."""
    if not is_supported(encoder):
        block: Any = encoder.blocks[0]
        kind = type(getattr(block, "attn", block)).__name__
        raise UserError(
            f"the encoder's attention is timm's {kind}, whose maps are not known here; "
            "pictures of attention are for its usual Attention"
        )


def _num_heads(encoder: VisionTransformer) -> int:
    check(encoder)
    return cast(Any, encoder.blocks[0]).attn.num_heads


def _centres(encoder: VisionTransformer) -> Tensor:
    """Return the pixel (y, x) of each patch's centre, but for a shift: float32 (N, 2)."""
    (rows, columns), (height, width) = grid_size(encoder), patch_size(encoder)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([y.flatten() * height, x.flatten() * width], dim=1).float()
