"""An encoder's sizes, channels and image statistics."""

from dataclasses import replace
from typing import Any, cast

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from data.settings import require
from pretrain.configuration.load import Config


def resolve(config: Config, encoder: VisionTransformer) -> Config:
    """Fill in the image size, channels, mean and std that were left to the encoder."""
    whole: Any = config
    data = replace(
        whole.data,
        image_size=list(image_size(encoder)),
        channels=num_channels(encoder),
        mean=tuple(image_data(encoder)["mean"]),
        std=tuple(image_data(encoder)["std"]),
    )
    return replace(whole, data=data)


def check_image_size(size: tuple[int, int], patch: tuple[int, int]) -> None:
    """Raise `UserError` unless each side of (H, W) is a multiple of the patch's."""
    for side, patch_side in zip(size, patch, strict=True):
        near = max(1, round(side / patch_side)) * patch_side
        require(
            side % patch_side == 0,
            f"data.image_size={side} is not a multiple of encoder.patch_size={patch_side}; "
            f"try {near}",
        )


def check_channels(encoder: Any, what: str, channels: int | None) -> None:
    """Raise `UserError` unless an encoder, which `what` names, takes images of these channels."""
    own = num_channels(encoder)
    require(
        channels in (None, own),
        f"{what} takes images of {own} channels, and data.channels={channels}; leave it out, or "
        "name another encoder",
    )


def image_data(encoder: VisionTransformer) -> dict[str, Any]:
    """Return timm's record of what the encoder is fed: `input_size`, `mean`, `std` and more."""
    return cast(dict[str, Any], encoder.pretrained_cfg)


def patch_size(encoder: VisionTransformer) -> tuple[int, int]:
    """(height, width) of a patch in pixels, also where it is cut from a CNN's feature map."""
    height, width = cast(Any, encoder.patch_embed).feat_ratio(as_scalar=False)
    return height, width


def num_channels(encoder: Any) -> int:
    """Channels of the images that a model takes."""
    if isinstance(encoder, VisionTransformer):
        return encoder.in_chans
    weight: Tensor = encoder.get_parameter(f"{image_data(encoder)['first_conv']}.weight")
    return weight.shape[1] if weight.ndim == 4 else 3


def image_size(encoder: VisionTransformer) -> tuple[int, int]:
    """(H, W) of the images it takes."""
    _, height, width = image_data(encoder)["input_size"]
    return height, width


def grid_size(encoder: VisionTransformer) -> tuple[int, int]:
    """(rows, columns) of its patches; their product is `N`."""
    return encoder.patch_embed.grid_size
