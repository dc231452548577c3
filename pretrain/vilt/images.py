"""The image's tokens, as ViLT's transformer takes them: of one size, or each of its own aspect.

Of images of one size all patches enter, with the encoder's own positions. Of images of their own
aspect the patches are those of each image's grid, the encoder's table of positions is stretched
over it, and while training no more than some patches are drawn.

Source: Kim et al. 2021 (ViLT), section 4.2.
"""

from typing import Any, NamedTuple, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from data.devices import exact_device
from data.randomness import combine, uniform
from pretrain.encoder.blocks import select
from pretrain.encoder.facts import grid_size
from pretrain.encoder.position_blocks import PositionedBlock
from pretrain.encoder.timm_internals import add_positions

_SAMPLE = 24  # purpose of a sample's random numbers


class Places(NamedTuple):
    """Which patches of a canvas enter the transformer.

    Attributes:
        patches: int64 (B, K), places in the canvas, ascending; what is left of K comes last.
        is_patch: bool (B, K), false where there is no more patch.
    """

    patches: Tensor
    is_patch: Tensor


def choose_patches(
    keys: Tensor, grid: Tensor, canvas: tuple[int, int], number: int, *, is_random: bool
) -> Places:
    """Choose the patches of images that lie at the top left of a canvas.

    Args:
        keys: int64 (B,), one a sample.
        grid: int64 (B, 2), rows and columns of each image's patches.
        canvas: Rows and columns of the canvas' patches.
        number: K.
        is_random: Draw K patches where there are more; else the first ones are taken.
    """
    device, exact = grid.device, exact_device(grid.device)
    keys, grid = keys.to(exact), grid.to(exact)
    row, column = (torch.arange(side, device=exact) for side in canvas)
    is_there = (row[:, None] < grid[:, :1, None]) & (column < grid[:, 1:, None])  # (B, R, C)
    is_there = is_there.flatten(1)
    scores = uniform(combine(keys, _SAMPLE), is_there.shape[1])
    scores = scores if is_random else torch.zeros_like(scores)
    scores = scores.masked_fill(~is_there, 2.0)
    chosen = scores.argsort(dim=1, stable=True)[:, :number]
    last = is_there.shape[1]
    patches = chosen.masked_fill(~is_there.gather(1, chosen), last).sort(dim=1).values
    is_patch = patches < last
    return Places(patches.clamp(max=last - 1).to(device), is_patch.to(device))


def tokens_of_one_size(encoder: VisionTransformer, patches: Tensor) -> Tensor:
    """Add positions and prefix tokens: (B, N, D) -> (B, P + N, D)."""
    return encoder.norm_pre(_add_all_positions(encoder, patches))


def _add_all_positions(encoder: VisionTransformer, patches: Tensor) -> Tensor:
    """Add timm's positions, or the table that a first block of ours would add."""
    tokens, first = add_positions(encoder, patches), cast(Any, encoder.blocks)[0]
    if not isinstance(first, PositionedBlock):
        return tokens
    return tokens + F.pad(first.position().to(tokens.dtype), (0, 0, first.num_prefix, 0))


def tokens_of_any_aspect(
    encoder: VisionTransformer,
    patches: Tensor,
    grid: Tensor,
    canvas: tuple[int, int],
    places: Places,
) -> Tensor:
    """Add each image's positions, and prefix tokens: (B, R * C, D) -> (B, P + K, D).

    Args:
        encoder: Whose table of positions is stretched over each image's grid.
        patches: Of the whole canvas.
        grid: int64 (B, 2), rows and columns of each image's patches.
        canvas: Rows and columns (R, C) of the canvas' patches.
        places: Those that enter.
    """
    rows, columns = grid_size(encoder)
    blank = patches.new_zeros(1, rows * columns, patches.shape[2])
    prefix, table = _add_all_positions(encoder, blank).split(
        [encoder.num_prefix_tokens, rows * columns], dim=1
    )
    table = table.unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
    positions = _stretch(table, grid, canvas, places.patches)
    tokens = select(patches, places.patches) + positions
    tokens = torch.cat([prefix.expand(len(patches), -1, -1), tokens], dim=1)
    return encoder.norm_pre(tokens)


def _stretch(table: Tensor, grid: Tensor, canvas: tuple[int, int], patches: Tensor) -> Tensor:
    """Read a table (1, D, rows, columns) at patches of images' own grids: (B, K, D).

    The table's corners lie on the image's corner patches, as transformers' ViltModel has it.
    """
    row, column = patches // canvas[1], patches % canvas[1]
    last = (grid - 1).clamp(min=1)
    x = 2 * column / last[:, 1:] - 1  # (B, K), -1 to 1 over the image
    y = 2 * row / last[:, :1] - 1
    at = torch.stack([x, y], dim=2)[:, None].to(table.dtype)  # (B, 1, K, 2)
    table = table.expand(len(patches), -1, -1, -1)
    read = F.grid_sample(table, at, mode="bilinear", padding_mode="border", align_corners=True)
    return read.squeeze(2).transpose(1, 2)
