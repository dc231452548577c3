"""Parts of JPEGs, decoded alone: the pixels and the judgements of whole images, or not at all."""

import io
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from data.batch import Request
from data.images import jpeg
from data.images.boxes import NUM_UNIFORM, Box
from data.images.decoding import UnreadableImage, decode, decode_resized
from data.images.orientation import UPRIGHT
from data.images.resize import resize
from data.images.transforms import evaluation_crop, training_crop
from data.index.open import open_manifest
from data.samples import Samples
from data.shards import ImageFile, write_shard

needs_extension = pytest.mark.skipif(
    not jpeg.is_available(),
    reason="data/images/jpeg.c is not built: no C compiler, or no libjpeg-turbo",
)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what takes the extension away until the test ends."""
    return lambda: monkeypatch.setattr(jpeg, "_library", lambda: None)


def noise(width: int, height: int) -> Image.Image:
    """Make a picture of edges and of blocks of noise, so that a column too far is seen."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3))
    pixels[: height // 2] = np.indices((height // 2, width)).sum(0)[..., None] % 256
    return Image.fromarray(pixels.astype(np.uint8))


def encode(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def resampled(content: bytes, sampling: int, width: int, height: int) -> bytes:
    """Change the luma's sampling in a file, to one that Pillow does not write."""
    at = content.index(b"\xff\xc0") + 5
    frame = bytearray(content)
    frame[at : at + 4] = struct.pack(">HH", height, width)
    frame[at + 6] = sampling
    return bytes(frame)


PLAIN = {
    "444": encode(noise(67, 45), subsampling=0),
    "422": encode(noise(67, 45), subsampling=1),
    "420": encode(noise(67, 45), subsampling=2),
    "420 of whole blocks": encode(noise(64, 48), subsampling=2),
    "420 of odd sizes": encode(noise(113, 83), subsampling=2, quality=95),
    "420 with restarts": encode(noise(67, 70), subsampling=2, restart_marker_blocks=2),
    "422 with restarts": encode(noise(67, 45), subsampling=1, restart_marker_rows=1),
    "420, own tables": encode(noise(67, 45), subsampling=2, optimize=True),
    "grey": encode(noise(67, 45).convert("L")),
    "Adobe's RGB": encode(noise(67, 45), keep_rgb=True),
    "one pixel": encode(noise(1, 1)),
    "one column": encode(noise(1, 40), subsampling=2),
    "one row": encode(noise(40, 1), subsampling=2),
    "progressive": encode(noise(67, 45), progressive=True),
    "progressive, grey": encode(noise(113, 83).convert("L"), progressive=True),
    "progressive, 422": encode(noise(65, 45), subsampling=1, progressive=True),
    "progressive, with restarts": encode(noise(67, 70), progressive=True, restart_marker_blocks=2),
    "with a comment": encode(noise(33, 20), comment=b"hello"),
    "with a profile": encode(noise(33, 20), icc_profile=bytes(200)),
    "with bytes behind": encode(noise(33, 20)) + b"more\xff\xc4",
}
OTHERS = {
    "CMYK": encode(noise(67, 45).convert("CMYK")),
    "440": resampled(encode(noise(64, 48), subsampling=1), 0x12, 48, 64),
    "411": resampled(encode(noise(64, 64), subsampling=2), 0x41, 128, 32),
}


def size_of(content: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(content)).size


def cut(image: Tensor, box: Box) -> Tensor:
    return image[:, box.top : box.top + box.height, box.left : box.left + box.width]


def draw_box(data: st.DataObject, width: int, height: int) -> Box:
    w, h = data.draw(st.integers(1, width)), data.draw(st.integers(1, height))
    return Box(data.draw(st.integers(0, width - w)), data.draw(st.integers(0, height - h)), w, h)


# ---------------------------------------------------------------- pixels


def assert_is_part(content: bytes, channels: int, box: Box, whole: Tensor) -> None:
    found = jpeg.decode_pixels(content, channels, box)
    assert found is not None
    assert torch.equal(torch.from_numpy(found).permute(2, 0, 1), cut(whole, box))


@needs_extension
@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("channels", [3, 1])
@settings(max_examples=150)
@given(data=st.data())
def test_a_part_is_a_slice_of_the_whole(kind: str, channels: int, data: st.DataObject) -> None:
    content = PLAIN[kind]
    box = draw_box(data, *size_of(content))
    assert_is_part(content, channels, box, decode(content, channels))


@needs_extension
@pytest.mark.parametrize("kind", PLAIN)
def test_plain_images_are_known_by_their_header(kind: str) -> None:
    header = jpeg.read_header(PLAIN[kind])
    assert header is not None
    assert header.size == size_of(PLAIN[kind])[::-1]
    assert header.orientation == UPRIGHT
    assert header.is_simple == ("progressive" not in kind)


@pytest.mark.parametrize("kind", OTHERS)
@settings(max_examples=20)
@given(data=st.data())
def test_other_kinds_are_decoded_whole_and_cut(kind: str, data: st.DataObject) -> None:
    content = OTHERS[kind]
    box = draw_box(data, *size_of(content))
    assert jpeg.read_header(content) is None
    assert torch.equal(decode(content, 3, lambda _h, _w: box), cut(decode(content), box))


@needs_extension
@settings(max_examples=40)
@given(data=st.data())
def test_a_part_of_a_photograph_size_is_a_slice(data: st.DataObject) -> None:
    box = draw_box(data, 500, 375)
    assert_is_part(LARGE, 3, box, LARGE_PIXELS)


LARGE = encode(noise(500, 375), subsampling=2)
LARGE_PIXELS = decode(LARGE)


@needs_extension
@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("is_progressive", [False, True])
@settings(max_examples=20)
@given(data=st.data())
def test_a_part_of_what_exif_turns_is_a_slice_of_the_upright_whole(
    orientation: int, is_progressive: bool, data: st.DataObject
) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "maker", orientation
    content = encode(noise(40, 24), exif=exif, progressive=is_progressive)
    header = jpeg.read_header(content)
    assert header is not None
    assert (header.orientation, header.is_simple) == (orientation, False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg, "_library", lambda: None)
        whole = decode(content)
    assert header.size == whole.shape[1:]
    box = draw_box(data, *reversed(header.size))
    assert torch.equal(decode(content), whole)
    assert torch.equal(decode(content, 3, lambda _h, _w: box), cut(whole, box))
    crop = decode_resized(content, 3, lambda _h, _w: (box, (7, 9)), is_flipped=True)
    assert torch.equal(crop, torchs(whole, box, (7, 9), is_flipped=True))


@needs_extension
def test_a_progressive_jpeg_that_lacks_scans_is_not_decoded_in_parts() -> None:
    """What is made up in their place differs between versions of libjpeg."""
    content = PLAIN["progressive"]
    scans = [match.start() for match in re.finditer(b"\xff\xda", content)]
    for end in scans[1:]:
        assert jpeg.decode_pixels(content[:end] + b"\xff\xd9", 3, Box(0, 0, 9, 9)) is None
        assert decode(content[:end] + b"\xff\xd9").shape == (3, 45, 67)


def torchs(image: Tensor, box: Box, size: tuple[int, int], is_flipped: bool) -> Tensor:
    resized = resize(cut(image, box), size)
    return resized.flip(2) if is_flipped else resized


@needs_extension
@pytest.mark.parametrize("kind", ["420", "422", "grey", "Adobe's RGB", "one pixel", "one column"])
@pytest.mark.parametrize("channels", [3, 1])
@settings(max_examples=60)
@given(data=st.data())
def test_a_part_is_resized_as_torch_does(kind: str, channels: int, data: st.DataObject) -> None:
    content = PLAIN[kind]
    box = draw_box(data, *size_of(content))
    size = (data.draw(st.integers(2, 100)), data.draw(st.integers(2, 100)))
    is_flipped = data.draw(st.booleans())
    found = jpeg.decode_box(content, channels, box, size, is_flipped)
    assert found is not None
    assert found.is_contiguous()
    assert torch.equal(found, torchs(decode(content, channels), box, size, is_flipped))


@needs_extension
@settings(max_examples=60)
@given(data=st.data())
def test_a_part_of_a_photograph_size_is_resized_as_torch_does(data: st.DataObject) -> None:
    box = draw_box(data, 500, 375)
    size = (data.draw(st.integers(8, 600)), data.draw(st.integers(8, 600)))
    found = jpeg.decode_box(LARGE, 3, box, size)
    assert found is not None
    assert torch.equal(found, torchs(LARGE_PIXELS, box, size, is_flipped=False))


@needs_extension
@pytest.mark.parametrize("side", [224, 32])
def test_all_scales_are_torchs(side: int) -> None:
    """Each has weights of its own, that differ where one is rounded otherwise."""
    for length in range(1, 376):
        for box, size in (
            (Box(500 - length, 0, length, 16), (16, side)),
            (Box(0, 375 - length, 16, length), (side, 16)),
        ):
            found = jpeg.decode_box(LARGE, 3, box, size)
            assert found is not None
            assert torch.equal(found, torchs(LARGE_PIXELS, box, size, is_flipped=False)), box


@needs_extension
def test_a_tiny_result_is_left_to_torch(without: Callable[[], None]) -> None:
    box, uniform = Box(0, 0, 500, 375), np.full(NUM_UNIFORM, 0.75)
    assert jpeg.decode_box(LARGE, 3, box, (6, 8)) is not None
    assert jpeg.decode_box(LARGE, 3, box, (6, 7)) is None
    assert jpeg.decode_box(LARGE, 3, box, (5, 8)) is None
    found = training_crop(LARGE, uniform, (3, 4), (0.5, 1))
    without()
    assert torch.equal(found, training_crop(LARGE, uniform, (3, 4), (0.5, 1)))


@needs_extension
@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, 0, 0, 4), (0, 42, 4, 4), (2**30, 0, 2**30, 1)])
def test_a_box_outside_of_the_image_is_not_decoded(box: tuple[int, int, int, int]) -> None:
    assert jpeg.decode_box(PLAIN["444"], 3, Box(*box), (4, 4)) is None


@needs_extension
@pytest.mark.parametrize("size", [(0, 4), (4, 0), (-4, 4), (4, -4), (1, 2**16 + 1), (2**16 + 1, 1)])
def test_a_size_that_no_crop_has_is_not_made(size: tuple[int, int]) -> None:
    pixels, content = np.empty(100, np.uint8), PLAIN["444"]
    arguments = (content, len(content), 3, 0, 0, 4, 4, *reversed(size), 0, pixels.ctypes.data)
    assert jpeg._library().jpeg_crop(*arguments) == 0


@pytest.mark.parametrize("kind", [*PLAIN, *OTHERS])
def test_crops_are_those_of_the_whole_image(kind: str, without: Callable[[], None]) -> None:
    content, numbers = PLAIN.get(kind) or OTHERS[kind], np.random.default_rng(1)
    uniform = numbers.random((20, NUM_UNIFORM))
    found = [training_crop(content, row, (16, 24), (0.1, 1)) for row in uniform]
    found.append(evaluation_crop(content, (16, 24)))
    without()
    expected = [training_crop(content, row, (16, 24), (0.1, 1)) for row in uniform]
    expected.append(evaluation_crop(content, (16, 24)))
    assert all(map(torch.equal, found, expected))


# ---------------------------------------------------------------- damage

PART = Box(17, 9, 23, 5)  # above most of what is damaged


def judged(content: bytes, channels: int = 3) -> Tensor | str:
    try:
        return decode(content, channels, lambda _h, _w: PART)
    except UnreadableImage as error:
        return str(error)


def assert_judged_alike(contents: list[bytes], without: Callable[[], None]) -> list[Tensor | str]:
    found = [judged(content) for content in contents]
    without()
    for content, one in zip(contents, found, strict=True):
        other = judged(content)
        assert type(one) is type(other), (one, other)
        assert one == other if isinstance(one, str) else torch.equal(one, other)  # type: ignore[arg-type]
    return found


@needs_extension
@pytest.mark.parametrize("kind", ["420", "444", "422 with restarts", "grey", "with a profile"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_cut_file_is_judged_as_ever(kind: str, without: Callable[[], None]) -> None:
    content = PLAIN[kind]
    contents = [content[:length] for length in range(0, len(content), 7)]
    contents += [cut + b"\xff\xd9" for cut in contents]
    found = assert_judged_alike([*contents, content[:-1], content[:-2]], without)
    assert any(isinstance(one, str) for one in found)
    assert any(isinstance(one, Tensor) for one in found)


@needs_extension
@pytest.mark.parametrize(
    "kind", ["420", "420 with restarts", "grey", "444", "Adobe's RGB", "progressive"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_file_with_a_wrong_byte_is_judged_as_ever(kind: str, without: Callable[[], None]) -> None:
    content, contents = PLAIN[kind], list[bytes]()
    generator = np.random.default_rng(0)
    start = content.index(b"\xff\xda") + 20
    kind_of_frame = b"\xff\xc2" if kind == "progressive" else b"\xff\xc0"
    frame = content.index(kind_of_frame) + 5  # a wrong size would take gigabytes
    places = [*range(2, start), *range(start, len(content), 11), *range(-4, 0)]
    for place in places:
        if frame <= place < frame + 4:
            continue
        for value in (0xFF, 0, content[place] ^ 1, int(generator.integers(256))):
            changed = bytearray(content)
            changed[place] = value
            contents.append(bytes(changed))
    found = assert_judged_alike(contents, without)
    assert len({one for one in found if isinstance(one, str)}) > 2


@needs_extension
@pytest.mark.parametrize("marker", [0xC0, 0xC4, 0xD0, 0xD7, 0xD8, 0xD9, 0xDA, 0xDB, 0xE1, 0x01])
@pytest.mark.parametrize("kind", ["420", "420 with restarts"])
def test_a_marker_within_the_pixels_is_judged_as_ever(
    kind: str, marker: int, without: Callable[[], None]
) -> None:
    """Behind the part, too: a file is read to its end, and broken segments are refused."""
    content = PLAIN[kind]
    start = content.index(b"\xff\xda") + 20
    places = range(start, len(content) - 8, 37)
    inserted = [content[:at] + bytes([0xFF, marker, 0, 3, 9]) + content[at:] for at in places]
    replaced = [content[:at] + bytes([0xFF, marker]) + content[at + 2 :] for at in places]
    assert_judged_alike(inserted + replaced, without)


@needs_extension
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(65_500, 65_500), (0, 45), (67, 0), (65_535, 1)])
def test_a_size_that_cannot_be_is_judged_as_ever(
    width: int, height: int, without: Callable[[], None]
) -> None:
    assert_judged_alike([resampled(PLAIN["444"], 0x11, width, height)], without)


# ---------------------------------------------------------------- where it is missing


def test_what_cannot_be_loaded_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "__file__", str(tmp_path / "jpeg.py"))
    assert jpeg._library.__wrapped__() is None
    (tmp_path / f"_jpeg{jpeg.EXTENSION_SUFFIXES[0]}").write_bytes(b"of another platform")
    assert jpeg._library.__wrapped__() is None


@needs_extension
@pytest.mark.parametrize("name", ["_decode_by_pillow", "resize"])
def test_what_gives_other_pixels_counts_as_missing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert jpeg._library.__wrapped__() is not None
    right = getattr(jpeg, name)

    def other(*arguments: object, **options: object) -> Tensor:
        return right(*arguments, **options) ^ 1

    monkeypatch.setattr(jpeg, name, other)
    assert jpeg._library.__wrapped__() is None


@pytest.mark.parametrize("crop_area", [(0.08, 1.0), None])
@pytest.mark.parametrize("channels", [3, 1])
def test_batches_are_the_same_without_it(
    crop_area: tuple[float, float] | None,
    channels: int,
    tmp_path: Path,
    without: Callable[[], None],
) -> None:
    damaged = PLAIN["420"][:900]
    contents = [*PLAIN.values(), *OTHERS.values(), damaged]
    files = [ImageFile(f"{i:03d}", "jpg", content) for i, content in enumerate(contents)]
    write_shard(tmp_path / "a.tar", files)
    manifest = open_manifest(str(tmp_path / "a.tar"), "data.shards")
    samples = Samples(manifest, (24, 32), seed=5, crop_area=crop_area, channels=channels)
    request = Request(1, 0, len(contents))
    one = samples[request]
    without()
    other = samples[request]
    assert one.places == other.places
    assert one.bad == other.bad
    assert [entry.key for entry in one.bad] == [f"{len(contents) - 1:03d}"]
    for name, values in one.tensors.items():
        assert torch.equal(values, other.tensors[name])
