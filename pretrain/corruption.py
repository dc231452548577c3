"""Which patch embeddings are corrupted, and how.

In each image `M = round(ratio * N)` patch embeddings are corrupted: 80 % become the learnable mask
embedding, 10 % the embedding of another patch of the same image, 10 % stay. The split is exact
(largest remainder), so shapes are static and every image gives the same number of predictions.

Source: Dosovitskiy et al. 2021, section B.1.2; the split is BERT's (Devlin et al. 2019).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data.randomness import combine, uniform
from data.settings import require, setting

_CHOICE, _SOURCE = 2, 3  # purposes of a sample's random numbers


@dataclass(frozen=True)
class CorruptionConfig:
    """How much is corrupted, and in which way."""

    ratio: float = setting(0.5, "fraction of an image's patches that are corrupted and predicted")
    mask_ratio: float = setting(0.8, "fraction of those that become the mask embedding")
    random_ratio: float = setting(0.1, "fraction of those that become another patch; the rest stay")

    def __post_init__(self) -> None:
        for key in ("ratio", "mask_ratio", "random_ratio"):
            value = getattr(self, key)
            require(0 <= value <= 1, f"corruption.{key}={value} is not in 0..1")
        require(self.ratio > 0, "corruption.ratio=0.0 leaves nothing to predict; the paper has 0.5")
        total = self.mask_ratio + self.random_ratio
        require(
            total <= 1 + 1e-9,
            f"corruption.mask_ratio + corruption.random_ratio = {total:g} is over 1; "
            "the paper has 0.8 + 0.1",
        )


class Counts(NamedTuple):
    """Patches an image of each kind; their sum is `M`."""

    mask: int
    random: int
    kept: int


def count(config: CorruptionConfig, num_patches: int) -> Counts:
    """Split `round(ratio * N)` patches by largest remainder; ties favour mask, then random.

    Raises:
        UserError: If no patch would be corrupted, or there is no other patch to take.
    """
    total = round(config.ratio * num_patches)
    require(
        total > 0,
        f"corruption.ratio={config.ratio} corrupts none of {num_patches} patches; raise it",
    )
    kept_ratio = max(0.0, 1 - config.mask_ratio - config.random_ratio)
    # rounding hides the binary noise of 0.1 * 30 = 3.0000000000000004
    shares = [round(total * r, 6) for r in (config.mask_ratio, config.random_ratio, kept_ratio)]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(3), key=lambda kind: counts[kind] - shares[kind])
    for kind in by_remainder[: total - sum(counts)]:
        counts[kind] += 1
    require(
        counts[1] == 0 or num_patches > 1,
        "corruption.random_ratio needs a second patch to take; set it to 0",
    )
    return Counts(*counts)


class Corruption(NamedTuple):
    """What is corrupted in a batch.

    Attributes:
        patches: int64 (B, M), the corrupted patches: first the masked, then the random, then the
            kept ones, as many as `counts` says.
        source: int64 (B, counts.random), the patch whose embedding each random one takes.
        is_corrupted: bool (B, N).
        counts: Patches an image of each kind.
    """

    patches: Tensor
    source: Tensor
    is_corrupted: Tensor
    counts: Counts


def draw(keys: Tensor, num_patches: int, counts: Counts) -> Corruption:
    """Draw each image's corruption from its key alone: int64 (B,) -> `Corruption`."""
    scores = uniform(combine(keys, _CHOICE), num_patches)  # (B, N)
    patches = scores.argsort(dim=1, stable=True)[:, : sum(counts)]
    random_index = patches[:, counts.mask : counts.mask + counts.random]
    steps = uniform(combine(keys, _SOURCE), counts.random) * (num_patches - 1)
    source = (random_index + 1 + steps.long()) % num_patches  # 1 to N - 1 further: never itself
    is_corrupted = torch.zeros_like(scores, dtype=torch.bool).scatter(1, patches, True)
    return Corruption(patches, source, is_corrupted, counts)


def apply(embeddings: Tensor, mask_token: Tensor, corruption: Corruption) -> Tensor:
    """Corrupt patch embeddings (B, N, D), before position embeddings are added.

    Args:
        embeddings: (B, N, D) from the patch embedding.
        mask_token: (D,) the learnable mask embedding.
        corruption: What `draw` gave.
    """
    num_mask, num_random, _ = corruption.counts
    masked, random_index = (
        corruption.patches[:, :num_mask],
        corruption.patches[:, num_mask : num_mask + num_random],
    )
    taken = select(embeddings, corruption.source)  # (B, counts.random, D), before any is replaced
    mask = mask_token.to(embeddings.dtype).expand(*masked.shape, -1)
    replaced = embeddings.scatter(1, _over_width(masked, embeddings), mask)
    return replaced.scatter(1, _over_width(random_index, embeddings), taken)


def select(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick tokens of each image: (B, N, D), int64 (B, M) -> (B, M, D)."""
    return tokens.gather(1, _over_width(index, tokens))


def _over_width(index: Tensor, tokens: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, tokens.shape[-1])
