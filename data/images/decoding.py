"""Decoding: the bytes of any image -> uint8 (C, h, w), the whole of it or a part.

Common JPEGs are decoded by `data.images.jpeg`, where it was built, and by Pillow where not: the
pixels are the same, and so is what is refused. Pillow decodes everything else.
"""

import io
import re
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from data.disks import first_line
from data.images import jpeg, orientation
from data.images.boxes import Box, whole_box
from data.images.containers import is_heif, reads_heif, without_extras
from data.images.levels import UnreadableImage, check_depth, grey_values, is_deep, to_bytes
from data.images.limits import MODES, TOO_LARGE, check_size
from data.images.multichannel import is_array, read_array, read_channels
from data.images.resize import resize

# Behind a JPEG: where its end marker lacks, libjpeg reads on, and refuses the second start.
# There are more of them than a cut segment can swallow.
_SECOND_STARTS = b"\xff\xd8" * 33_000
_Size = TypeVar("_Size")  # (H, W), or None

_TIFF = (b"II*\0", b"MM\0*")


def open_image(content: bytes) -> Image.Image:
    """Open an image with Pillow, HEIF too where that is installed; it reads the header: 25 us.

    Raises:
        Exception: On damaged bytes Pillow raises nearly anything.
    """
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        if is_heif(content) and reads_heif():
            return Image.open(io.BytesIO(content))
        raise


def decode(
    content: bytes, channels: int = 3, choose: Callable[[int, int], Box] = whole_box
) -> Tensor:
    """Decode an image to uint8 (C, height, width), EXIF orientation applied, or a part of it.

    As RGB (3) or grey (1): any common image. Grey, palettes and CMYK are converted, transparency is
    laid over white, 16 bits become 8 by a shift, and what else holds other values than 8 bits is
    read where its range is known (`levels.py`).

    As any other number: what holds so many. That is a NumPy file (.npy) of such values, (height,
    width, C) or (height, width); a TIFF of C grey pages; or one of C samples a pixel, as far as
    Pillow reads it. NumPy files of 1 and 3 channels are grey and RGB.

    An image is sound where its pixels are whole: of EXIF that is spoilt the orientation is applied
    if it can be read, and other text that is spoilt is passed over.

    Args:
        content: The file's bytes.
        channels: C.
        choose: (height, width) -> the part that is wanted. Of a common JPEG no more is decoded than
            `data.images.jpeg` has to.

    Raises:
        UnreadableImage: The image is damaged, unknown, has over `MAX_PIXELS` pixels, or channels
            that cannot be converted.
    """
    header = _read_header(content, channels)
    return _decode_part(content, channels, header, lambda h, w: (choose(h, w), None))[0]


def decode_resized(
    content: bytes,
    channels: int,
    plan: Callable[[int, int], tuple[Box, tuple[int, int]]],
    is_flipped: bool = False,
) -> Tensor:
    """Decode a part of an image, resize it, and exchange left and right where that is wanted.

    Args:
        content: The file's bytes.
        channels: C, as `decode` takes it.
        plan: (height, width) of the image -> the part, and (H, W) of the result.
        is_flipped: Exchange left and right.

    Returns:
        uint8 (C, H, W), contiguous.

    Raises:
        UnreadableImage: As `decode` does.
    """
    header = _read_header(content, channels)
    if header is not None and header.orientation == orientation.UPRIGHT:
        crop = jpeg.decode_box(content, channels, *plan(*header.size), is_flipped)
        if crop is not None:
            return crop
    part, size = _decode_part(content, channels, header, plan)
    crop = resize(part, size)
    return crop.flip(2) if is_flipped else crop


def _read_header(content: bytes, channels: int) -> jpeg.Header | None:
    """Read the header of what can be decoded in parts; None for everything else."""
    header = jpeg.read_header(content) if channels in MODES else None
    return header if header and (header.is_simple or _is_common_jpeg(content)) else None


def _decode_part(
    content: bytes,
    channels: int,
    header: jpeg.Header | None,
    plan: Callable[[int, int], tuple[Box, _Size]],
) -> tuple[Tensor, _Size]:
    """Decode a part of an image, which may be a view; the plan's size is handed on."""
    if header is not None:
        box, size = plan(*header.size)
        stored = orientation.stored_box(box, header.size, header.orientation)
        pixels = jpeg.decode_pixels(content, channels, stored)
        if pixels is not None:
            return _to_tensor(orientation.turn(pixels, header.orientation)), size
    image = _decode_whole(content, channels)
    (left, top, width, height), size = plan(*image.shape[1:])
    return image[:, top : top + height, left : left + width], size


def _is_common_jpeg(content: bytes) -> bool:
    """Tell whether `decode` would give these bytes to `_decode_jpeg`."""
    try:
        image = Image.open(io.BytesIO(content))
        check_size(image.width, image.height, channels=3)
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
        if is_array(content):
            return _to_tensor(read_array(content, channels))
        image = open_image(content)
        check_size(image.width, image.height, channels)
        if channels not in MODES:
            return _to_tensor(read_channels(image, channels))
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            assert isinstance(image, JpegImageFile)
            return _decode_jpeg(image, channels, content)
        return _decode_with_pillow(image, channels, content)
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(_unidentified(content, channels)) from error
    except Exception as error:  # on damaged bytes Pillow raises nearly anything, MemoryError too
        raise UnreadableImage(f"cannot be decoded: {reason_of(error)}") from error


def _unidentified(content: bytes, channels: int) -> str:
    if is_heif(content):
        extra = "HEIC needs the extra `heic`: pip install -e '.[heic]'"
        return "the HEIC data is cut or damaged" if reads_heif() else extra
    if content.startswith(_TIFF):
        rule = "give RGB or grey of 8 or 16 bits" if channels in MODES else "give a page a channel"
        return f"a TIFF of a kind that Pillow does not read; {rule}, or .npy"
    return "no image format that Pillow knows"


def reason_of(error: Exception) -> str:
    """Return what an error says, without what differs from process to process."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"{first_line(error).partition(', could be')[0]}; {TOO_LARGE}"
    return re.sub(r"<?([\w.]+) object at 0x[0-9a-fA-F]+>?", r"\1", first_line(error))


def _decode_jpeg(image: JpegImageFile, channels: int, content: bytes) -> Tensor:
    """Decode a JPEG to its end marker, and refuse one that libjpeg cannot read so far.

    Pillow alone would pass what breaks behind the last row: it reads no further than a block.
    """
    image.fp = io.BytesIO(content + _SECOND_STARTS)
    image.decodermaxblock = len(content) + len(_SECOND_STARTS)
    if channels == 1:
        image.draft("L", None)  # the luma as it is stored
    try:
        image.load()
    except OSError as error:  # of libjpeg's reasons it says none
        raise UnreadableImage("the JPEG data is cut or damaged") from error
    pixels = np.array(image.convert(MODES[channels]))
    first_app1 = next((data for name, data in image.applist if name == "APP1"), b"")
    return _to_tensor(orientation.turn(pixels, orientation.of_app1(first_app1)))


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
    return _to_tensor(orientation.turn_as(image, np.array(plain.convert(MODES[channels]))))


def _over_white(image: Image.Image, values: np.ndarray) -> np.ndarray:
    """Return uint8 (h, w) of a grey image's values, of which a PNG may name one as transparent."""
    transparent = image.info.get("transparency")
    pixels = to_bytes(values)
    return pixels if transparent is None else np.where(values == transparent, np.uint8(255), pixels)


def _to_tensor(pixels: np.ndarray) -> Tensor:
    """Turn uint8 (h, w) or (h, w, C), which can be written to, into (C, h, w)."""
    is_reversed = min(pixels.strides) < 0
    forwards = pixels.copy(order="K") if is_reversed else pixels  # torch takes no other
    return torch.from_numpy(np.atleast_3d(forwards)).permute(2, 0, 1)
