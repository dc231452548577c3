"""Decoding and cropping: bytes -> uint8 crops (C, H, W), for training and for evaluation.

Pixels stay uint8 until the model: targets are made from them, a batch costs a quarter of the
memory, and integer resizing gives the same result on any number of threads.
"""

import io
import math
import re
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from data.disks import first_line
from data.images import jpeg
from data.images.boxes import FLIP, Box, evaluation_box, training_box
from data.images.containers import is_heif, reads_heif, turned, without_extras
from data.images.levels import (
    UnreadableImage,
    check_depth,
    check_dtype,
    grey_values,
    is_deep,
    to_bytes,
)
from data.images.resize import resize

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs
_TOO_LARGE = "cut it into tiles"

MODES = {1: "L", 3: "RGB"}  # Pillow's, to which any common image is converted
_JPEG_MODES = {1: ImageReadMode.GRAY, 3: ImageReadMode.RGB}
_NPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*")
_SAMPLES_PER_PIXEL = 277  # TIFF's tag


def decode(
    content: bytes, channels: int = 3, choose: Callable[[int, int], Box] | None = None
) -> Tensor:
    """Decode an image to uint8 (C, height, width), EXIF orientation applied, or a part of it.

    As RGB (3) or grey (1): any common image. Grey, palettes and CMYK are converted, transparency is
    laid over white, 16 bits become 8 by a shift, and what else holds other values than 8 bits is
    read where its range is known (`levels.py`). Plain JPEGs take torchvision's decoder, 1.4 times
    as fast as Pillow on photographs of 500x375.

    As any other number: what holds so many. That is a NumPy file (.npy) of such values, (height,
    width, C) or (height, width); a TIFF of C grey pages; or one of C samples a pixel, as far as
    Pillow reads it. NumPy files of 1 and 3 channels are grey and RGB.

    An image is sound where its pixels are whole: of EXIF that is spoilt the orientation is applied
    if it can be read, and other text that is spoilt is passed over.

    Args:
        content: The file's bytes.
        channels: C.
        choose: (height, width) -> the part that is wanted; None: the whole image. Of a plain JPEG
            no more is decoded than `data.images.jpeg` has to.

    Raises:
        UnreadableImage: The image is damaged, unknown, has over `MAX_PIXELS` pixels, or channels
            that cannot be converted.
    """
    if choose is None:
        return _decode_whole(content, channels)
    part = _decode_part(content, channels, choose)
    return _cut_whole(content, channels, choose) if part is None else part


def _decode_part(
    content: bytes,
    channels: int,
    choose: Callable[[int, int], Box],
    size: tuple[int, int] | None = None,
    is_flipped: bool = False,
) -> Tensor | None:
    """Decode a part alone, and resize and flip it; None where that is not possible, or damaged."""
    header = jpeg.read_header(content) if channels in MODES else None
    if header is None or not (header.is_simple or _is_common_jpeg(content)):
        return None
    box = choose(header.height, header.width)
    return jpeg.decode_box(content, channels, box, size, is_flipped)


def _cut_whole(content: bytes, channels: int, choose: Callable[[int, int], Box]) -> Tensor:
    image = _decode_whole(content, channels)
    left, top, width, height = choose(*image.shape[1:])
    return image[:, top : top + height, left : left + width]


def _is_common_jpeg(content: bytes) -> bool:
    """Tell whether `decode` would give these bytes to `_decode_jpeg`."""
    try:
        image = Image.open(io.BytesIO(content))
        _check_size(image.width, image.height, channels=3)
    except Exception:  # what it is, decoding the whole image will say
        return False
    return image.format == "JPEG" and image.mode in ("RGB", "L")


def _decode_whole(content: bytes, channels: int) -> Tensor:
    try:
        return _decode_plainly(content, channels)
    except UnreadableImage:
        plain = without_extras(content)
        if plain is None:
            raise
        return _decode_plainly(plain, channels)


def _decode_plainly(content: bytes, channels: int) -> Tensor:
    try:
        if content.startswith(_NPY):
            return _decode_array(content, channels)
        image = _open(content)  # reads the header only: 25 us
        _check_size(image.width, image.height, channels)
        if channels not in MODES:
            return _to_tensor(_read_channels(image, channels))
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            return _decode_jpeg(content, channels)
        return _decode_with_pillow(image, channels, content)
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(_unidentified(content, channels)) from error
    except Exception as error:  # on damaged bytes Pillow raises nearly anything, MemoryError too
        raise UnreadableImage(f"cannot be decoded: {_reason(error)}") from error


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        if is_heif(content) and reads_heif():
            return Image.open(io.BytesIO(content))
        raise


def _check_size(width: int, height: int, channels: int) -> None:
    """Refuse what would take too much memory, before it is taken."""
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width}x{height} pixels, over {MAX_PIXELS}; {_TOO_LARGE}")
    if width * height * channels > 3 * MAX_PIXELS:
        size = f"{width}x{height}x{channels}"
        raise UnreadableImage(f"{size} values, over {3 * MAX_PIXELS}; {_TOO_LARGE}")


def _unidentified(content: bytes, channels: int) -> str:
    if is_heif(content):
        extra = "HEIC needs the extra `heic`: pip install -e '.[heic]'"
        return "the HEIC data is cut or damaged" if reads_heif() else extra
    if content.startswith(_TIFF):
        rule = "give RGB or grey of 8 or 16 bits" if channels in MODES else "give a page a channel"
        return f"a TIFF of a kind that Pillow does not read; {rule}, or .npy"
    return "no image format that Pillow knows"


def _reason(error: Exception) -> str:
    """Return what an error says, without what differs from process to process."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"{first_line(error).partition(', could be')[0]}; {_TOO_LARGE}"
    return re.sub(r"<?([\w.]+) object at 0x[0-9a-fA-F]+>?", r"\1", first_line(error))


def _decode_jpeg(content: bytes, channels: int) -> Tensor:
    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    try:
        image = decode_jpeg(encoded, mode=_JPEG_MODES[channels], apply_exif_orientation=True)
    except RuntimeError as error:  # it begins with the place in torchvision's source
        reason = re.sub(r"^.*\.(cpp|h):\d+[,:]?\s*", "", _reason(error))
        raise UnreadableImage(f"the JPEG data is cut or damaged ({reason})") from error
    assert isinstance(image, Tensor)
    return image


def _decode_with_pillow(image: Image.Image, channels: int, content: bytes) -> Tensor:
    image.load()
    if is_deep(image):
        plain = Image.fromarray(_over_white(image, grey_values(image)))
    else:
        check_depth(image, content)
        plain = image
    if plain.has_transparency_data:
        if plain.mode == "La":
            plain = plain.convert("LA")
        plain = plain.convert("RGBA")
        white = Image.new("RGBA", plain.size, "white")
        plain = Image.alpha_composite(white, plain)
    if plain.mode == "LAB":  # Pillow converts it to nothing else
        plain = plain.convert("RGB")
    return _to_tensor(turned(image, np.array(plain.convert(MODES[channels]))))


def _over_white(image: Image.Image, values: np.ndarray) -> np.ndarray:
    """Return uint8 (h, w) of a grey image's values, of which a PNG may name one as transparent."""
    transparent = image.info.get("transparency")
    pixels = to_bytes(values)
    return pixels if transparent is None else np.where(values == transparent, np.uint8(255), pixels)


def _to_tensor(pixels: np.ndarray) -> Tensor:
    """Turn uint8 (h, w) or (h, w, C), which can be written to, into (C, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(np.atleast_3d(pixels))).permute(2, 0, 1)


# ---------------------------------------------------------------- other channels than RGB's


def _check_channels(held: int | str, channels: int) -> None:
    if held != channels:
        ending = "" if held == 1 else "s"
        raise UnreadableImage(f"has {held} channel{ending}, data.channels={channels}")


def _read_channels(image: Image.Image, channels: int) -> np.ndarray:
    """Read an image that holds so many channels as they are: uint8 (h, w, C)."""
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
    return turned(image, np.array(image))


def _read_pages(image: TiffImageFile, channels: int) -> np.ndarray:
    """Read the pages of a TIFF, each a channel: uint8 (h, w, C)."""
    pages: list[np.ndarray] = []
    while len(pages) < channels and _has_page(image, len(pages)):
        _check_size(image.width, image.height, channels)
        name = f"page {len(pages) + 1}"
        if image.mode != "L" and not is_deep(image):
            raise UnreadableImage(f"{name} is {image.mode}, and not grey of 8 or 16 bits")
        pages.append(turned(image, grey_values(image)))
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


def _decode_array(content: bytes, channels: int) -> Tensor:
    """Read a NumPy file: uint8 (C, h, w)."""
    pixels = _read_array(content)
    held = pixels.shape[2]
    if held == channels:
        return _to_tensor(pixels.copy())
    if held not in MODES or channels not in MODES:
        _check_channels(held, channels)
    image = Image.fromarray(pixels if held == 3 else pixels[:, :, 0])
    return _to_tensor(np.array(image.convert(MODES[channels])))


def _read_array(content: bytes) -> np.ndarray:
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
    _check_size(width, height, channels)
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


# ---------------------------------------------------------------- crops


def _crop(
    content: bytes,
    channels: int,
    choose: Callable[[int, int], Box],
    size: tuple[int, int],
    is_flipped: bool,
) -> Tensor:
    crop = _decode_part(content, channels, choose, size, is_flipped)
    if crop is None:
        crop = resize(_cut_whole(content, channels, choose), size)
        crop = crop.flip(2) if is_flipped else crop
    return crop


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
    is_flipped = bool(uniform[FLIP] < 0.5)
    return _crop(
        content,
        channels,
        lambda h, w: training_box(h, w, uniform, size, crop_area),
        size,
        is_flipped,
    )


def evaluation_crop(content: bytes, size: tuple[int, int], channels: int = 3) -> Tensor:
    """Resize an image so that (H, W) is covered and cut the centre: uint8 (C, H, W).

    Raises:
        UnreadableImage: As `decode` does.
    """
    return _crop(content, channels, lambda h, w: evaluation_box(h, w, size), size, False)
