"""What a frozen encoder's features are worth: features by layer and pooling, ridge in closed form.

Source: the paper's in-loop measure, section 4.1 "few-shot"; google-research/big_vision,
evaluators/fewshot_lsr.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from tqdm import tqdm

from data.loader import Batch
from data.settings import UserError, require
from pretrain.encoder import Normalise

POOLINGS = ("average", "class")


@dataclass(frozen=True)
class Features:
    """Frozen features of a split.

    Attributes:
        values: float32 (N, D).
        labels: int64 (N,).
    """

    values: Tensor
    labels: Tensor


def check_features(encoder: VisionTransformer, layer: int, pooling: str) -> None:
    """Raise `UserError` unless the encoder has that layer and pooling."""
    depth = len(encoder.blocks)
    require(
        1 <= layer <= depth, f"fewshot.layer={layer} is not in 1..{depth}, the encoder's blocks"
    )
    if pooling not in POOLINGS:
        raise UserError(f"fewshot.pooling={pooling} is not one of {', '.join(POOLINGS)}")
    require(
        pooling != "class" or encoder.cls_token is not None,
        "fewshot.pooling=class, but the encoder has no class token; use average",
    )


@torch.no_grad()
def extract(
    encoder: VisionTransformer, batches: Iterable[Batch], layer: int, pooling: str, title: str
) -> Features:
    """Return the pooled tokens of all samples with weight 1.

    Args:
        encoder: On the device that is to do it.
        batches: Labelled evaluation batches.
        layer: 1 is the first block's output, `depth` the last's; the final norm is applied.
        pooling: `average` over the patches, or the `class` token, which pretraining by masked
            patches gives no loss.
        title: What the progress bar says.
    """
    encoder.eval()
    device = next(encoder.parameters()).device
    normalise = Normalise(encoder).to(device)
    values: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in tqdm(batches, title, unit="batch", delay=2, disable=None):
        images = normalise(batch.tensors["image"].to(device))
        pooled = _pool(encoder, images, layer, pooling)
        is_good = batch.tensors["weight"] > 0
        values.append(pooled.float().cpu()[is_good])
        labels.append(batch.tensors["label"][is_good])
    return Features(torch.cat(values), torch.cat(labels))


def _pool(encoder: VisionTransformer, images: Tensor, layer: int, pooling: str) -> Tensor:
    layers = encoder.forward_intermediates(
        images,
        indices=[layer - 1],
        norm=True,
        output_fmt="NLC",
        return_prefix_tokens=True,
        intermediates_only=True,
    )
    [(patches, prefix)] = cast(list[tuple[Tensor, Tensor]], layers)
    return patches.mean(1) if pooling == "average" else prefix[:, 0]  # (B, D)


def ridge(features: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """Solve min_W |[X, 1] W - Y|^2 + penalty |W|^2 in closed form, in float64.

    Setting the gradient to zero: (X'X + penalty I) W = X'Y. The bias is a feature like any other.

    Args:
        features: (n, D).
        targets: (n, K).
        penalty: Above 0.

    Returns:
        W: (D + 1, K).
    """
    x = _with_bias(features.double())
    gram = x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(gram, x.T @ targets.double())


def ridge_accuracy(train: Features, val: Features, penalty: float) -> float:
    """Fit labels as {-1, 1}^K on standardised features; return the accuracy on `val`."""
    mean = train.values.mean(0)
    deviation = train.values.std(0, correction=0) + 1e-6
    classes = torch.arange(int(train.labels.max()) + 1)
    targets = (train.labels[:, None] == classes) * 2 - 1  # (n, K)
    weights = ridge((train.values - mean) / deviation, targets, penalty)
    scores = _with_bias(((val.values - mean) / deviation).double()) @ weights
    return float((scores.argmax(1) == val.labels).double().mean())


def _with_bias(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
