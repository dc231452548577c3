"""What the features of patches are like: principal components as colours, and cosine similarity."""

from collections.abc import Mapping, Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from pretrain.encoder.facts import grid_size
from pretrain.encoder.tokens import Normalise
from pretrain.evaluation.features import read_tokens
from pretrain.pictures import draw
from pretrain.pictures.attention import evaluating

_BATCH = 8  # images a forward pass
_ENDS = (0.01, 0.99)  # quantiles of a component that are drawn as 0 and 1


@torch.no_grad()
def patch_features(
    encoder: VisionTransformer, images: Tensor, layers: Sequence[int]
) -> dict[int, Tensor]:
    """Return the patch tokens of some layers, behind the final norm.

    Args:
        encoder: On any device; its mode is left as it was.
        images: uint8 (B, C, H, W).
        layers: From 1.

    Returns:
        By layer, float32 (B, rows, columns, D) on the CPU.
    """
    device = next(encoder.parameters()).device
    normalise = Normalise(encoder).to(device)
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    with evaluating(encoder), torch.autocast(device.type, enabled=False):
        for part in images.split(_BATCH):
            for layer, tokens in read_tokens(encoder, normalise(part.to(device)), layers).items():
                parts[layer].append(tokens.patches.float().cpu())
    return {layer: torch.cat(of).unflatten(1, grid_size(encoder)) for layer, of in parts.items()}


def colours(features: Tensor) -> Tensor:
    """Return the first three principal components of patches as red, green and blue.

    They are those of all images together, so that a colour means the same in each of them. A
    component's sign is chosen such that its weight of the largest size is positive, as
    scikit-learn's `svd_flip` does; each is stretched from its 1st to its 99th percentile.

    Args:
        features: (B, rows, columns, D).

    Returns:
        float32 (B, 3, rows, columns), in 0..1.

    Source: DINOv2, arXiv:2304.07193, Figure 1.
    """
    values = features.flatten(0, 2).double()
    values = values - values.mean(0)
    _, weights = torch.linalg.eigh(values.T @ values)  # the largest last
    weights = weights[:, -3:].flip(1)  # (D, 3)
    largest = weights.gather(0, weights.abs().argmax(0, keepdim=True))
    components = values @ (weights * largest.sign())
    low, high = components.quantile(torch.tensor(_ENDS).double(), dim=0)
    scaled = ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return scaled.float().unflatten(0, features.shape[:3]).permute(0, 3, 1, 2)


def similarities(features: Tensor) -> Tensor:
    """Return the cosine similarity of each patch to each other one of its image.

    Args:
        features: (B, rows, columns, D).

    Returns:
        float32 (B, N, N), patches row by row.
    """
    directions = F.normalize(features.flatten(1, 2), dim=2)
    return directions @ directions.transpose(1, 2)


def component_pictures(images: Tensor, features: Mapping[int, Tensor]) -> Tensor:
    """Return each image beside the colours of its patches in each layer.

    Args:
        images: uint8 (B, C, H, W).
        features: By layer, what `patch_features` gave of these images.

    Returns:
        uint8 (B, 1 + layers, 3, H, W).
    """
    layers = [enlarged(colours(of), images.shape[2:]) for of in features.values()]
    return torch.stack([draw.rgb(images), *layers], dim=1)


def enlarged(pictures: Tensor, size: Sequence[int]) -> Tensor:
    """Enlarge pictures (B, 3, rows, columns) in 0..1, a pixel a patch, to uint8 (B, 3, H, W)."""
    return (F.interpolate(pictures, tuple(size)) * 255).round().to(torch.uint8)
