"""Optimal transport between a caption's words and an image's patches: word-patch alignment.

The plan is found by the inexact proximal point method (IPOT), in fp32 whatever autocast says. No
gradient passes through the plan, only through the costs that it weighs.

Source: Xie et al. 2020 (IPOT, arXiv:1802.04307), Algorithm 2; Chen et al. 2020 (UNITER,
arXiv:1909.11740); Kim et al. 2021 (ViLT), section 3.3: 50 iterations, beta 0.5.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BETA, NUM_ITERATIONS = 0.5, 50
_LEAST = 1e-30  # parts of a plan below it are 0: a CPU is slow with numbers near fp32's smallest


class Transport(NamedTuple):
    """A transport of words to patches.

    Attributes:
        distance: float32 (B,), the cost of the plan.
        plan: float32 (B, M, N), which sums to 1: equal parts of each word go to patches, and equal
            parts of each patch come from words. Detached.
    """

    distance: Tensor
    plan: Tensor


def transport(words: Tensor, patches: Tensor, is_word: Tensor, is_patch: Tensor) -> Transport:
    """Transport words to patches at the cost of one minus the cosine.

    Args:
        words: (B, M, D) in any precision.
        patches: (B, N, D).
        is_word: bool (B, M), false where there is none.
        is_patch: bool (B, N), likewise.
    """
    with torch.autocast(words.device.type, enabled=False):
        words, patches = (F.normalize(t.float(), dim=2) for t in (words, patches))
        is_pair = is_word[:, :, None] & is_patch[:, None]
        costs = (1 - words @ patches.transpose(1, 2)).masked_fill(~is_pair, 0.0)
        plan = find_plan(costs.detach(), is_word, is_patch)
        return Transport((costs * plan).sum((1, 2)), plan)


@torch.no_grad()
def find_plan(
    costs: Tensor,
    is_word: Tensor,
    is_patch: Tensor,
    beta: float = BETA,
    num_iterations: int = NUM_ITERATIONS,
) -> Tensor:
    """Find the plan of least cost: (B, M, N) -> (B, M, N), 0 where there is no pair.

    Args:
        costs: Of each pair, in any floating-point type.
        is_word: bool (B, M).
        is_patch: bool (B, N).
        beta: The step of the proximal point method.
        num_iterations: Its steps.
    """
    is_pair = is_word[:, :, None] & is_patch[:, None]
    nearness = torch.exp(-costs / beta) * is_pair
    plan = is_pair.to(costs.dtype)
    num_words, num_patches = (t.sum(1, keepdim=True).clamp(min=1) for t in (is_word, is_patch))
    from_patches = is_patch / num_patches.to(costs.dtype)  # (B, N)
    for _ in range(num_iterations):
        kernel = F.threshold(nearness * plan, _LEAST, 0.0)
        from_words = _share(kernel @ from_patches[:, :, None], num_words, is_word)
        from_patches = _share(kernel.mT @ from_words[:, :, None], num_patches, is_patch)
        plan = from_words[:, :, None] * kernel * from_patches[:, None]
    return plan


def _share(total: Tensor, number: Tensor, is_there: Tensor) -> Tensor:
    """Return what scales each row to its equal share: 1 / (number * total), 0 where is none."""
    total = (number * total.squeeze(2)).clamp(min=_LEAST)  # all of it is 0 of a text without words
    return (1 / total).masked_fill(~is_there, 0.0)
