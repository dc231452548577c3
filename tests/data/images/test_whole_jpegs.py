"""Whole JPEGs, with the extension and by Pillow: pixels and refusals as torchvision has them.

They were decoded by torchvision before; runs of then and of now see the same images.
"""

import io
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from packaging.version import Version
from PIL import Image
from torch import Tensor

from data.images import jpeg, orientation
from data.images.decoding import UnreadableImage, decode
from tests.data.images.test_jpeg import OTHERS, PLAIN, encode, noise

if Version(torchvision.__version__) < Version("0.29"):
    pytest.skip("libjpeg-turbo 2.0 has other pixels for 4:4:0", allow_module_level=True)
try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # it says that its decoders will go
    pytest.skip("this torchvision decodes no JPEG", allow_module_level=True)

pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Pillow's, of damaged EXIF
]

PHOTOS = Path(__file__).resolve().parents[4] / "shared/data/photos"
XMP = (
    b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'>"
    b"<rdf:Description tiff:Orientation='6'/></x:xmpmeta>"
)
ARITHMETIC = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb004300100b0c0e0c0a100e0d0e1211101318281a18161618"
    "3123251d283a333d3c3933383740485c4e404457453738506d51575f626768673e4d71797064785c656763ffc900"
    "0b080007000901011100ffcc000600101005ffda0008010100003f00fe8b3f29827662c395864e10ffd9"
)
ARITHMETIC_PROGRESSIVE = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb004300100b0c0e0c0a100e0d0e1211101318281a18161618"
    "3123251d283a333d3c3933383740485c4e404457453738506d51575f626768673e4d71797064785c656763ffca00"
    "0b080007000901011100ffcc00040010ffda0008010100000001fce848ffcc00041005ffda000801010001050215"
    "2c9b80ffcc00041005ffda0008010100063f02c0ffcc00041005ffda0008010100013f2150f0ffda000801010000"
    "0010ffcc00041005ffda0008010100013f10f4d08affd9"
)


@pytest.fixture(params=["extension", "Pillow"], autouse=True)
def _decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Pillow":
        monkeypatch.setattr(jpeg, "_library", lambda: None)
    elif not jpeg.is_available():
        pytest.skip("data/images/jpeg.c is not built")


def by_torchvision(content: bytes, channels: int) -> Tensor | None:
    """Return its pixels; None where it refuses, or Pillow does not know the file."""
    mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY
    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    try:
        Image.open(io.BytesIO(content))
        image = decode_jpeg(encoded, mode=mode, apply_exif_orientation=True)
    except (RuntimeError, OSError, SyntaxError):
        return None
    assert isinstance(image, Tensor)
    return image


def by_us(content: bytes, channels: int) -> Tensor | None:
    try:
        return decode(content, channels)
    except UnreadableImage:
        return None


def assert_equal(content: bytes, channels: int) -> bool:
    """Return whether it was decoded."""
    expected, found = by_torchvision(content, channels), by_us(content, channels)
    if found is None or expected is None:
        assert found is expected
        return False
    assert torch.equal(found, expected)
    return True


def with_app1(content: bytes, *segments: bytes) -> bytes:
    """Put segments before all others."""
    heads = [b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data for data in segments]
    return content[:2] + b"".join(heads) + content[2:]


def exif(value: int, order: str = ">", kind: int = 3, size: int = 26) -> bytes:
    """Return the content of a segment with an orientation, cut to a size."""
    mark = b"MM" if order == ">" else b"II"
    entry = struct.pack(order + "HHI", 0x0112, kind, 1)
    number = struct.pack(
        order + ("HH" if kind == 3 else "I"), *([value, 0] if kind == 3 else [value])
    )
    head = mark + struct.pack(order + "HIH", 42, 8, 1)
    return (b"Exif\0\0" + head + entry + number + bytes(4))[: 6 + size]


SMALL = encode(noise(40, 24))
KINDS = {
    **PLAIN,
    **{name: content for name, content in OTHERS.items() if name != "CMYK"},
    "arithmetic": ARITHMETIC,
    "arithmetic, progressive": ARITHMETIC_PROGRESSIVE,
    "filled up": SMALL.replace(b"\xff\xda", b"\xff\xff\xff\xda"),
    "two images": SMALL + SMALL,
    "XMP alone": with_app1(SMALL, XMP),
    "XMP, then EXIF": with_app1(SMALL, XMP, exif(6)),
    "EXIF twice": with_app1(SMALL, exif(3), exif(6)),
    "an empty segment, then EXIF": with_app1(SMALL, b"", exif(6)),
    "EXIF with a long": with_app1(SMALL, exif(6, kind=4)),
    "EXIF with a little long": with_app1(SMALL, exif(6, "<", kind=4)),
    **{f"EXIF of {size} bytes": with_app1(SMALL, exif(6, size=size)) for size in range(27)},
    **{
        f"orientation {value}{order}": with_app1(content, exif(value, order))
        for value, content in enumerate([SMALL, *[PLAIN["420"]] * 4, *[PLAIN["progressive"]] * 5])
        for order in "<>"
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [3, 1])
def test_pixels_are_torchvisions(kind: str, channels: int) -> None:
    assert assert_equal(KINDS[kind], channels)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photographs here")
def test_photographs_have_torchvisions_pixels() -> None:
    for shard in sorted(PHOTOS.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar.getmembers()[::4]:
                file = tar.extractfile(member)
                assert file is not None
                assert assert_equal(file.read(), 3), member.name


@pytest.mark.parametrize(
    "kind", ["420", "444", "grey", "420 with restarts", "progressive", "two images"]
)
def test_what_is_refused_is_what_torchvision_refuses(kind: str) -> None:
    judgements = [assert_equal(content, 3) for content in damaged(KINDS[kind])]
    assert 0 < sum(judgements) < len(judgements)


def damaged(content: bytes) -> Iterator[bytes]:
    """Cut, change and fill a file at 40 places, but for its header, and spoil its end."""
    draw = np.random.default_rng(len(content))
    start = content.index(b"\xff\xda") + 14
    for place in draw.integers(start, len(content) - 2, 40).tolist():
        marker = bytes([0xFF, int(draw.choice([0xC4, 0xD0, 0xD8, 0xD9, 0xDA, 0xE1, 0xFE, 1, 2]))])
        garbage = draw.integers(0, 256, 9).astype(np.uint8).tobytes()
        yield content[:place]
        yield content[:place] + b"\xff\xd9"
        yield content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
        yield content[:place] + garbage + content[place + 9 :]
        yield content[:place] + content[place + 9 :]
        yield content[:place] + marker + content[place + 2 :]
        yield content[:place] + marker + b"\0\5\7\7\7" + content[place:]
    for end in (
        b"",
        b"\xff",
        b"\xff\xd0\xff\xd9",
        b"\xff\xe1\xff\xff",
        b"\xff\xd8\xff\xd9",
        bytes(99),
    ):
        yield content[:-2] + end
    yield content + bytes(99)


def test_a_cut_comment_behind_the_pixels_swallows_no_end() -> None:
    """Whatever length it claims: the file ends within it."""
    for length in (2, 3, 9, 255, 65_534, 65_535):
        assert by_us(SMALL[:-2] + b"\xff\xfe" + struct.pack(">H", length), 3) is None
    assert by_us(SMALL[:-2] + b"\xff\xfe\0\2\xff\xd9", 3) is not None


def test_the_box_of_an_upright_image_is_found_in_the_stored_one() -> None:
    stored = np.arange(35).reshape(5, 7)
    for number in range(1, 9):
        upright = orientation.turn(stored, number)
        assert orientation.size_of(5, 7, number) == upright.shape
        box = jpeg.Box(1, 2, 3, 2)
        left, top, width, height = orientation.stored_box(box, upright.shape, number)
        part = stored[top : top + height, left : left + width]
        assert np.array_equal(orientation.turn(part, number), upright[2:4, 1:4])
