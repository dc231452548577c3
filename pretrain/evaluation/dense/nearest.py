"""k-NN of patches, without any training: each pixel has the class that most neighbours have there.

Source: CAPI, arXiv:2502.08769; its repository's eval_segmentation.py, `KNNClassifier`. Here pixels
of no class have no vote, and the bank of patches is capped.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.evaluation.dense.heads import Fit, Kept, Predict, keep_patches
from pretrain.evaluation.dense.patches import Patches, join_pixels

_NUM_SCORES = 1 << 26  # numbers that a block of similarities, or of votes, holds at most: 256 MiB


class NearestSettings(NamedTuple):
    """How many patches vote, and by which distance they are near."""

    neighbours: int
    distance: str


def fit_nearest(
    train: Patches, settings: Sequence[NearestSettings], fit: Fit, most: int
) -> Predict:
    """Keep a bank of training patches, in which each patch's neighbours are looked for.

    Memory: the bank twice, and blocks of 256 MiB of similarities and of votes (one row, where a
    row is larger).

    Args:
        train: Features that are standardised.
        settings: All of them share what they can.
        fit: The rest.
        most: Patches in the bank at most.
    """
    bank = Kept(*(of.to(fit.device) for of in keep_patches(train, fit.num_classes, most)))
    grid, size = train.grid, train.size

    def predict(values: Tensor) -> list[Tensor]:
        queries = values.to(fit.device).flatten(0, 1)
        found = vote(bank, queries, settings, fit.num_classes)
        fit.report(0)
        return [
            join_pixels(pixels.view(len(values), -1, pixels.shape[1]), grid, size)
            for pixels in found
        ]

    fit.report(len(settings))
    return predict


def vote(
    bank: Kept, queries: Tensor, settings: Sequence[NearestSettings], num_classes: int
) -> list[Tensor]:
    """Return the classes of the pixels of patches (n, D), by each setting: int64 (n, P).

    Of classes with as many votes it is the least; where no neighbour has a class, that of most
    pixels of all neighbours.
    """
    most = max(one.neighbours for one in settings)
    num_pixels = bank.pixels.shape[1]
    sizes = len(bank.values), 8 * most * num_pixels, (num_classes + 1) * num_pixels
    rows = max(1, _NUM_SCORES // max(sizes))
    found: list[list[Tensor]] = [[] for _ in settings]
    for distance in dict.fromkeys(one.distance for one in settings):
        scale = F.normalize if distance == "cosine" else _as_it_is
        keys = scale(bank.values)
        shift = None if distance == "cosine" else keys.square().sum(1) / 2
        for part in scale(queries).split(rows):
            likeness = part @ keys.T
            if shift is not None:  # -|a - b|^2 / 2, but for |a|^2, which all of a row have
                likeness -= shift
            nearest = likeness.topk(min(most, len(keys))).indices
            for place, one in enumerate(settings):
                if one.distance == distance:
                    pixels = bank.pixels[nearest[:, : one.neighbours]]
                    found[place].append(_most_frequent(pixels, num_classes))
    return [torch.cat(parts) for parts in found]


def _as_it_is(values: Tensor) -> Tensor:
    return values


def _most_frequent(pixels: Tensor, num_classes: int) -> Tensor:
    """Return the class with most votes for each pixel: uint8 (n, k, P) -> int64 (n, P)."""
    places = pixels.long().clamp(max=num_classes)  # `IGNORED` comes last
    one = torch.ones((), dtype=torch.int32, device=pixels.device)
    votes = one.new_zeros(len(pixels), num_classes + 1, pixels.shape[2])
    votes = votes.scatter_add_(1, places, one.expand_as(places))[:, :-1]  # (n, K, P)
    of_patch = votes.sum(2).argmax(1)
    return torch.where(votes.sum(1) > 0, votes.argmax(1), of_patch[:, None])
