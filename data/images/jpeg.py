"""Decode a part of a JPEG, without the rest of it: with libjpeg-turbo, where it was there to build.

The pixels are those that Pillow gives for the whole image and that torch's resize makes of them,
bit for bit, and what `data.images.decoding` refuses is never decoded here. So it is only done for
plain JPEGs: of 8 bits, RGB or grey; sequential in one scan that reaches its end marker, with
nothing damaged up to the part's last row, or progressive with nothing damaged at all. Everything
else is left to the decoder of whole images.

A crop is resized row by row while it is decoded, and never stands in memory as a whole; but one
that EXIF turns is turned first.

`jpeg.c` beside it is an optional extension (pyproject.toml): without a C compiler or
libjpeg-turbo's headers it is not there, and Pillow decodes whole images.
"""

import ctypes
import io
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from data.images import orientation
from data.images.boxes import Box
from data.images.resize import resize

_NOT_PLAIN, _SIMPLE = 0, 2
_AS_IT_IS = (0, 0, False)  # neither resized nor flipped: (h, w, C)
_TRIAL_SIZE = (83, 61)  # (h, w): no whole number of blocks
_TRIAL_BOXES = (Box(0, 0, 61, 83), Box(17, 33, 31, 5), Box(32, 16, 16, 47))
_TRIAL_SIZES = ((23, 96), (64, 7))


class Header(NamedTuple):
    """The header of a plain JPEG, read before it is decoded.

    Attributes:
        size: (height, width) of the image once it is upright.
        orientation: EXIF's.
        is_simple: It has only the segments that every encoder writes, so Pillow opens it, too.
    """

    size: tuple[int, int]
    orientation: int
    is_simple: bool


def is_available() -> bool:
    """Tell whether the extension was built, can be loaded, and gives Pillow's pixels."""
    return _library() is not None


def read_header(content: bytes) -> Header | None:
    """Read a plain JPEG's header; None where it is not plain, or parts cannot be decoded here."""
    library = _library()
    if library is None:
        return None
    width, height = ctypes.c_int(), ctypes.c_int()
    at, num_bytes = ctypes.c_size_t(), ctypes.c_size_t()
    found = map(ctypes.byref, (width, height, at, num_bytes))
    kind = library.read_jpeg_header(content, len(content), *found)
    if kind == _NOT_PLAIN:
        return None
    turned = orientation.of_app1(content[at.value : at.value + num_bytes.value])
    size = orientation.size_of(height.value, width.value, turned)
    return Header(size, turned, kind == _SIMPLE)


def decode_pixels(content: bytes, channels: int, box: Box) -> np.ndarray | None:
    """Decode a part of a plain JPEG.

    Args:
        content: The file's bytes.
        channels: C, 3 or 1.
        box: The part, of the image as it is stored.

    Returns:
        uint8 (h, w, C); None where the data are damaged, of which the decoder of whole images says
        what it means.
    """
    return _decode_pixels(_library(), content, channels, box)


def decode_box(
    content: bytes, channels: int, box: Box, size: tuple[int, int], is_flipped: bool = False
) -> torch.Tensor | None:
    """Decode a part of a plain JPEG, and resize it as `data.images.resize` does.

    Args:
        content: The file's bytes.
        channels: C, 3 or 1.
        box: The part, of the image as it is stored.
        size: (H, W) of the result.
        is_flipped: Exchange left and right.

    Returns:
        uint8 (C, H, W); None where the data are damaged, or where a side becomes 64 times as short.
    """
    return _decode_box(_library(), content, channels, box, size, is_flipped)


def _decode_pixels(library: Any, content: bytes, channels: int, box: Box) -> np.ndarray | None:
    pixels = np.empty((box.height, box.width, channels), np.uint8)
    arguments = (content, len(content), channels, *box, *_AS_IT_IS, pixels.ctypes.data)
    return pixels if library is not None and library.jpeg_crop(*arguments) else None


def _decode_box(
    library: Any,
    content: bytes,
    channels: int,
    box: Box,
    size: tuple[int, int],
    is_flipped: bool = False,
) -> torch.Tensor | None:
    pixels = torch.empty((channels, *size), dtype=torch.uint8)
    arguments = (content, len(content), channels, *box, *reversed(size), is_flipped)
    is_there = library is not None
    return pixels if is_there and library.jpeg_crop(*arguments, pixels.data_ptr()) else None


@cache
def _library() -> Any:
    """Load the extension; None where it is missing or gives other pixels than Pillow's."""
    here = Path(__file__)
    paths = [here.with_name(f"_jpeg{suffix}") for suffix in EXTENSION_SUFFIXES]
    for path in filter(Path.is_file, paths):
        try:
            library = ctypes.CDLL(str(path))
            integer, pointer, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
            library.read_jpeg_header.argtypes = [ctypes.c_char_p, size, *[pointer] * 4]
            library.jpeg_crop.argtypes = [ctypes.c_char_p, size, *[integer] * 8, pointer]
        except (OSError, AttributeError):  # of another platform, or libjpeg has gone
            continue
        return library if _agrees(library) else None
    return None


def _agrees(library: Any) -> bool:
    """Compare with Pillow's decoder, which may have another libjpeg, and torch's resize."""
    noise = np.random.default_rng(0).integers(0, 256, (*_TRIAL_SIZE, 3)).astype(np.uint8)
    for subsampling, is_progressive in product((0, 1, 2), (False, True)):  # 4:4:4, 4:2:2, 4:2:0
        file = io.BytesIO()
        image = Image.fromarray(noise)
        image.save(file, "JPEG", subsampling=subsampling, progressive=is_progressive)
        content, whole = file.getvalue(), _decode_by_pillow(file)
        for box, size in product(_TRIAL_BOXES, _TRIAL_SIZES):
            part = whole[:, box.top : box.top + box.height, box.left : box.left + box.width]
            pixels = _decode_pixels(library, content, 3, box)
            if pixels is None or not torch.equal(torch.from_numpy(pixels).permute(2, 0, 1), part):
                return False
            decoded = _decode_box(library, content, 3, box, size)
            if decoded is None or not torch.equal(decoded, resize(part, size)):
                return False
    return True


def _decode_by_pillow(file: io.BytesIO) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
