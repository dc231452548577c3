"""Images of any number of channels: NumPy files, and TIFFs of samples or of pages."""

import io
import math

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from data.images import orientation
from data.images.levels import UnreadableImage, check_dtype, grey_values, is_deep, to_bytes
from data.images.limits import MODES, check_size

_NPY = b"\x93NUMPY"
_SAMPLES_PER_PIXEL = 277  # TIFF's tag


def is_array(content: bytes) -> bool:
    """Tell whether a file is NumPy's."""
    return content.startswith(_NPY)


def _check_channels(held: int | str, channels: int) -> None:
    if held != channels:
        ending = "" if held == 1 else "s"
        raise UnreadableImage(f"has {held} channel{ending}, data.channels={channels}")


def read_channels(image: Image.Image, channels: int) -> np.ndarray:
    """Read an image that holds so many channels as they are: uint8 (h, w, C).

    Raises:
        UnreadableImage: It holds another number, or values of which Pillow reads a part.
    """
    held = len(image.getbands())
    if isinstance(image, TiffImageFile):
        samples = image.tag_v2.get(_SAMPLES_PER_PIXEL, 1)
        if samples != held:
            raise UnreadableImage(
                f"{samples} samples a pixel, of which Pillow reads {held}; give a page a channel, "
                "or .npy"
            )
        if held == 1:
            return _read_pages(image, channels)
    _check_channels(held, channels)
    return orientation.turn_as(image, np.array(image))


def _read_pages(image: TiffImageFile, channels: int) -> np.ndarray:
    """Read the pages of a TIFF, each a channel: uint8 (h, w, C)."""
    pages: list[np.ndarray] = []
    while len(pages) < channels and _has_page(image, len(pages)):
        check_size(image.width, image.height, channels)
        name = f"page {len(pages) + 1}"
        if image.mode != "L" and not is_deep(image):
            raise UnreadableImage(f"{name} is {image.mode}, and not grey of 8 or 16 bits")
        pages.append(orientation.turn_as(image, grey_values(image)))
        if pages[-1].shape != pages[0].shape:
            raise UnreadableImage(f"{name} has another size than page 1")
    _check_channels(len(pages), channels)
    if _has_page(image, channels):
        _check_channels(f"over {channels}", channels)
    is_alike = len({page.dtype for page in pages}) == 1
    return (
        to_bytes(np.stack(pages, axis=2)) if is_alike else np.stack([*map(to_bytes, pages)], axis=2)
    )


def _has_page(image: TiffImageFile, number: int) -> bool:
    """Go to a page, from 0, if there is one; they are not counted, as a hostile file has many."""
    try:
        image.seek(number)
    except EOFError:
        return False
    return True


def read_array(content: bytes, channels: int) -> np.ndarray:
    """Read a NumPy file, and convert grey and RGB to each other: uint8 (h, w, C) or (h, w).

    Raises:
        UnreadableImage: It is cut, too large, or holds other values or channels.
    """
    pixels = _read_values(content)
    held = pixels.shape[2]
    if held == channels:
        return pixels.copy()
    if held not in MODES or channels not in MODES:
        _check_channels(held, channels)
    image = Image.fromarray(pixels if held == 3 else pixels[:, :, 0])
    return np.array(image.convert(MODES[channels]))


def _read_values(content: bytes) -> np.ndarray:
    """Return the values that a NumPy file holds: uint8 (h, w, C), never an unpickled object.

    What its header says is believed only as far as bytes are there, so nothing large is allocated.
    """
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in _READ_HEADER:
        raise UnreadableImage(f"NumPy's format {version[0]}.{version[1]} is not read")
    shape, is_fortran, dtype = _READ_HEADER[version](file)
    check_dtype(dtype)
    if len(shape) not in (2, 3) or min(shape) <= 0:
        raise UnreadableImage(f"shape {shape}; give (height, width, channels) or (height, width)")
    height, width, channels = (*shape, 1)[:3]
    check_size(width, height, channels)
    num_values = math.prod(shape)
    num_bytes, num_held = num_values * dtype.itemsize, len(content) - file.tell()
    if num_held < num_bytes:
        raise UnreadableImage(f"{num_held} of {num_bytes} bytes of values")
    values = np.frombuffer(content, dtype, num_values, file.tell())
    values = values.reshape(shape, order="F" if is_fortran else "C")
    return to_bytes(values.reshape(height, width, channels))


_READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
