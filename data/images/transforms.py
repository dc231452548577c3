"""Crops: the bytes of any image -> uint8 crops (C, H, W), for training and for evaluation.

Pixels stay uint8 until the model: targets are made from them, a batch costs a quarter of the
memory, and integer resizing gives the same result on any number of threads.
"""

import numpy as np
from torch import Tensor

from data.images.boxes import FLIP, evaluation_box, training_box
from data.images.decoding import decode_resized


def training_crop(
    content: bytes,
    uniform: np.ndarray,
    size: tuple[int, int],
    crop_area: tuple[float, float],
    channels: int = 3,
) -> Tensor:
    """Cut a random part of an image, resize it and flip it half of the time ("inception crop").

    Args:
        content: The image, as `decode` takes it.
        uniform: (NUM_UNIFORM,) numbers in [0, 1), of which all but the last are used.
        size: (H, W) of the result.
        crop_area: Range of the part's area as a fraction of the image's.
        channels: C of the result, uint8 (C, H, W).

    Raises:
        UnreadableImage: As `decode` does.

    Source: Szegedy et al. 2015, section 6.
    """
    return decode_resized(
        content,
        channels,
        lambda h, w: (training_box(h, w, uniform, size, crop_area), size),
        is_flipped=bool(uniform[FLIP] < 0.5),
    )


def evaluation_crop(content: bytes, size: tuple[int, int], channels: int = 3) -> Tensor:
    """Resize an image so that (H, W) is covered and cut the centre: uint8 (C, H, W).

    Raises:
        UnreadableImage: As `decode` does.
    """
    return decode_resized(content, channels, lambda h, w: (evaluation_box(h, w, size), size))
