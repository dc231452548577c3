"""Masked patch prediction: a batch -> the loss, and what the loss means.

The forward pass returns sums over images, not means: the loop adds them over micro-batches and
ranks, so that a step's figures are those of its global batch, however it was cut.

Source: Dosovitskiy et al. 2021, section B.1.2.
"""

from typing import NamedTuple, Protocol

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain import corruption as corrupting
from pretrain.corruption import Corruption, CorruptionConfig
from pretrain.encoder import Normalise, embed, encode, grid_size, patch_size, patch_tokens
from pretrain.targets import TargetConfig, colour_classes

Sums = dict[str, Tensor]


class Output(NamedTuple):
    """What a model makes of a batch.

    Attributes:
        loss: Sum over images of weight times the image's loss, in nats.
        sums: Float64 sums over images from which `summarise` makes figures; detached.
        logits: A classifier's, (B, K).
    """

    loss: Tensor
    sums: Sums
    logits: Tensor | None = None


class Objective(Protocol):
    """What the loop sees of a model."""

    encoder: VisionTransformer

    def summarise(self, sums: Sums) -> dict[str, float]:
        """Turn added-up sums into figures by name."""
        ...


class MaskedPatchModel(nn.Module):
    """An encoder, the mask embedding and the colour head.

    Args:
        encoder: A timm VisionTransformer.
        corruption: How much is corrupted, and in which way.
        target: How finely the colour is asked for.
    """

    ranks: Tensor

    def __init__(
        self, encoder: VisionTransformer, corruption: CorruptionConfig, target: TargetConfig
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.normalise = Normalise(encoder)
        self.target = target
        self.num_patches = encoder.patch_embed.num_patches
        self.counts = corrupting.count(corruption, self.num_patches)
        self.mask_token = nn.Parameter(torch.empty(encoder.embed_dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.head = nn.Linear(encoder.embed_dim, target.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("ranks", distance_ranks(*grid_size(encoder)), persistent=False)

    def forward(self, batch: dict[str, Tensor]) -> Output:
        """Predict the colour class of each corrupted patch from its own token.

        Args:
            batch: `image` uint8 (B, 3, H, W), `weight` (B,), `key` int64 (B,).
        """
        corruption = corrupting.draw(batch["key"], self.num_patches, self.counts)
        classes = colour_classes(batch["image"], patch_size(self.encoder), self.target.bits)
        logits = self.predict(batch["image"], corruption)  # (B, M, K)
        target = classes.gather(1, corruption.patches)  # (B, M)
        losses = F.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), reduction="none")
        loss = (losses.view(target.shape).mean(1) * batch["weight"]).sum()
        with torch.no_grad():
            sums = self._sums(logits.argmax(-1) == target, classes, corruption, batch["weight"])
            sums["loss"] = loss.detach().double()
        return Output(loss, sums)

    def predict(self, images: Tensor, corruption: Corruption) -> Tensor:
        """Return logits over the colour classes of the corrupted patches: (B, M, K)."""
        embeddings = embed(self.encoder, self.normalise(images))
        corrupted = corrupting.apply(embeddings, self.mask_token, corruption)
        tokens = patch_tokens(self.encoder, encode(self.encoder, corrupted))  # (B, N, D)
        return self.head(corrupting.select(tokens, corruption.patches))

    def _sums(self, is_right: Tensor, classes: Tensor, c: Corruption, weight: Tensor) -> Sums:
        """Add up what `summarise` needs; `is_right` is bool (B, M)."""
        target = classes.gather(1, c.patches)
        by_neighbour = classes.gather(1, nearest_visible(self.ranks, c))  # (B, M)
        patch_weight = weight.double()[:, None].expand_as(target)
        right = (is_right * patch_weight).split(list(c.counts), dim=1)
        kinds = ("mask", "random", "kept")
        sums = {f"right_{kind}": part.sum() for kind, part in zip(kinds, right, strict=True)}
        sums |= {
            f"num_{kind}": weight.double().sum() * num
            for kind, num in zip(kinds, c.counts, strict=True)
        }
        sums["num_patches"] = weight.double().sum() * self.num_patches
        sums["weight"] = weight.double().sum()
        sums["right_neighbour"] = ((by_neighbour == target) * patch_weight).sum()
        histogram = torch.zeros(self.target.num_classes, dtype=torch.float64, device=target.device)
        sums["histogram"] = histogram.index_add_(0, target.flatten(), patch_weight.flatten())
        return sums

    def summarise(self, sums: Sums) -> dict[str, float]:
        """Turn sums into figures.

        Returns:
            `loss` (nats); `accuracy`, also by kind of corruption; the measured fractions;
            `class_entropy` (nats), the loss of a model that knows only how frequent each class is;
            `accuracy_majority` and `accuracy_neighbour`, those of answering with the batch's
            most frequent class, and with the colour of the nearest patch that is not corrupted.
        """
        num = {kind: sums[f"num_{kind}"] for kind in ("mask", "random", "kept")}
        num_corrupted = sum(num.values(), torch.zeros(()))
        right = {kind: sums[f"right_{kind}"] for kind in num}
        frequency = sums["histogram"] / num_corrupted
        figures = {
            "loss": sums["loss"] / sums["weight"],
            "accuracy": sum(right.values(), torch.zeros(())) / num_corrupted,
            **{f"accuracy_{kind}": right[kind] / num[kind] for kind in num if num[kind] > 0},
            "accuracy_majority": frequency.max(),
            "accuracy_neighbour": sums["right_neighbour"] / num_corrupted,
            "class_entropy": -torch.special.xlogy(frequency, frequency).sum(),
            "corrupted_ratio": num_corrupted / sums["num_patches"],
            **{f"{kind}_ratio": num[kind] / num_corrupted for kind in num},
        }
        return {name: float(value) for name, value in figures.items()}


def distance_ranks(rows: int, columns: int) -> Tensor:
    """Rank all patches by distance from each: int32 (N, N), itself 0, ties by place."""
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))  # (N, 2)
    squared = (places[:, None] - places).pow(2).sum(-1)  # (N, N)
    return squared.argsort(dim=1, stable=True).argsort(dim=1).int()


def nearest_visible(ranks: Tensor, corruption: Corruption) -> Tensor:
    """Return, for each corrupted patch, the nearest one that is not corrupted: int64 (B, M)."""
    is_hidden = corruption.is_corrupted[:, None]  # (B, 1, N)
    return ranks[corruption.patches].masked_fill(is_hidden, ranks.shape[0]).argmin(dim=2)
