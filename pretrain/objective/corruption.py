"""Which patch embeddings are corrupted, and how.

In each image `M = round(ratio * N)` patch embeddings are corrupted: 80 % become the learnable mask
embedding, 10 % the embedding of another patch of the same image, 10 % stay. The split is exact
(largest remainder), so shapes are static and every image gives the same number of predictions.

Which they are is a matter of `corruption.kind`. Each kind gives every patch a score and the `M`
lowest are taken, so the count is exact whatever the shape. The scores follow from an image's key
alone, by sums, products, square roots and comparisons, which are equal on every device.

Source: Dosovitskiy et al. 2021, section B.1.2; the split is BERT's (Devlin et al. 2019). Blocks:
Bao et al. 2021 (BEiT, arXiv:2106.08254), Algorithm 1. Coarse squares: Xie et al. 2022 (SimMIM,
arXiv:2111.09886), section 3.2.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from data.devices import exact_device
from data.randomness import combine, uniform
from data.settings import require
from pretrain.encoder.blocks import _over_width, select
from pretrain.objective.config import MIN_BLOCK, CorruptionConfig

_CHOICE, _SOURCE, _ORDER, _FILLING = 2, 3, 4, 5  # purposes of a sample's random numbers

# Of 20,000 images of 14x14 patches at ratio .75, 8 blocks do not reach the count in 0.6 %, 16 in
# none; of 8x32 patches 16 do not in 0.02 %, 24 in none. What is missing is filled at random.
NUM_BLOCKS = 24
_ASPECTS = [0.3 ** (1 - 2 * step / 63) for step in range(64)]  # log-uniform; exp differs by device


class Counts(NamedTuple):
    """Patches an image of each kind."""

    mask: int
    random: int
    kept: int


def count(config: CorruptionConfig, num_patches: int) -> Counts:
    """Split `round(ratio * N)` patches by largest remainder; ties favour mask, then random.

    Raises:
        UserError: If no patch would be corrupted, there is no other patch to take, or a block that
            was asked for is larger than all that is corrupted.
    """
    total = round(config.ratio * num_patches)
    require(
        total > 0,
        f"corruption.ratio={config.ratio} corrupts none of {num_patches} patches; raise it",
    )
    require(
        config.min_block <= total or config.min_block == MIN_BLOCK,
        f"corruption.min_block={config.min_block} is over the {total} of {num_patches} patches "
        f"that corruption.ratio={config.ratio} corrupts; lower it to {total} or less",
    )
    kept_ratio = max(0.0, 1 - config.mask_ratio - config.random_ratio)
    counts = _split(total, (config.mask_ratio, config.random_ratio, kept_ratio))
    require(
        counts.random == 0 or num_patches > 1,
        "corruption.random_ratio needs a second patch to take; set it to 0",
    )
    return counts


def count_predicted(config: CorruptionConfig, counts: Counts) -> Counts:
    """Split `round(predicted_ratio * M)` patches, one or more, as the corrupted ones are split."""
    num_corrupted = sum(counts)
    total = max(1, round(config.predicted_ratio * num_corrupted))
    mask, random, kept = (size / num_corrupted for size in counts)
    return _split(total, (mask, random, kept))


def _split(total: int, ratios: tuple[float, float, float]) -> Counts:
    """Split by largest remainder; ties favour mask, then random."""
    # rounding hides the binary noise of 0.1 * 30 = 3.0000000000000004
    shares = [round(total * ratio, 6) for ratio in ratios]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(3), key=lambda kind: counts[kind] - shares[kind])
    for kind in by_remainder[: total - sum(counts)]:
        counts[kind] += 1
    return Counts(*counts)


class Corruption(NamedTuple):
    """The corruption of a batch: which patches, and how.

    Attributes:
        patches: int64 (B, M), the corrupted patches: first the masked, then the random, then the
            kept ones, as many as `counts` says.
        source: int64 (B, counts.random), the patch whose embedding each random one takes.
        is_corrupted: bool (B, N).
        counts: Corrupted patches an image of each kind; their sum is `M`.
        predicted: int64 (B, P), those of `patches` that are predicted, in the same order of kinds.
        num_predicted: Of each kind; their sum is `P`.
    """

    patches: Tensor
    source: Tensor
    is_corrupted: Tensor
    counts: Counts
    predicted: Tensor
    num_predicted: Counts

    def to(self, device: torch.device) -> "Corruption":
        """Move it to a device."""
        return self._replace(
            patches=self.patches.to(device),
            source=self.source.to(device),
            is_corrupted=self.is_corrupted.to(device),
            predicted=self.predicted.to(device),
        )

    @property
    def visible(self) -> Tensor:
        """The patches that do not become the mask embedding, ascending.

        int64 (B, N - counts.mask): those that are not corrupted, the random and the kept ones. They
        are what an encoder without mask tokens sees.
        """
        num_patches = self.is_corrupted.shape[1]
        places = torch.arange(num_patches, device=self.patches.device).expand_as(self.is_corrupted)
        last = places.scatter(1, self.patches[:, : self.counts.mask], num_patches)
        return last.sort(dim=1).values[:, : num_patches - self.counts.mask]


def draw(keys: Tensor, grid: tuple[int, int], config: CorruptionConfig) -> Corruption:
    """Draw each image's corruption from its key alone: int64 (B,) -> `Corruption`.

    The patches of a block or square are shuffled before they are split into masked, random and
    kept ones: in their own order all kept ones would lie in the last block.

    For keys on a device without float64 it is drawn on the CPU, so that choices are the same.

    Args:
        keys: int64 (B,), one an image; what is drawn is on their device.
        grid: Rows and columns of patches.
        config: What to draw.

    Raises:
        UserError: As from `count`, and if one coarse square is as large as the grid.
    """
    device, keys = keys.device, keys.to(exact_device(keys.device))
    num_patches = grid[0] * grid[1]
    counts = count(config, num_patches)
    scores = _scores(keys, grid, config, sum(counts))  # (B, N)
    patches = scores.argsort(dim=1, stable=True)[:, : sum(counts)]
    if config.kind != "random":  # the order of a random choice is random
        order = uniform(combine(keys, _ORDER), sum(counts))
        patches = patches.gather(1, order.argsort(dim=1, stable=True))
    random_index = patches[:, counts.mask : counts.mask + counts.random]
    steps = uniform(combine(keys, _SOURCE), counts.random) * (num_patches - 1)
    source = (random_index + 1 + steps.long()) % num_patches  # 1 to N - 1 further: never itself
    is_corrupted = torch.zeros_like(scores, dtype=torch.bool).scatter(1, patches, True)
    num_predicted = count_predicted(config, counts)
    parts = zip(patches.split(list(counts), dim=1), num_predicted, strict=True)
    # the order of each kind's patches is random: the first ones are a random choice
    predicted = torch.cat([part[:, :size] for part, size in parts], dim=1)
    corruption = Corruption(patches, source, is_corrupted, counts, predicted, num_predicted)
    return corruption.to(device)


def _scores(
    keys: Tensor, grid: tuple[int, int], config: CorruptionConfig, num_corrupted: int
) -> Tensor:
    """Return float64 (B, N): the lower, the sooner a patch is taken; ties go by place."""
    if config.kind == "block":
        return _block_scores(keys, grid, min(config.min_block, num_corrupted), num_corrupted)
    if config.kind == "coarse":
        return _coarse_scores(keys, grid, config.unit)
    return uniform(combine(keys, _CHOICE), grid[0] * grid[1])


def _coarse_scores(keys: Tensor, grid: tuple[int, int], unit: int) -> Tensor:
    """Give the patches of each square one number; the last squares of a row may be cut off."""
    require(
        unit < max(grid),
        f"corruption.unit={unit} makes one square of all {grid[0]}x{grid[1]} patches, and each "
        f"image would lose the same; lower it below {max(grid)}",
    )
    rows, columns = (-(-side // unit) for side in grid)
    squares = uniform(combine(keys, _CHOICE), rows * columns).unflatten(1, (rows, columns))
    fine = squares.repeat_interleave(unit, dim=1).repeat_interleave(unit, dim=2)
    return fine[:, : grid[0], : grid[1]].flatten(1)


def _block_scores(keys: Tensor, grid: tuple[int, int], smallest: int, largest: int) -> Tensor:
    """Give each patch the number of the first block that holds it; those in none come last."""
    top, left, bottom, right = blocks(keys, grid, smallest, largest)[..., None].unbind(2)
    row, column = (torch.arange(side, device=keys.device) for side in grid)
    number = torch.arange(NUM_BLOCKS, device=keys.device, dtype=torch.uint8)[:, None]
    # uint8 (B, blocks, rows) and (B, blocks, columns): only their outer maximum has B*blocks*N
    # not `where`: it would bring NUM_BLOCKS to the device, and wait
    in_rows = number.masked_fill((row < top) | (row >= bottom), NUM_BLOCKS)
    in_columns = number.masked_fill((column < left) | (column >= right), NUM_BLOCKS)
    first = torch.maximum(in_rows[..., None], in_columns[:, :, None]).amin(1).flatten(1)  # (B, N)
    filling = uniform(combine(keys, _FILLING), first.shape[1])
    return first + filling * (first == NUM_BLOCKS)


def blocks(keys: Tensor, grid: tuple[int, int], smallest: int, largest: int) -> Tensor:
    """Draw candidate blocks: int64 (B,) -> int64 (B, blocks, 4) of top, left, bottom, right.

    An area is uniform in smallest..largest patches, an aspect (height to width) log-uniform in
    .3 to 1/.3, and a place uniform where the block fits. In a grid too narrow for the aspect, the
    block is as wide as the grid and as long as its area asks. Sides are rounded to whole patches.
    A patch in the middle lies in more of the places than one at a border, as in BEiT.
    """
    rows, columns = grid
    numbers = uniform(combine(keys, _CHOICE), 4 * NUM_BLOCKS).unflatten(1, (NUM_BLOCKS, 4))
    for_area, for_aspect, for_top, for_left = numbers.unbind(2)  # (B, blocks)
    area = smallest + (for_area * (largest - smallest + 1)).floor()
    aspects = torch.tensor(_ASPECTS, dtype=torch.float64, device="cpu")
    aspects = aspects.to(keys.device, non_blocking=True)
    aspect = aspects[(for_aspect * len(_ASPECTS)).long()]
    aspect = aspect.maximum(area / columns**2).minimum(rows**2 / area)
    height = (area * aspect).sqrt().round().clamp(1, rows)
    width = (area / aspect).sqrt().round().clamp(1, columns)
    top = (for_top * (rows - height + 1)).floor()
    left = (for_left * (columns - width + 1)).floor()
    return torch.stack([top, left, top + height, left + width], dim=2).long()


def apply(embeddings: Tensor, mask_token: Tensor | None, corruption: Corruption) -> Tensor:
    """Corrupt patch embeddings (B, N, D), before position embeddings are added.

    Args:
        embeddings: (B, N, D) from the patch embedding.
        mask_token: (D,) the learnable mask embedding; None leaves the masked patches as they are,
            for an encoder that is given the visible ones alone.
        corruption: What `draw` gave.
    """
    num_mask, num_random, _ = corruption.counts
    masked, random_index = (
        corruption.patches[:, :num_mask],
        corruption.patches[:, num_mask : num_mask + num_random],
    )
    taken = select(embeddings, corruption.source)  # (B, counts.random, D), before any is replaced
    replaced = embeddings
    if mask_token is not None:
        mask = mask_token.to(embeddings.dtype).expand(*masked.shape, -1)
        replaced = embeddings.scatter(1, _over_width(masked, embeddings), mask)
    return replaced.scatter(1, _over_width(random_index, embeddings), taken)


def apply_to_pixels(
    images: Tensor, mask_patch: Tensor | None, corruption: Corruption, patch: tuple[int, int]
) -> Tensor:
    """Corrupt the pixels of patches, for hybrids: as `apply`, before the stem.

    A convolutional stem looks beyond a patch's border, so an embedding that is replaced after it
    would still stand in its neighbours' embeddings, and the answer could be read there.

    Args:
        images: Normalised, float (B, C, H, W).
        mask_patch: (C, Ph, Pw), the learnable pixels of masked patches; None leaves those as they
            are.
        corruption: What `draw` gave for the grid (H/Ph, W/Pw).
        patch: Its height and width (Ph, Pw) in pixels.
    """
    rows, columns = images.shape[2] // patch[0], images.shape[3] // patch[1]
    assert rows * columns == corruption.is_corrupted.shape[1], "corruption of another grid"
    # (B, C, rows, Ph, columns, Pw) -> (B, rows, columns, C, Ph, Pw)
    cut = images.unflatten(3, (columns, patch[1])).unflatten(2, (rows, patch[0]))
    pixels = cut.permute(0, 2, 4, 1, 3, 5)
    mask_token = None if mask_patch is None else mask_patch.flatten()
    corrupted = apply(pixels.flatten(3).flatten(1, 2), mask_token, corruption)  # (B, N, C*Ph*Pw)
    return corrupted.reshape(pixels.shape).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)
