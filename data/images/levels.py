"""An image's values -> 8 bits, where it is known which of them are black and white.

Unsigned 8 and 16 bits say it by their type, and a TIFF of 12 bits, too. Floats say it where all lie
in 0 to 1; integers of 32 bits and more, where they lie in 16 bits and not in 8. All else is refused
by name: to guess would give black or white images.
"""

from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

_DEEP = ("I", "F")  # Pillow's modes of one value a pixel, of more than 8 bits; and I;16, I;16B, ...
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
_WHITE_IS_ZERO, _SIGNED = 0, 2
_PNG_DEPTH = 24  # where a PNG has its bits a sample


class UnreadableImage(Exception):  # noqa: N818 - a finding about the data, as BadSample is
    """The bytes are no image that can be used; the message says why."""


def is_deep(image: Image.Image) -> bool:
    """Tell whether an image has one value a pixel, of more than 8 bits."""
    return image.mode in _DEEP or image.mode.startswith("I;16")


def has_deep_samples(image: Image.Image, content: bytes) -> bool:
    """Tell whether a file holds more than 8 bits a sample, although Pillow may read 8 of them."""
    if isinstance(image, TiffImageFile):
        return _bits(image) > 8
    return is_deep(image) or (image.format == "PNG" and content[_PNG_DEPTH] > 8)


def check_dtype(dtype: np.dtype[Any]) -> None:
    """Refuse a type whose range `to_bytes` cannot know, before a value is read.

    Raises:
        UnreadableImage: It is neither unsigned, nor of 32 bits and more, nor of floats.
    """
    is_wide = dtype.kind == "i" and dtype.itemsize >= 4
    is_float = dtype.kind == "f" and dtype.itemsize <= 8
    if not (dtype.kind == "u" or is_wide or is_float):
        raise UnreadableImage(f"values are {dtype}; give uint8, uint16, or floats from 0 to 1")


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Return uint8 of the same shape: of 16 bits the upper 8, of floats the nearest of 0 to 255.

    Raises:
        UnreadableImage: It is not known which value is white.
    """
    dtype = values.dtype
    if dtype == np.uint8:
        return values
    check_dtype(dtype)
    if dtype.kind == "u" and dtype.itemsize == 2:
        return (values >> 8).astype(np.uint8)
    low, high = values.min(), values.max()
    span = f"{dtype.name} values from {low:g} to {high:g}"
    if dtype.kind == "f":
        if not (low >= 0 and high <= 1):
            raise UnreadableImage(f"{span}; of floats, 0 to 1 alone is known as black to white")
        return np.rint(np.multiply(values, 255, dtype=np.float32)).astype(np.uint8)
    if low < 0 or high > 0xFFFF:
        raise UnreadableImage(f"{span}, more than 16 bits hold; give uint8 or uint16")
    if 0 < high <= 0xFF:
        raise UnreadableImage(f"{span}, of which white may be 255 or 65535; give uint8 or uint16")
    return (values >> 8).astype(np.uint8)


def grey_values(image: Image.Image) -> np.ndarray:
    """Return the values of an image with one a pixel, (h, w): 0 is black; 12 bits become 16.

    Raises:
        UnreadableImage: A TIFF's are signed, of 8 or 16 bits.
    """
    if not isinstance(image, TiffImageFile):
        values = np.asarray(image)
        # Pillow scales it to 16 bits, whatever the file says is white
        return values.astype(np.uint16) if image.format == "PPM" and image.mode == "I" else values
    _check_sign(image)
    values = np.asarray(image)
    if _bits(image) == 12:
        values = values << 4
    if is_deep(image) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 1 - values if values.dtype.kind == "f" else 0xFFFF - values
    return values


def check_depth(image: Image.Image, content: bytes) -> None:
    """Mend or refuse what Pillow takes for 8 bits a sample although it is not.

    Args:
        image: Of 8 bits a sample, as Pillow has it; its transparent value may be set right.
        content: The file's bytes.

    Raises:
        UnreadableImage: A TIFF's samples are signed; of a PNG's 16 bits a colour is transparent.
    """
    if isinstance(image, TiffImageFile):
        _check_sign(image)
    transparent = image.info.get("transparency")
    if image.format != "PNG" or transparent is None:
        return
    depth = content[_PNG_DEPTH]
    if image.mode == "L" and depth < 8:  # the pixels are scaled to 8 bits, and it is not
        image.info["transparency"] = transparent * 255 // (2**depth - 1)
    if image.mode == "RGB" and depth == 16:
        raise UnreadableImage(
            "a PNG of 16 bits with one transparent colour, of which Pillow reads 8; give it an "
            "alpha channel"
        )


def _check_sign(image: TiffImageFile) -> None:
    if _SIGNED in image.tag_v2.get(_SAMPLE_FORMAT, ()) and _bits(image) <= 16:
        raise UnreadableImage(
            f"a TIFF of signed {_bits(image)} bits, of which black and white are not known; give "
            "uint8 or uint16"
        )


def _bits(image: TiffImageFile) -> int:
    return image.tag_v2.get(_BITS, (1,))[0]
