"""Visual words: learnt from a run's first images, before its first step, by k-means.

They are of the training crops that the run would begin with, whatever the number of ranks, so they
follow from the shards and the seed; a checkpoint holds them, and a resume takes its own.

Source: as `pretrain.objective.words.Words`.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.objective.classes import _MAX_COMPONENTS, Classes
from pretrain.objective.pixels import to_patches

NUM_IMAGES, NUM_PATCHES = 1_024, 65_536  # that are looked at, at most
_NUM_ROUNDS = 25  # of k-means
_FLOOR = 0.01  # of the largest variance, added to all: what is next to nothing is not blown up
_BLOCK = 4_096  # patches whose distances are in memory at a time


def fit(patches: Tensor, num_words: int, num_components: int, seed: int) -> dict[str, Tensor]:
    """Learn words by k-means over whitened principal components.

    Args:
        patches: uint8 (n, V), at least as many as words; of more than `NUM_PATCHES` so many are
            drawn.
        num_words: `K`.
        num_components: `D`, at most `V`.
        seed: Of that draw, and of the patches that k-means begins with.

    Returns:
        The buffers of `Words`, float32: `mean` (V,), `components` (V, D), `words`
        (K, D) and `pixels` (K, V).
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(patches), generator=generator)[:NUM_PATCHES]
    values = patches[chosen].float()
    mean = values.mean(0)
    centred = values - mean
    covariance = (centred.T.double() @ centred.double()) / len(centred)
    variances, directions = torch.linalg.eigh(covariance)  # ascending
    variances, directions = variances[-num_components:], directions[:, -num_components:]
    # patches of one colour have no variance at all
    scale = (variances + _FLOOR * variances.max()).clamp(min=1e-6).rsqrt()
    components = (directions * scale).float()
    places = centred @ components  # (n, D)
    words = places[:num_words]
    nearest = torch.empty(0)
    for _ in range(_NUM_ROUNDS):
        nearest = torch.cat([nearest_word(part, words) for part in places.split(_BLOCK)])
        words = _means(places, nearest, words)
    return {
        "mean": mean,
        "components": components,
        "words": words,
        "pixels": _means(values, nearest, words @ torch.linalg.pinv(components) + mean),
    }


def _means(values: Tensor, nearest: Tensor, otherwise: Tensor) -> Tensor:
    """Return the mean of each word's values, (K, V); `otherwise` that of a word without any."""
    sums = torch.zeros_like(otherwise).index_add_(0, nearest, values)
    count = torch.bincount(nearest, minlength=len(otherwise))[:, None]
    return torch.where(count > 0, sums / count.clamp(min=1), otherwise)


class Words(Classes):
    """The nearest of `K` visual words, which `pretrain.objective.words.fit` learns from patches.

    Distances are Euclidean between the patches' whitened principal components, so that structure
    counts beside brightness. The words are buffers, and saved with the model: before `load`, or a
    checkpoint, all are alike and every patch is word 0. A patch that lies between two words may get
    one on one kind of device and the other on another.

    Source: the classes of the paper's mean colour, learnt as HuBERT learns its own (Hsu et al.
    2021, arXiv:2106.07447), from patches whitened as in Coates and Ng 2012, "Learning Feature
    Representations with K-means".

    Args:
        patch: Pixels of a patch, (height, width).
        channels: `C` of the images.
        num_words: `K`.
    """

    mean: Tensor
    components: Tensor
    words: Tensor
    pixels: Tensor

    def __init__(self, patch: tuple[int, int], channels: int, num_words: int) -> None:
        super().__init__()
        self.patch = patch
        self.channels = channels
        self.num_classes = self.num_outputs = num_words
        num_values = channels * math.prod(patch)
        self.num_components = min(_MAX_COMPONENTS, num_values)
        shapes = {
            "mean": (num_values,),
            "components": (num_values, self.num_components),
            "words": (num_words, self.num_components),
            "pixels": (num_words, num_values),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    @torch.no_grad()
    def load(self, fitted: dict[str, Tensor]) -> None:
        """Take over what `pretrain.objective.words.fit` found."""
        for name, value in fitted.items():
            getattr(self, name).copy_(value)

    def answers(self, images: Tensor) -> Tensor:
        """Return the nearest word of each patch: uint8 (B, C, H, W) -> int64 (B, N, 1)."""
        values = to_patches(images.float(), self.patch).flatten(2)  # (B, N, V), in grey levels
        with torch.autocast(images.device.type, enabled=False):
            places = (values - self.mean) @ self.components  # (B, N, D)
            return nearest_word(places, self.words)[..., None]

    def colours(self, guesses: Tensor, images: Tensor, is_visible: Tensor) -> Tensor:  # noqa: ARG002
        """Paint each patch as the mean of the patches that its word was learnt from."""
        pixels = self.pixels[guesses[..., 0]].round().clamp(0, 255).to(torch.uint8)  # (B, N, V)
        return pixels.unflatten(2, (self.channels, *self.patch))


def nearest_word(places: Tensor, words: Tensor) -> Tensor:
    """Return the nearest word of each place: (..., D), (K, D) -> int64 (...); ties to the first."""
    return F.linear(places, words, words.square().sum(1) / -2).max(-1).indices
