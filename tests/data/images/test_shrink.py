"""Images that are shrunk once: what a run sees of them, and what stays as it is."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from data.images import jpeg
from data.images.decoding import decode
from data.images.resize import resize
from data.images.shrink import KeptAsItIs, shrink
from tests.data.images.test_decoding import assert_near, picture, tensor
from tests.data.images.test_levels import png

SIDE = 24


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def npy(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, pixels)
    return content.getvalue()


def opened(content: bytes | None) -> Image.Image:
    assert content is not None
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_larger_image_becomes_a_jpeg_of_its_resized_pixels(
    kind: str, options: dict[str, object], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encode(picture(48, 33).convert(mode), kind, **options)
    found = shrink(content, SIDE, 90)
    assert found is not None
    held = opened(content).mode  # WebP has no grey
    small = resize(decode(content, 3 if held == "RGB" else 1), (16, SIDE))
    rows = np.ascontiguousarray(small.permute(1, 2, 0).numpy().squeeze())
    assert found == encode(Image.fromarray(rows), "JPEG", quality=90)
    assert (opened(found).format, opened(found).mode) == ("JPEG", held)
    monkeypatch.setattr(jpeg, "_library", lambda: None)
    assert shrink(content, SIDE, 90) == found


@pytest.mark.parametrize("size", [(48, 32), (32, 48), (49, 7), (400, 1), (25, 24)])
def test_no_side_is_longer_and_the_aspect_stays(size: tuple[int, int]) -> None:
    width, height = opened(shrink(encode(picture(*size), "PNG"), SIDE, 90)).size
    assert max(width, height) == SIDE
    assert width == max(1, round(size[0] * SIDE / max(size)))
    assert height == max(1, round(size[1] * SIDE / max(size)))


@pytest.mark.parametrize("size", [(24, 24), (24, 3), (1, 1)])
def test_a_smaller_image_is_left(size: tuple[int, int]) -> None:
    for kind in ("JPEG", "PNG"):
        assert shrink(encode(picture(*size), kind), SIDE, 90) is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_orientation_is_applied_once(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(picture(), kind, exif=exif)
    found = shrink(content, SIDE, 95)
    assert found is not None
    assert "exif" not in opened(found).info
    width, height = opened(found).size
    assert (width, height) == ((16, 24) if orientation > 4 else (24, 16))
    upright = resize(decode(content), (height, width))
    assert_near(decode(found), upright, 12)


def tables(content: bytes | None) -> dict[int, list[int]]:
    image = opened(content)
    assert isinstance(image, JpegImageFile)
    return image.quantization


def test_the_quality_is_that_which_is_asked_for() -> None:
    content = encode(picture(), "PNG")
    for quality in (50, 90):
        expected = encode(Image.new("RGB", (8, 8)), "JPEG", quality=quality)
        assert tables(shrink(content, SIDE, quality)) == tables(expected)
    assert tables(shrink(content, SIDE, 50)) != tables(shrink(content, SIDE, 90))


def test_palettes_become_their_colours() -> None:
    image = picture().quantize(16)
    found = shrink(encode(image, "PNG"), SIDE, 95)
    assert found is not None
    assert_near(decode(found), resize(tensor(image), (16, 24)), 40)
    assert torch.equal(decode(found, 3), decode(found))


def with_alpha(mode: str) -> Image.Image:
    image = picture().convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


DEEP = np.arange(48 * 32, dtype=np.uint16).reshape(32, 48) * 40
KEPT = {
    "RGBA": (encode(with_alpha("RGBA"), "PNG"), "transparency"),
    "LA": (encode(with_alpha("LA"), "PNG"), "transparency"),
    "transparent entry": (encode(picture().quantize(8), "PNG", transparency=1), "transparency"),
    "16 bits": (encode(Image.fromarray(DEEP), "PNG"), "more than 8 bits"),
    "16 bits of RGB": (png(16, 2, [bytes(6 * 40)] * 2, 40), "more than 8 bits"),
    "16 bits in a TIFF": (encode(Image.fromarray(DEEP), "TIFF"), "more than 8 bits"),
    "floats": (encode(Image.fromarray(DEEP.astype(np.float32)), "TIFF"), "more than 8 bits"),
    "CMYK": (encode(picture().convert("CMYK"), "JPEG"), "other channels than grey and RGB"),
    "pages": (
        encode(picture().convert("L"), "TIFF", save_all=True, append_images=[picture()]),
        "several frames or pages",
    ),
    "animation": (
        encode(picture(), "GIF", save_all=True, append_images=[picture().rotate(90)]),
        "several frames or pages",
    ),
    "an array": (npy(np.zeros((40, 40, 5), np.uint8)), "an array of values"),
    "a cut JPEG": (encode(picture(), "JPEG")[:500], "no pixels that can be decoded"),
    "a cut PNG": (encode(picture(), "PNG")[:200], "no pixels that can be decoded"),
    "nothing": (b"no image", "no pixels that can be decoded"),
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_what_a_jpeg_does_not_hold_is_kept(name: str) -> None:
    content, reason = KEPT[name]
    with pytest.raises(KeptAsItIs, match=f"^{reason}$"):
        shrink(content, SIDE, 90)


def test_an_animation_or_depth_that_is_small_is_left_without_a_word() -> None:
    for name in ("RGBA", "16 bits", "CMYK", "animation"):
        assert shrink(KEPT[name][0], 48, 90) is None


def test_two_photographs_of_one_file_are_one() -> None:
    """As phones write them (MPO): the first is what a run sees."""
    content = encode(picture(), "MPO", save_all=True, append_images=[picture().rotate(90)])
    found = shrink(content, SIDE, 95)
    assert found is not None
    assert_near(decode(found), resize(decode(content), (16, 24)), 12)
