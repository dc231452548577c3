"""How pixels become patch embeddings, where it is not timm's convolution: a matrix, or a CNN.

Source: Dosovitskiy et al. 2021, section 3.1, "Hybrid Architecture".
"""

from typing import Any, NamedTuple, cast

import timm
import torch
from timm.layers.hybrid_embed import HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from data.settings import UserError, require
from pretrain.encoder.blocks import adopt
from pretrain.encoder.timm_model import create_model


class FlatPatches(nn.Conv2d):
    """A convolution whose stride is its kernel, computed as one matrix on flattened patches.

    Its parameters are the convolution's, so that what is saved is the same.

    Args:
        convolution: torch's, whose parameters and settings it takes over.
        is_everywhere: Whether CPUs compute it so too, and not CUDA devices alone.
    """

    def __init__(self, convolution: nn.Conv2d, *, is_everywhere: bool) -> None:
        adopt(self, convolution)
        self.is_everywhere = is_everywhere

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Project each patch: (B, C, H, W) -> (B, D, rows, columns)."""
        if not (self.is_everywhere or input.is_cuda):
            return super().forward(input)
        height, width = self.kernel_size
        patches = input.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (B, rows, columns, C * Ph * Pw)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def flatten_patches(encoder: VisionTransformer, kind: str) -> None:
    """Let an encoder embed its patches by a matrix in place of a convolution; equal outputs.

    Args:
        encoder: Changed in place.
        kind: `encoder.patch_embed`; `auto`: on CUDA devices, where there is no CNN.

    Raises:
        UserError: `linear`, and its stem is a CNN.
    """
    require(
        kind != "linear" or not is_hybrid(encoder),
        "encoder.patch_embed=linear is for patches of pixels, and this encoder's stem is a CNN; "
        "leave it out",
    )
    if kind != "conv" and not is_hybrid(encoder):
        embedding: Any = encoder.patch_embed
        embedding.proj = FlatPatches(embedding.proj, is_everywhere=kind == "linear")


def is_hybrid(encoder: VisionTransformer) -> bool:
    """Whether its patches are cut from a CNN's feature map."""
    return isinstance(cast(Any, encoder.patch_embed), HybridEmbed)


class Stem(NamedTuple):
    """A timm CNN, and the pixels a cell of the feature map that is cut into patches."""

    name: str
    stride: int


def stem_of(encoder: VisionTransformer) -> Stem | None:
    """Return the CNN that `install_stem` gave an encoder."""
    found = getattr(encoder, "stem", None)
    return found if isinstance(found, Stem) else None  # many of timm's CNNs have a part so named


def install_stem(encoder: VisionTransformer, name: str, stride: int | None) -> None:
    """Give an encoder the feature map of a timm CNN to cut its patches from.

    A patch covers as many pixels as before: P / stride cells of the map a side.

    Args:
        encoder: With patches of P pixels a side.
        name: Of a timm model that gives feature maps.
        stride: Pixels a cell of the map; None takes the largest that divides P.

    Raises:
        UserError: There is no such CNN, or none of its maps has such a stride.
    """
    patches = encoder.patch_embed
    side = patches.patch_size[0]
    channels = encoder.in_chans
    strides = _strides(name)
    fitting = [value for value in strides if side % value == 0]
    require(
        bool(fitting),
        f"encoder.stem={name} has maps of stride {_said(strides)}, none of which divides "
        f"encoder.patch_size={side}; try encoder.patch_size={max(strides)}",
    )
    stride = stride or max(fitting)
    require(
        stride in fitting,
        f"encoder.stem_stride={stride} is not one of {_said(fitting)}, the strides of "
        f"encoder.stem={name} that divide encoder.patch_size={side}",
    )
    last = len(strides) - 1 - strides[::-1].index(stride)
    arguments = {"features_only": True, "out_indices": (last,), "in_chans": channels}
    cnn = create_model(name, arguments, key="encoder.stem")
    hybrid = HybridEmbed(
        cnn, patches.img_size, side // stride, in_chans=channels, embed_dim=encoder.embed_dim
    )
    require(
        hybrid.grid_size == patches.grid_size,
        f"encoder.stem={name} gives {hybrid.grid_size} patches for {patches.grid_size}; "
        "try another stem",
    )
    cast(Any, encoder).patch_embed = hybrid
    cast(Any, encoder).stem = Stem(name, stride)


def _strides(name: str) -> list[int]:
    """Return the strides of a CNN's feature maps, from the first map on."""
    require(
        timm.is_model(name.split(".")[0]),
        f"encoder.stem={name} is no model that timm knows; try resnet26d",
    )
    try:
        with torch.device("meta"):
            cnn = create_model(name, {"features_only": True}, key="encoder.stem")
    except UserError as error:
        raise UserError(f"encoder.stem={name} gives no feature maps; try resnet26d") from error
    return list(cnn.feature_info.reduction())


def _said(values: list[int]) -> str:
    return ", ".join(map(str, sorted(set(values))))
