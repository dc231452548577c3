"""Values of other kinds than 8 bits, against values computed by hand; and spoilt EXIF and text."""

import io
import struct
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from packaging.version import Version
from PIL import Image

from data.images import containers
from data.images.decoding import UnreadableImage, decode
from tests.data.images.test_channels import encode, npy, pages

needs_pillow_13 = pytest.mark.skipif(
    Version(PIL.__version__) < Version("13"), reason="Pillow 12 does not read such a TIFF"
)
V16 = np.array([[0, 255, 256, 4095], [32768, 40000, 65280, 65535]], np.uint16)
AS_8 = [[0, 0, 1, 15], [128, 156, 255, 255]]  # the upper 8 bits
FLOATS = np.array([[0, 0.25, 0.1, 1], [0.5, 0.91, 0.001, 0.003]], np.float32)
FLOATS_AS_8 = [[0, 64, 26, 255], [128, 232, 0, 1]]  # 63.75, 25.5; 127.5, 232.05, 0.255, 0.765


def tiff(
    pixels: np.ndarray | bytes, bits: int, sample_format: int = 1, order: str = "<", zero: int = 1
) -> bytes:
    """Write a grey TIFF of 4 x 2 by hand; `zero` is its photometric interpretation."""
    data = pixels if isinstance(pixels, bytes) else swapped(pixels, order).tobytes()
    values = {256: 4, 257: 2, 258: bits, 259: 1, 262: zero, 277: 1, 278: 2, 339: sample_format}
    return tiff_of({tag: (4, 1, value) for tag, value in values.items()}, data, order)


def tiff_of(tags: dict[int, tuple[int, int, int]], data: bytes, order: str = "<") -> bytes:
    """Write a TIFF of one strip; each tag has its type, count and value."""
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags = tags | {273: (4, 1, start), 279: (4, 1, len(data))}
    entries = b"".join(struct.pack(f"{order}HHII", tag, *tags[tag]) for tag in sorted(tags))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + data


def swapped(values: np.ndarray, order: str) -> np.ndarray:
    """Return the same values in another order of bytes."""
    return values.astype(values.dtype.newbyteorder("big" if order == ">" else "little"))


def premultiplied() -> bytes:
    """Write one pixel of grey 40, multiplied by its alpha of 128."""
    tags = {256: (4, 1, 1), 257: (4, 1, 1), 258: (3, 2, 8 | 8 << 16), 259: (4, 1, 1)}
    tags |= {262: (4, 1, 1), 277: (4, 1, 2), 278: (4, 1, 1), 338: (3, 1, 1)}
    return tiff_of(tags, bytes([40, 128]))


def chunk(kind: bytes, data: bytes, *, is_sound: bool = True) -> bytes:
    checksum = zlib.crc32(kind + data) if is_sound else 0
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(depth: int, colour: int, rows: list[bytes], width: int = 4, *extras: bytes) -> bytes:
    """Write a PNG by hand; the extras come before its pixels."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [chunk(b"IHDR", header), *extras, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def twelve_bits() -> bytes:
    values = [0, 15, 16, 255, 2048, 2500, 4080, 4095]
    pairs = zip(values[::2], values[1::2], strict=True)
    return b"".join((a << 12 | b).to_bytes(3) for a, b in pairs)


ROWS16 = [row.astype(">u2").tobytes() for row in V16]


# ---------------------------------------------------------------- the range is known


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tiff(V16, 16), AS_8),
        (tiff(V16, 16, order=">"), AS_8),
        (tiff(V16, 16, zero=0), [[255, 255, 254, 240], [127, 99, 0, 0]]),
        (tiff(twelve_bits(), 12), AS_8),
        (tiff(V16.astype(np.int32), 32, 2), AS_8),
        (tiff(V16.astype(np.int32), 32, 2, ">"), AS_8),
        (tiff(V16.astype(np.uint32), 32), AS_8),
        (tiff(np.zeros((2, 4), np.int32), 32, 2), [[0] * 4] * 2),
        (tiff(FLOATS, 32, 3), FLOATS_AS_8),
        (tiff(FLOATS, 32, 3, ">"), FLOATS_AS_8),
        (tiff(FLOATS, 32, 3, zero=0), [[255, 191, 230, 0], [128, 23, 255, 254]]),
        (png(16, 0, ROWS16), AS_8),
        (b"P5 4 2 65535 " + b"".join(ROWS16), AS_8),
        (b"P5 2 1 1023 " + struct.pack(">HH", 512, 1023), [[128, 255]]),
        (npy(FLOATS), FLOATS_AS_8),
        (npy(FLOATS.astype(np.float64)), FLOATS_AS_8),
        (npy(V16.astype(np.int64)), AS_8),
        (npy(V16.astype(np.uint32)), AS_8),
    ],
)
def test_values_of_a_known_range(content: bytes, expected: list[list[int]], channels: int) -> None:
    found = decode(content, channels)
    assert found.shape[0] == channels
    for plane in found:
        assert plane.tolist() == expected


def test_pages_are_judged_together() -> None:
    """A channel that is dark in all is read as the bright one is."""
    bright, dark = V16.astype(np.int32), np.full((2, 4), 200, np.int32)
    assert decode(pages(bright, dark), 2).tolist() == [AS_8, [[0] * 4] * 2]
    assert decode(pages(FLOATS, 1 - FLOATS), 2)[0].tolist() == FLOATS_AS_8
    assert decode(pages(V16, np.full((2, 4), 200, np.uint8)), 2)[1].tolist() == [[200] * 4] * 2


@pytest.mark.parametrize("name", ["float01.tif", "int32_16bit.tif"])
def test_reported_images(name: str) -> None:
    path = Path(__file__).parents[4] / "shared/data/reports" / name
    if not path.exists():
        pytest.skip("no reports beside the checkout")
    assert float(decode(path.read_bytes(), 1).float().mean()) == pytest.approx(46.1, abs=0.05)


# ---------------------------------------------------------------- it is not


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(V16.view(np.int16), 16, 2), "a TIFF of signed 16 bits, of which black and white"),
        (tiff((V16 >> 1).astype(np.int16), 16, 2, ">"), "a TIFF of signed 16 bits, of which"),
        (tiff(np.arange(8, dtype=np.int8), 8, 2), "a TIFF of signed 8 bits, of which"),
        (tiff(-V16.astype(np.int32), 32, 2), "int32 values from -65535 to 0, more than 16 bits"),
        (tiff(V16.astype(np.int32) * 2, 32, 2), "int32 values from 0 to 131070, more than 16"),
        (tiff(V16.astype(np.int32) >> 8, 32, 2), "int32 values from 0 to 255, of which white may"),
        (tiff(FLOATS * 255, 32, 3), "float32 values from 0 to 255; of floats, 0 to 1 alone"),
        (tiff(FLOATS - 1, 32, 3), "float32 values from -1 to 0; of floats"),
        (tiff(FLOATS * np.float32(np.nan), 32, 3), "float32 values from nan to nan; of floats"),
        (tiff(FLOATS.astype(np.float64), 64, 3), "a TIFF of a kind that Pillow does not read; "),
        (tiff(V16.astype(np.int64), 64, 2), "a TIFF of a kind that Pillow does not read; "),
        (npy(FLOATS * 2), "float32 values from 0 to 2; of floats"),
        (npy(V16.astype(np.int64) << 20), "int64 values from 0 to "),
        (npy((V16 >> 1).astype(np.int16)), "values are int16; give uint8, uint16, or floats"),
        (npy(FLOATS.astype(np.complex64)), "values are complex64; give"),
    ],
)
def test_values_of_an_unknown_range_are_refused_by_name(
    content: bytes, reason: str, channels: int
) -> None:
    with pytest.raises(UnreadableImage) as caught:
        decode(content, channels)
    assert str(caught.value).startswith(reason)


# ---------------------------------------------------------------- transparency


def transparent(*values: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # one of 16 bits, exactly: 255 and 256 differ
        (png(16, 0, ROWS16, 4, transparent(256)), [[0, 0, 255, 15], [128, 156, 255, 255]]),
        (png(16, 0, ROWS16, 4, transparent(255)), [[0, 255, 1, 15], [128, 156, 255, 255]]),
        (png(8, 0, [bytes([1, 2, 3, 4])], 4, transparent(3)), [[1, 2, 255, 4]]),
        (png(4, 0, [bytes([0x0F, 0x5A])], 4, transparent(5)), [[0, 255, 255, 170]]),
        (png(2, 0, [bytes([0b00011011])], 4, transparent(1)), [[0, 255, 170, 255]]),
        (png(1, 0, [bytes([0b01010000])], 4, transparent(0)), [[255, 255, 255, 255]]),
        # grey and alpha of 16 bits: 1000 is opaque, 40000 is not there
        (png(16, 4, [struct.pack(">4H", 1000, 65535, 40000, 0)], 2), [[3, 255]]),
        # half there: 40 and 127 of white
        pytest.param(premultiplied(), [[167]], marks=needs_pillow_13),
    ],
)
def test_transparency_is_laid_over_white(content: bytes, expected: list[list[int]]) -> None:
    assert decode(content, 1)[0].tolist() == expected
    assert decode(content, 3)[2].tolist() == expected


def test_a_transparent_colour_of_sixteen_bits_is_refused() -> None:
    content = png(16, 2, [struct.pack(">3H", 256, 512, 768)], 1, transparent(256, 512, 768))
    with pytest.raises(UnreadableImage, match="a PNG of 16 bits with one transparent colour"):
        decode(content)


@pytest.mark.parametrize("mode", ["CMYK", pytest.param("YCbCr", marks=needs_pillow_13)])
def test_other_colours_of_tiffs(mode: str) -> None:
    colours = Image.new("RGB", (3, 2), (200, 100, 50))
    grey = int(np.asarray(colours.convert("L"))[0, 0])
    content = encode(colours.convert(mode), "TIFF")
    assert decode(content)[:, 0, 0].tolist() == pytest.approx([200, 100, 50], abs=2)
    assert decode(content, 1)[0, 0].tolist() == pytest.approx([grey] * 3, abs=2)


def test_a_tiff_of_lab() -> None:
    lab = encode(Image.new("LAB", (3, 2), (128, 128, 128)), "TIFF")  # L* 50, without a colour
    assert decode(lab)[:, 0, 0].tolist() == pytest.approx([119] * 3, abs=2)
    assert decode(lab, 1)[0, 0].tolist() == pytest.approx([119] * 3, abs=2)


# ---------------------------------------------------------------- what is spoilt beside the pixels


def picture() -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 200, 24), np.linspace(0, 200, 16))
    return Image.fromarray(np.stack([x, y, x * 0 + 60], axis=-1).astype(np.uint8))


def exif(*entries: bytes) -> bytes:
    """Make EXIF in which some entries point outside."""
    return (
        b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    )


TURN = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
NAN = struct.pack("<HHII", 0x011A, 5, 1, 38)  # 0 / 0, in the eight bytes after the two entries
OUTSIDE = struct.pack("<HHII", 0x8769, 4, 1, 0xFFFF)
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("JPEG", {"quality": 95}),
    ("JPEG", {"quality": 95, "progressive": True}),
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("MPO", {"quality": 95, "save_all": True, "append_images": [Image.new("RGB", (24, 16))]}),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize(
    ("spoilt", "is_turned"),
    [
        (b"Exif\0\0garbage", False),
        (b"Exif\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06", False),
        (b"Exif\0\0II*\0\xff\xff\xff\xff", False),
        (exif(TURN), True),
        (exif(TURN, OUTSIDE), True),
        (exif(TURN, NAN) + bytes(8), True),
        (exif(struct.pack("<HHIHH", 0x0112, 3, 1, 77, 0)), False),
    ],
)
def test_spoilt_exif_leaves_the_pixels(
    kind: str, options: dict[str, Any], spoilt: bytes, *, is_turned: bool
) -> None:
    found = decode(encode(picture(), kind, exif=spoilt, **options))
    expected = picture().transpose(Image.Transpose.ROTATE_270) if is_turned else picture()
    pixels = torch.from_numpy(np.array(expected)).permute(2, 0, 1)
    assert found.shape == pixels.shape
    assert int((found.int() - pixels.int()).abs().max()) <= (0 if kind in ("PNG", "WEBP") else 8)


ROWS = [bytes([1, 2, 3, 4]), bytes([5, 6, 7, 8])]


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"tEXt", b"a\0b", is_sound=False),
        chunk(b"iCCP", b"x", is_sound=False),
        chunk(b"iCCP", b"x\0\0abc"),
        chunk(b"zTXt", b"a\0\0" + zlib.compress(b"0" * (5 << 20))),
        chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(b"0" * (5 << 20))),
        chunk(b"pHYs", b"1"),
        chunk(b"gAMA", b"1"),
        chunk(b"eXIf", b"x", is_sound=False),
        b"",
    ],
)
def test_what_a_png_says_beside_its_pixels_may_be_spoilt(extra: bytes) -> None:
    content = png(8, 0, ROWS, 4, extra)
    assert decode(content, 1)[0].tolist() == [list(row) for row in ROWS]
    for end in (content[:-12], content[:-5], content + b"junk"):  # after the last pixel
        assert decode(end, 1)[0].tolist() == [list(row) for row in ROWS]


@pytest.mark.parametrize(
    "content",
    [
        png(8, 0, ROWS, 4, chunk(b"tRNS", b"\0\1", is_sound=False)),  # what is white is not known
        png(8, 0, ROWS, 4, chunk(b"tEXt", b"a\0b", is_sound=False))[:-30],
        png(8, 0, [*ROWS, ROWS[0][:2]], 4, chunk(b"tEXt", b"a\0b", is_sound=False)),
    ],
)
def test_missing_pixels_stay_missing(content: bytes) -> None:
    with pytest.raises(UnreadableImage):
        decode(content, 1)


# ---------------------------------------------------------------- HEIC


def test_heic_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    containers.reads_heif.cache_clear()
    with pytest.raises(UnreadableImage) as caught:
        decode(b"\0\0\0\x1cftypheic" + bytes(40))
    containers.reads_heif.cache_clear()
    assert str(caught.value) == "HEIC needs the extra `heic`: pip install -e '.[heic]'"


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic_comes_upright_once(orientation: int) -> None:
    heif: ModuleType = pytest.importorskip("pillow_heif")
    about = Image.Exif()
    about[0x0112] = orientation
    content = io.BytesIO()
    heif.from_pillow(picture()).save(content, quality=-1, exif=about.tobytes())
    expected = picture().transpose(Image.Transpose.ROTATE_270) if orientation == 6 else picture()
    found = decode(content.getvalue())
    pixels = torch.from_numpy(np.array(expected)).permute(2, 0, 1)
    assert found.shape == pixels.shape
    assert int((found.int() - pixels.int()).abs().max()) <= 12
    with pytest.raises(UnreadableImage, match="the HEIC data is cut or damaged"):
        decode(content.getvalue()[:200])
