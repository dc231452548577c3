"""Decode a part of a JPEG, without the rest of it: with libjpeg-turbo, where it was there to build.

The pixels are those that torchvision gives for the whole image and that torch's resize makes of
them, bit for bit, and what torchvision refuses is never decoded here. So it is only done for plain
JPEGs: sequential, of 8 bits, RGB or grey, turned by no EXIF, in one scan that reaches its end
marker, and with nothing damaged up to the part's last row. Everything else is left to the decoder
of whole images.

A crop is resized row by row while it is decoded, and never stands in memory as a whole.

`jpeg.c` beside it is an optional extension (pyproject.toml): without a C compiler or
libjpeg-turbo's headers it is not there, and whole images are decoded.
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
from torchvision.io import ImageReadMode, decode_jpeg

from data.images.boxes import Box
from data.images.resize import resize

_NOT_PLAIN, _SIMPLE = 0, 2
_TRIAL_SIZE = (83, 61)  # (h, w): no whole number of blocks
_TRIAL_BOXES = (Box(0, 0, 61, 83), Box(17, 33, 31, 5), Box(32, 16, 16, 47))
_TRIAL_RESULTS = (None, (23, 96), (64, 7))


class Header(NamedTuple):
    """The header of a plain JPEG, read before it is decoded.

    Attributes:
        is_simple: It has only the segments that every encoder writes, so Pillow opens it, too.
    """

    height: int
    width: int
    is_simple: bool


def is_available() -> bool:
    """Tell whether the extension was built, can be loaded, and gives torchvision's pixels."""
    return _library() is not None


def read_header(content: bytes) -> Header | None:
    """Read a plain JPEG's header; None where it is not plain, or parts cannot be decoded here."""
    library = _library()
    if library is None:
        return None
    width, height = ctypes.c_int(), ctypes.c_int()
    kind = library.jpeg_header(content, len(content), ctypes.byref(width), ctypes.byref(height))
    return None if kind == _NOT_PLAIN else Header(height.value, width.value, kind == _SIMPLE)


def decode_box(
    content: bytes,
    channels: int,
    box: Box,
    size: tuple[int, int] | None = None,
    is_flipped: bool = False,
) -> torch.Tensor | None:
    """Decode a part of a plain JPEG, and resize it as `data.images.resize` does.

    Args:
        content: The file's bytes.
        channels: C, 3 or 1.
        box: The part.
        size: (H, W) of the result; None: the part's.
        is_flipped: Exchange left and right.

    Returns:
        uint8 (C, H, W); None where the data are damaged, of which the decoder of whole images says
        what it means, or where a side becomes 64 times as short.
    """
    library = _library()
    size = size or (box.height, box.width)
    return None if library is None else _decode(library, content, channels, box, size, is_flipped)


def _decode(
    library: Any,
    content: bytes,
    channels: int,
    box: Box,
    size: tuple[int, int],
    is_flipped: bool = False,
) -> torch.Tensor | None:
    pixels = torch.empty((channels, *size), dtype=torch.uint8)
    arguments = (content, len(content), channels, *box, *reversed(size), is_flipped)
    return pixels if library.jpeg_crop(*arguments, pixels.data_ptr()) else None


def is_compiled() -> bool:
    """Tell whether the compiled extension is there and agrees with torchvision."""
    return _library() is not None


@cache
def _library() -> Any:
    """Load the extension; None where it is missing or gives other pixels than torchvision's."""
    here = Path(__file__)
    paths = [here.with_name(f"_jpeg{suffix}") for suffix in EXTENSION_SUFFIXES]
    for path in filter(Path.is_file, paths):
        try:
            library = ctypes.CDLL(str(path))
            integer, pointer, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
            library.jpeg_header.argtypes = [ctypes.c_char_p, size, pointer, pointer]
            library.jpeg_crop.argtypes = [ctypes.c_char_p, size, *[integer] * 8, pointer]
        except (OSError, AttributeError):  # of another platform, or libjpeg has gone
            continue
        return library if _agrees(library) else None
    return None


def _agrees(library: Any) -> bool:
    """Compare with torchvision's decoder, which may have another libjpeg, and torch's resize."""
    noise = np.random.default_rng(0).integers(0, 256, (*_TRIAL_SIZE, 3)).astype(np.uint8)
    for subsampling in (0, 1, 2):  # 4:4:4, 4:2:2, 4:2:0
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "JPEG", subsampling=subsampling)
        encoded = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
        whole = decode_jpeg(encoded, mode=ImageReadMode.RGB)
        assert isinstance(whole, torch.Tensor)
        for box, size in product(_TRIAL_BOXES, _TRIAL_RESULTS):
            part = whole[:, box.top : box.top + box.height, box.left : box.left + box.width]
            decoded = _decode(library, file.getvalue(), 3, box, size or (box.height, box.width))
            expected = resize(part, size) if size else part
            if decoded is None or not torch.equal(decoded, expected):
                return False
    return True
