"""Shrinking an image once, so that each epoch has less to decode."""

import io

import numpy as np
from PIL import Image

from data.images.boxes import whole_box
from data.images.decoding import decode_resized, open_image
from data.images.levels import has_deep_samples
from data.images.multichannel import is_array

_CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3}  # by Pillow's modes: what a JPEG can hold


class KeptAsItIs(Exception):  # noqa: N818 - a finding about the data, as UnreadableImage is
    """An image that cannot become a JPEG as a run reads it; the message says what it has."""


def shrink(content: bytes, max_side: int, quality: int) -> bytes | None:
    """Return an image as a JPEG of the size at which no side is over `max_side` pixels.

    Its pixels are those that a run sees, upright, resized as crops are; so EXIF, profiles and
    comments are left out. Equal bytes give equal bytes, with the same Pillow.

    Args:
        content: The file's bytes.
        max_side: Pixels of the longer side.
        quality: As Pillow has it, 1 to 100.

    Returns:
        None where no side is longer.

    Raises:
        KeptAsItIs: It has what a JPEG cannot hold, or cannot be decoded.
    """
    if is_array(content):
        raise KeptAsItIs("an array of values")
    try:
        image = open_image(content)
        if max(image.size) <= max_side:
            return None
        _check(image, content)
        pixels = decode_resized(
            content,
            _CHANNELS[image.mode],
            lambda h, w: (whole_box(h, w), _fitted(h, w, max_side)),
        )
    except KeptAsItIs:
        raise
    except Exception as error:  # on damaged bytes Pillow raises nearly anything
        raise KeptAsItIs("no pixels that can be decoded") from error
    rows = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    file = io.BytesIO()
    shrunk = Image.fromarray(rows if rows.shape[2] == 3 else rows[:, :, 0])
    shrunk.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _check(image: Image.Image, content: bytes) -> None:
    """Refuse what a run may read otherwise than as 8 bits of grey or RGB."""
    if image.format not in ("JPEG", "MPO") and getattr(image, "n_frames", 1) > 1:
        raise KeptAsItIs("several frames or pages")
    if image.has_transparency_data:
        raise KeptAsItIs("transparency")
    if has_deep_samples(image, content):
        raise KeptAsItIs("more than 8 bits")
    if image.mode not in _CHANNELS:
        raise KeptAsItIs("other channels than grey and RGB")


def _fitted(height: int, width: int, max_side: int) -> tuple[int, int]:
    """Return the (H, W) of the same aspect whose longer side is `max_side`."""
    scale = max_side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))
