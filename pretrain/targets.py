"""What a corrupted patch is asked for: its mean colour, 3 bits a channel, 8^3 = 512 classes.

Source: Dosovitskiy et al. 2021, section B.1.2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from data.settings import require, setting


@dataclass(frozen=True)
class TargetConfig:
    """How finely a patch's mean colour is asked for."""

    bits: int = setting(3, "bits a channel of the mean colour: 2^(3*bits) classes")

    def __post_init__(self) -> None:
        require(1 <= self.bits <= 5, f"target.bits={self.bits} is not in 1..5; the paper has 3")

    @property
    def num_classes(self) -> int:
        """Number of colour classes `K`."""
        return 1 << (3 * self.bits)


def patch_sums(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Sum each channel over each patch: uint8 (B, 3, H, W) -> int64 (B, N, 3), row by row."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size[0], width // patch_size[1]
    # (B, 3, rows, P, columns, P); int32 holds 255 * P^2 up to P = 2,900
    pixels = images.view(batch, channels, rows, patch_size[0], columns, patch_size[1])
    sums = pixels.sum(dim=(3, 5), dtype=torch.int32)
    return sums.flatten(2).transpose(1, 2).long()


def colour_classes(images: Tensor, patch_size: tuple[int, int], bits: int) -> Tensor:
    """Return each patch's mean colour as a class: uint8 (B, 3, H, W) -> int64 (B, N).

    A channel's bin is `floor(mean / 2^(8 - bits))`, computed in integers, so a mean that lies on a
    bin's lower edge belongs to that bin. The class is `(red * 2^bits + green) * 2^bits + blue`.
    """
    num_pixels = patch_size[0] * patch_size[1]
    bins = (patch_sums(images, patch_size) << bits) // (256 * num_pixels)  # (B, N, 3)
    return (bins[..., 0] << (2 * bits)) | (bins[..., 1] << bits) | bins[..., 2]


def class_colours(bits: int) -> Tensor:
    """Return the colour in the middle of each class's bins: uint8 (K, 3)."""
    classes = torch.arange(1 << (3 * bits))
    bins = torch.stack([classes >> (2 * bits), classes >> bits, classes], dim=1) % (1 << bits)
    width = 256 >> bits
    return (bins * width + width // 2).to(torch.uint8)
