"""Nearest images: which ones an encoder finds alike."""

from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.encoder.tokens import Normalise
from pretrain.pictures.attention import evaluating

_BATCH = 32  # images a forward pass


def begin_again(checkpoint: Path, seed: int) -> VisionTransformer:
    """Return the encoder of a checkpoint as it is with random weights, whatever it began with.

    Args:
        checkpoint: Its folder.
        seed: Of the weights; torch's generator is left as it was.

    Raises:
        UserError: The checkpoint holds no encoder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_encoder(EncoderConfig(like=str(checkpoint)))


@torch.no_grad()
def nearest_images(encoder: VisionTransformer, images: Tensor, queries: Tensor, num: int) -> Tensor:
    """Return the places of the images that are most like each query, the most alike first.

    Likeness is the cosine between patch averages, as in `pretrain.evaluation.classifiers.knn`.

    Args:
        encoder: On the CPU; its mode is left as it was.
        images: uint8 (B, C, H, W).
        queries: int64 (Q,), places among the images; an image is not its own neighbour.
        num: `K`, at most B - 1.

    Returns:
        int64 (Q, K).
    """
    normalise = Normalise(encoder)
    with evaluating(encoder):
        features = torch.cat([encoder(normalise(part)) for part in images.split(_BATCH)])
    features = F.normalize(features, dim=1)
    likeness = features[queries] @ features.T
    likeness[torch.arange(len(queries)), queries] = -torch.inf
    return likeness.topk(num).indices
