"""Masks: the numbers of a PNG, whatever it holds beside them."""

import io

import numpy as np
import pytest
from PIL import Image

from data.images.levels import UnreadableImage
from data.images.masks import decode_mask
from tests.segmented import as_png

VALUES = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_numbers_are_those_of_the_file(mode: str) -> None:
    assert np.array_equal(decode_mask(as_png(VALUES, mode)), VALUES)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_numbers_too(bits: int) -> None:
    """Grey of few bits, which Pillow cannot write, from its parts; palettes of few bits."""
    values = VALUES % 2**bits
    image = Image.fromarray(values)
    image.putpalette(list(range(2**bits * 3)))
    content = io.BytesIO()
    image.save(content, "PNG", bits=bits)
    assert np.array_equal(decode_mask(content.getvalue()), values)
    assert np.array_equal(decode_mask(_as_grey(content.getvalue())), values)


def _as_grey(content: bytes) -> bytes:
    """Make a grey PNG of a palette's: another colour type, and no palette."""
    from zlib import crc32

    parts, place = [content[:8]], 8
    while place < len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        kind, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + size]
        place += size + 12
        if kind == b"PLTE":
            continue
        if kind == b"IHDR":
            body = body[:9] + b"\0" + body[10:]
        parts.append(size.to_bytes(4, "big") + kind + body)
        parts.append(crc32(kind + body).to_bytes(4, "big"))
    return b"".join(parts)


def test_a_jpeg_is_no_mask() -> None:
    content = io.BytesIO()
    Image.fromarray(VALUES).save(content, "JPEG")
    with pytest.raises(UnreadableImage, match="is a JPEG of mode L, not a grey or palette PNG"):
        decode_mask(content.getvalue())
