"""EXIF's orientation, 1 to 8: how an image is turned and mirrored before it is upright."""

import struct

import numpy as np
from PIL import Image

from data.images.boxes import Box

UPRIGHT = 1
_TAG = 0x0112
_SWAPPED, _UPSIDE_DOWN, _MIRRORED = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)
_TIFF = 6  # where it begins in an APP1 segment, behind "Exif", 0, 0
_MAGIC, _ENTRY = 42, 12


def of_app1(data: bytes) -> int:
    """Return what a JPEG's first APP1 segment says; `UPRIGHT` where that is no EXIF, or is cut.

    Of JPEGs no later segment is asked, nor XMP. So did torchvision, which decoded them before: what
    has been trained on stands as it did.

    Args:
        data: The segment's content.
    """
    order = "<" if data[_TIFF : _TIFF + 2] == b"II" else ">"

    def read(kind: str, at: int) -> int:
        return struct.unpack_from(order + kind, data, _TIFF + at)[0]

    try:
        if read("H", 2) != _MAGIC:
            return UPRIGHT
        at = read("I", 4)
        for entry in range(at + 2, at + 2 + _ENTRY * read("H", at), _ENTRY):
            if read("H", entry) == _TAG:
                return read("H", entry + 8)
    except struct.error:  # beyond the end
        pass
    return UPRIGHT


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels (h, w, ...) upright: a view. Other numbers than 1 to 8 turn nothing."""
    if orientation in _SWAPPED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in _UPSIDE_DOWN:
        pixels = pixels[::-1]
    if orientation in _MIRRORED:
        pixels = pixels[:, ::-1]
    return pixels


def turn_as(image: Image.Image, pixels: np.ndarray) -> np.ndarray:
    """Turn an image's pixels (h, w, ...) as Pillow says; as they are where it cannot be read."""
    try:
        return turn(pixels, image.getexif().get(_TAG, UPRIGHT))
    except Exception:  # on damaged bytes Pillow raises nearly anything
        return pixels


def size_of(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Return (height, width) of an image of this size once it is upright."""
    return (width, height) if orientation in _SWAPPED else (height, width)


def stored_box(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """Return where a part of an upright image of (height, width) lies in the image as stored."""
    left, top, width, height = box
    if orientation in _MIRRORED:
        left = size[1] - left - width
    if orientation in _UPSIDE_DOWN:
        top = size[0] - top - height
    if orientation in _SWAPPED:
        return Box(top, left, height, width)
    return Box(left, top, width, height)
