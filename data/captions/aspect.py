"""Images that keep their aspect: resized to whole patches, at the top left of a square canvas."""

from dataclasses import dataclass

import torch
from torch import Tensor

from data.images.boxes import whole_box
from data.images.decoding import decode_resized
from data.settings import require


@dataclass(frozen=True)
class Aspect:
    """How large an image becomes.

    Args:
        short: Pixels of the short side.
        long: The most pixels of the long side; the short one is shorter where it would be more.
        patch: Pixels a side of a patch.

    Raises:
        UserError: The sides are no whole patches.

    Source: ViLT's MinMaxResize (https://github.com/dandelin/ViLT); Kim et al. 2021, section 4.2.
    """

    short: int
    long: int
    patch: int

    def __post_init__(self) -> None:
        for key, side in (("data.image_size", self.short), ("data.long_side", self.long)):
            lower = max(1, side // self.patch) * self.patch
            require(
                side % self.patch == 0,
                f"{key}={side} is not a multiple of encoder.patch_size={self.patch}; try {lower}",
            )

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return (H, W) that an image becomes: whole patches, at least one each way."""
        scale = self.short / min(height, width)
        scale = min(scale, self.long / max(height, width))
        sides = [int(side * scale + 0.5) for side in (height, width)]
        h, w = (max(1, side // self.patch) * self.patch for side in sides)
        return h, w

    def place(self, content: bytes, channels: int) -> tuple[Tensor, tuple[int, int]]:
        """Decode an image and lay it on the canvas.

        Returns:
            uint8 (C, long, long), zeros beside the image, and the rows and columns of its patches.

        Raises:
            UnreadableImage: As `decode_resized` does.
        """
        image = decode_resized(content, channels, lambda h, w: (whole_box(h, w), self.size(h, w)))
        height, width = image.shape[1:]
        canvas = torch.zeros((channels, self.long, self.long), dtype=torch.uint8)
        canvas[:, :height, :width] = image
        return canvas, (height // self.patch, width // self.patch)
