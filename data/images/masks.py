"""Masks: the bytes of a PNG -> the number of each pixel, in the geometry of its image's crop."""

import numpy as np

from data.images.boxes import Box
from data.images.decoding import open_image, reason_of
from data.images.levels import UnreadableImage
from data.images.limits import check_size

_NUMBERED = ("L", "P", "1")  # Pillow's modes of one number a pixel, of 8 bits or fewer
_PNG_DEPTH = 24  # where a PNG has its bits a sample


def decode_mask(content: bytes) -> np.ndarray:
    """Decode a mask: uint8 (h, w), the numbers as they are in the file, palette or not.

    Raises:
        UnreadableImage: It is damaged, no PNG, or holds colours or more than 8 bits a pixel.
    """
    try:
        image = open_image(content)
        check_size(image.width, image.height, channels=1)
        if image.format != "PNG" or image.mode not in _NUMBERED:
            raise UnreadableImage(
                f"is a {image.format} of mode {image.mode}, not a grey or palette PNG of 8 bits, "
                "whose values are class numbers"
            )
        values = np.array(image, np.uint8)
    except UnreadableImage:
        raise
    except Exception as error:  # on damaged bytes Pillow raises nearly anything
        raise UnreadableImage(f"cannot be decoded: {reason_of(error)}") from error
    depth = content[_PNG_DEPTH]
    if image.mode == "L" and depth < 8:  # Pillow scales grey of fewer bits to 8
        values //= np.uint8(255 // (2**depth - 1))
    return values


def cut_nearest(values: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """Cut a part (h, w) and resize it to (H, W), each pixel the one under its middle."""
    rows, columns = (
        start + (2 * np.arange(number) + 1) * length // (2 * number)
        for start, length, number in (
            (box.top, box.height, size[0]),
            (box.left, box.width, size[1]),
        )
    )
    return values[rows[:, None], columns]
