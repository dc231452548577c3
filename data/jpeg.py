"""Decode a part of a JPEG, without the rest of it: with libjpeg-turbo, where it was there to build.

The pixels are those that torchvision gives for the whole image, bit for bit, and what torchvision
refuses is never decoded here. So it is only done for plain JPEGs: sequential, of 8 bits, RGB or
grey, turned by no EXIF, in one scan that reaches its end marker, and with nothing damaged up to the
part's last row. Everything else is left to the decoder of whole images.

`data/jpeg.c` is an optional extension (pyproject.toml): without a C compiler or libjpeg-turbo's
headers it is not there, and whole images are decoded.
"""

import ctypes
import io
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from data.boxes import Box

_NOT_PLAIN, _SIMPLE = 0, 2
_TRIAL_SIZE = (83, 61)  # (h, w): no whole number of blocks


class Header(NamedTuple):
    """What is known of a plain JPEG before it is decoded.

    Attributes:
        is_simple: It has only the segments that every encoder writes, so Pillow opens it, too.
    """

    height: int
    width: int
    is_simple: bool


def is_available() -> bool:
    """Tell whether the extension was built, can be loaded, and decodes as torchvision does."""
    return _library() is not None


def read_header(content: bytes) -> Header | None:
    """Read a plain JPEG's header; None where it is not plain, or parts cannot be decoded here."""
    library = _library()
    if library is None:
        return None
    width, height = ctypes.c_int(), ctypes.c_int()
    kind = library.jpeg_header(content, len(content), ctypes.byref(width), ctypes.byref(height))
    return None if kind == _NOT_PLAIN else Header(height.value, width.value, kind == _SIMPLE)


def decode_box(content: bytes, channels: int, box: Box) -> torch.Tensor | None:
    """Decode a part of a plain JPEG: uint8 (C, h, w), as views of (h, w, C), C being 3 or 1.

    Returns None where the data are damaged; the decoder of whole images says what that means.
    """
    library = _library()
    return None if library is None else _decode(library, content, channels, box)


def _decode(library: Any, content: bytes, channels: int, box: Box) -> torch.Tensor | None:
    pixels = np.empty((box.height, box.width, channels), np.uint8)
    is_decoded = library.jpeg_decode(content, len(content), channels, *box, pixels.ctypes.data)
    return torch.from_numpy(pixels).permute(2, 0, 1) if is_decoded else None


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
            library.jpeg_decode.argtypes = [ctypes.c_char_p, size, *[integer] * 5, pointer]
        except (OSError, AttributeError):  # of another platform, or libjpeg has gone
            continue
        return library if _agrees(library) else None
    return None


def _agrees(library: Any) -> bool:
    """Compare with torchvision's decoder, which may have another libjpeg, on small images."""
    noise = np.random.default_rng(0).integers(0, 256, (*_TRIAL_SIZE, 3)).astype(np.uint8)
    for subsampling in (0, 1, 2):  # 4:4:4, 4:2:2, 4:2:0
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "JPEG", subsampling=subsampling)
        encoded = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
        whole = decode_jpeg(encoded, mode=ImageReadMode.RGB)
        assert isinstance(whole, torch.Tensor)
        for left, top, width, height in ((0, 0, 61, 83), (17, 33, 31, 5), (32, 16, 16, 47)):
            box = Box(left, top, width, height)
            found = _decode(library, file.getvalue(), 3, box)
            expected = whole[:, top : top + height, left : left + width]
            if found is None or not torch.equal(found, expected):
                return False
    return True
