"""The nearest visible patch: how far it is, and what copying it would give."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pretrain.objective.corruption import Corruption

NUM_DISTANCES = 4  # 1, 2, 3 patches, and 4 and more


class Nearest(NamedTuple):
    """The nearest patch that is not corrupted, of each one that is predicted.

    Attributes:
        patches: int64 (B, P).
        distances: float32 (B, P), between the centres, in patches.
    """

    patches: Tensor
    distances: Tensor


class NearestVisible(nn.Module):
    """Finds the nearest patch that is not corrupted.

    Args:
        grid: (rows, columns) of the patches.
    """

    ranks: Tensor
    distances: Tensor

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("ranks", distance_ranks(*grid), persistent=False)
        self.register_buffer("distances", patch_distances(*grid), persistent=False)

    def forward(self, corruption: Corruption) -> Nearest:
        """Look up the nearest patch that is not corrupted; ties by place."""
        is_hidden = corruption.is_corrupted[:, None]  # (B, 1, N)
        ranks = self.ranks[corruption.predicted]  # (B, P, N)
        patches = ranks.masked_fill(is_hidden, ranks.shape[2]).argmin(dim=2)
        return Nearest(patches, self.distances[corruption.predicted, patches])


def patch_distances(rows: int, columns: int) -> Tensor:
    """Return the distance of each pair of patches, in patches: float32 (N, N)."""
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()  # (N, 2)
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def distance_ranks(rows: int, columns: int) -> Tensor:
    """Rank all patches by distance from each: int32 (N, N), itself 0, ties by place."""
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))  # (N, 2)
    squared = (places[:, None] - places).pow(2).sum(-1)  # (N, N)
    return squared.argsort(dim=1, stable=True).argsort(dim=1).int()
