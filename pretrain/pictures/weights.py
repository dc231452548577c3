"""Pictures of an encoder's weights: filters of its patch embedding, and its positions.

Of an encoder that is cut over the ranks (FSDP), all ranks have to ask.
"""

from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from pretrain.encoder import positions
from pretrain.encoder.facts import grid_size
from pretrain.encoder.stems import is_hybrid
from pretrain.training.parallel import whole


def principal_filters(encoder: VisionTransformer, num: int = 28) -> Tensor | None:
    """Return the leading principal components of the patch embedding's filters.

    The D filters are centred, as in every principal component analysis; each component has length
    1, and its largest weight is positive.

    Source: Dosovitskiy et al. 2021, Figure 7, left.

    Args:
        encoder: A timm VisionTransformer.
        num: How many; fewer come back where there are no more.

    Returns:
        float32 (num, C, Ph, Pw) on the CPU, or None where patches are not of pixels, behind a CNN.
    """
    if is_hybrid(encoder):
        return None
    weight: Tensor = cast(Any, encoder).patch_embed.proj.weight  # (D, C, Ph, Pw)
    filters = whole(weight.detach()).cpu().double().flatten(1)
    filters = filters - filters.mean(0)
    components = torch.linalg.svd(filters, full_matrices=False).Vh[: min(num, len(filters) - 1)]
    largest = components.abs().argmax(1, keepdim=True)
    components = components * components.gather(1, largest).sign()
    return components.float().unflatten(1, weight.shape[1:])


def position_similarity(encoder: VisionTransformer) -> Tensor | None:
    """Return the cosine similarity of each patch's position embedding to all others.

    Source: Dosovitskiy et al. 2021, Figure 7, centre.

    Returns:
        float32 (N, rows, columns) on the CPU, for the table at the stem, or the first block's; None
        where there is none.
    """
    tables = positions.tables(encoder)
    if not tables:
        return None
    table = F.normalize(whole(tables[0]).cpu().double(), dim=1)
    return (table @ table.T).float().unflatten(1, grid_size(encoder))
