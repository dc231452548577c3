"""Decoding any image to RGB."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor

from data.images.decoding import UnreadableImage, decode
from data.images.limits import MAX_PIXELS

JPEG_TOLERANCE = 6  # levels, at quality 95 on a smooth image


def picture(width: int = 48, height: int = 32) -> Image.Image:
    """Make a smooth picture that no turn or flip maps onto itself."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([200 * x, 200 * y, 100 * x * y + 60], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def assert_near(found: Tensor, expected: Tensor, tolerance: int) -> None:
    assert found.dtype == torch.uint8
    assert found.shape == expected.shape
    assert int((found.int() - expected.int()).abs().max()) <= tolerance


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 12),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("PPM", {}, 0),
        ("JPEG", {"quality": 95}, JPEG_TOLERANCE),
        ("JPEG", {"quality": 95, "progressive": True}, JPEG_TOLERANCE),
        ("JPEG", {"quality": 95, "subsampling": 0}, JPEG_TOLERANCE),
    ],
)
def test_colour_images(kind: str, options: dict[str, object], tolerance: int) -> None:
    assert_near(decode(encode(picture(), kind, **options)), tensor(picture()), tolerance)


@pytest.mark.parametrize(("kind", "tolerance"), [("PNG", 0), ("JPEG", JPEG_TOLERANCE)])
def test_grey_images_become_rgb(kind: str, tolerance: int) -> None:
    grey = picture().convert("L")
    found = decode(encode(grey, kind))
    assert_near(found, tensor(grey), tolerance)
    assert torch.equal(found[0], found[1])


def test_a_bilevel_image_becomes_black_and_white() -> None:
    found = decode(encode(picture().convert("1"), "PNG"))
    assert set(found.unique().tolist()) == {0, 255}


def test_palette_images_show_their_colours() -> None:
    palette = picture().quantize(16)
    assert_near(decode(encode(palette, "PNG")), tensor(palette), 0)
    assert_near(decode(encode(palette, "GIF")), tensor(palette), 0)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    image = picture().convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    alpha = np.asarray(image.getchannel("A"))[..., None] / 255
    colours = np.asarray(image.convert("RGB"))
    expected = torch.from_numpy(np.rint(colours * alpha + 255 * (1 - alpha)).astype(np.uint8))
    assert_near(decode(encode(image, "PNG")), expected.permute(2, 0, 1), 1)


def test_a_transparent_palette_entry_is_white() -> None:
    palette = picture().quantize(8)
    for transparency in (3, bytes(0 if i == 3 else 255 for i in range(8))):
        found = decode(encode(palette, "PNG", transparency=transparency))
        is_entry = torch.from_numpy(np.asarray(palette) == 3)
        assert is_entry.any()
        assert torch.all(found[:, is_entry] == 255)
        assert torch.equal(found[:, ~is_entry], tensor(palette)[:, ~is_entry])


def test_a_transparent_colour_is_white() -> None:
    image = Image.new("RGB", (4, 2), (10, 20, 30))
    image.putpixel((1, 1), (1, 2, 3))
    found = decode(encode(image, "PNG", transparency=(1, 2, 3)))
    assert found[:, 1, 1].tolist() == [255, 255, 255]
    assert found[:, 0, 0].tolist() == [10, 20, 30]


def test_cmyk_becomes_rgb() -> None:
    image = picture().convert("CMYK")
    assert_near(decode(encode(image, "JPEG", quality=95)), tensor(image), JPEG_TOLERANCE)


def test_sixteen_bits_keep_the_upper_eight() -> None:
    values = np.arange(0, 65_536, 97, dtype=np.uint16)[:625].reshape(25, 25)
    found = decode(encode(Image.fromarray(values), "PNG"))
    assert torch.equal(found[0], torch.from_numpy((values >> 8).astype(np.uint8)))


# ---------------------------------------------------------------- EXIF orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95}, JPEG_TOLERANCE),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {}, 0),
    ],
)
def test_all_orientations_come_upright(
    orientation: int, kind: str, options: dict[str, object], tolerance: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(picture(), kind, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    found = decode(content)
    assert found.shape[1:] == ((48, 32) if orientation > 4 else (32, 48))
    assert_near(found, tensor(expected), tolerance)
    upright = orientation == 1
    assert torch.equal(found, decode(encode(picture(), kind, **options))) == upright


def test_grey_and_cmyk_jpegs_come_upright_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("L", "CMYK"):
        image = picture().convert(mode)
        found = decode(encode(image, "JPEG", quality=95, exif=exif))
        turned = image.transpose(Image.Transpose.ROTATE_270)
        assert_near(found, tensor(turned), JPEG_TOLERANCE)


# ---------------------------------------------------------------- damage


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def no_pixels(content: bytes) -> bytes:
    return content[:40]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("cut", [half, no_pixels])
@pytest.mark.filterwarnings("ignore:Truncated File Read")  # Pillow's own, before it raises
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_cut_files_are_unreadable(kind: str, cut: Callable[[bytes], bytes]) -> None:
    with pytest.raises(UnreadableImage) as caught:
        decode(cut(encode(picture(), kind)))
    assert not re.search(r"\n|0x|\.cpp|[/\\]", str(caught.value)), "the same in each process"


def test_a_cut_progressive_jpeg_is_unreadable() -> None:
    with pytest.raises(UnreadableImage, match=r"^the JPEG data is cut or damaged$"):
        decode(half(encode(picture(), "JPEG", progressive=True)))


@pytest.mark.parametrize("content", [b"", b"\0", b"no image", b"<svg></svg>", bytes(5_000)])
def test_what_is_no_image_is_said_to_be_none(content: bytes) -> None:
    with pytest.raises(UnreadableImage, match=r"^no image format that Pillow knows$"):
        decode(content)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.data())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_bytes_raise_nothing_else(data: st.DataObject) -> None:
    """Any byte may be wrong: the result is an image or a reason."""
    kinds = [
        encode(picture(12, 8), "PNG"),
        encode(picture(12, 8).quantize(8), "PNG", transparency=1),
        encode(picture(12, 8), "TIFF"),
        encode(picture(12, 8), "GIF"),
        encode(picture(12, 8).convert("CMYK"), "JPEG"),
        encode(picture(12, 8), "WEBP"),
    ]
    content = bytearray(data.draw(st.sampled_from(kinds)))
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    with suppress(UnreadableImage):
        assert decode(bytes(content)).shape[0] == 3


def png_header(width: int, height: int) -> bytes:
    """Make a PNG of a few bytes that promises `width` x `height` pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(b"")
    chunks = [
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c))
        for c in (header, pixels)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_from_the_header() -> None:
    with pytest.raises(UnreadableImage, match=f"limit of {MAX_PIXELS} pixels; cut it into tiles$"):
        decode(png_header(MAX_PIXELS + 1, 1))
    with pytest.raises(UnreadableImage, match="cannot be decoded: MemoryError"):
        decode(png_header(MAX_PIXELS, 1))  # one row that is too long for Pillow


def test_decoding_is_deterministic() -> None:
    content = encode(picture(), "JPEG")
    assert torch.equal(decode(content), decode(content))
