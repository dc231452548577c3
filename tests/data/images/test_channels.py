"""Grey images and images of any number of channels, from their bytes to a batch."""

import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from data.batch import Request
from data.config import DataConfig, ImageConfig, LabelledDataConfig
from data.folder.images import list_images
from data.folder.plan import take_images
from data.images.augment import RandAugment
from data.images.decoding import UnreadableImage, decode
from data.images.limits import MAX_PIXELS
from data.images.transforms import evaluation_crop, training_crop
from data.index.open import open_manifest
from data.reading.check import unusable_members
from data.samples import Samples, pick_image
from data.sequential.stream import open_sequential
from data.settings import UserError
from data.shards import ImageFile, write_shard
from data.storage.locations import Storage
from data.stream import Share

AREA = (0.3, 1.0)


def values(channels: int, size: tuple[int, int] = (20, 24), seed: int = 0) -> np.ndarray:
    """Draw uint8 (H, W, C)."""
    return np.random.default_rng(seed).integers(0, 256, (*size, channels)).astype(np.uint8)


def npy(array: np.ndarray, **options: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


def stored(image: Tensor) -> bytes:
    return npy(image.permute(1, 2, 0).numpy())


def pages(*arrays: np.ndarray) -> bytes:
    """Write each array as a page of a TIFF."""
    first, *others = map(Image.fromarray, arrays)
    content = io.BytesIO()
    first.save(content, "TIFF", save_all=True, append_images=others)
    return content.getvalue()


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def planes(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)


def header(shape: object, descr: str = "|u1", version: int = 1) -> bytes:
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text


# ---------------------------------------------------------------- grey


def test_a_grey_image_keeps_its_values() -> None:
    array = values(1)
    for content in (encode(Image.fromarray(array[..., 0])), npy(array), npy(array[..., 0])):
        assert torch.equal(decode(content, 1), planes(array))


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_the_upper_eight(channels: int) -> None:
    array = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    expected = planes((array >> 8).astype(np.uint8)[..., None]).expand(channels, -1, -1)
    for content in (encode(Image.fromarray(array)), npy(array), npy(array.astype(">u2"))):
        assert torch.equal(decode(content, channels), expected)


def test_colours_become_their_luminance() -> None:
    array = values(3)
    expected = planes(np.array(Image.fromarray(array).convert("L"))[..., None])
    for content in (encode(Image.fromarray(array)), npy(array)):
        assert torch.equal(decode(content, 1), expected)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_becomes_grey_and_upright(mode: str) -> None:
    smooth = Image.fromarray(values(3, (4, 4))).resize((48, 32), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    content = encode(smooth.convert(mode), "JPEG", exif=exif, quality=95)
    found = decode(content, 1)
    assert found.shape == (1, 48, 32)
    expected = np.rot90(np.array(smooth.convert("L")).astype(int), -1)
    assert int(np.abs(found[0].numpy() - expected).max()) <= 8


def test_transparency_is_laid_over_white() -> None:
    array = np.zeros((2, 2, 2), np.uint8)  # black, of which one pixel is seen
    array[0, 0, 1] = 255
    found = decode(encode(Image.fromarray(array, "LA")), 1)
    assert found.tolist() == [[[0, 255], [255, 255]]]


def test_grey_becomes_rgb_and_rgb_is_as_it_was() -> None:
    grey, colours = values(1), values(3)
    assert torch.equal(decode(npy(grey)), planes(grey).expand(3, -1, -1))
    assert torch.equal(decode(npy(colours)), decode(encode(Image.fromarray(colours))))
    assert torch.equal(decode(pages(*colours.transpose(2, 0, 1)))[2], planes(colours)[0])


# ---------------------------------------------------------------- any number of channels


@pytest.mark.parametrize("channels", [2, 4, 5, 13])
def test_an_array_is_taken_as_it_is(channels: int) -> None:
    array = values(channels)
    for content in (npy(array), npy(np.asfortranarray(array)), npy(array.astype(np.uint16) << 8)):
        assert torch.equal(decode(content, channels), planes(array))


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 5])
def test_each_page_of_a_tiff_is_a_channel(channels: int, depth: type[Any]) -> None:
    array = values(channels)
    wide = array.astype(depth) << (8 if depth is np.uint16 else 0)
    assert torch.equal(decode(pages(*wide.transpose(2, 0, 1)), channels), planes(array))


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_samples_of_a_pixel_are_channels(kind: str) -> None:
    array = values(4)
    assert torch.equal(decode(encode(Image.fromarray(array, "RGBA"), kind), 4), planes(array))


GREY = Image.fromarray(values(1)[..., 0])


@pytest.mark.parametrize(
    ("content", "channels", "reason"),
    [
        (npy(values(4)), 5, "has 4 channels, data.channels=5"),
        (npy(values(4)), 3, "has 4 channels, data.channels=3"),
        (npy(values(2)), 1, "has 2 channels, data.channels=1"),
        (npy(values(1)), 5, "has 1 channel, data.channels=5"),
        (encode(GREY), 5, "has 1 channel, data.channels=5"),
        (encode(GREY.convert("RGB")), 5, "has 3 channels, data.channels=5"),
        (encode(GREY.convert("RGB"), "JPEG"), 2, "has 3 channels, data.channels=2"),
        (pages(*values(4).transpose(2, 0, 1)), 5, "has 4 channels, data.channels=5"),
        (pages(*values(6).transpose(2, 0, 1)), 5, "has over 5 channels, data.channels=5"),
        (pages(values(1)[..., 0], values(3)), 2, "page 2 is RGB, and not grey of 8 or 16 bits"),
        (pages(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8)), 2, "page 2 has another"),
        (npy(values(5).astype(np.float32)), 5, "float32 values from 0 to 255; of floats, 0 to 1"),
        (npy(values(5).astype(np.int16)), 5, "values are int16; give uint8, uint16, or floats"),
        (npy(values(1) > 9), 1, "values are bool; give"),
        (npy(values(5)[0, 0]), 5, "shape (5,); give (height, width, channels)"),
        (npy(np.zeros((0, 4, 5), np.uint8)), 5, "shape (0, 4, 5); give"),
        (npy(np.array([None]), allow_pickle=True), 5, "values are object; give"),
    ],
)
def test_what_is_not_of_so_many_channels_says_so(
    content: bytes, channels: int, reason: str
) -> None:
    with pytest.raises(UnreadableImage) as caught:
        decode(content, channels)
    assert str(caught.value).startswith(reason)


# ---------------------------------------------------------------- hostile arrays


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (npy(values(5))[:-1], "2399 of 2400 bytes of values"),
        (header((10_000, 10_000, 5)), "0 of 500000000 bytes of values"),
        (header((10_000, 10_000, 5), version=2), "0 of 500000000 bytes of values"),
        (header((MAX_PIXELS, 2, 5)), f"2x{MAX_PIXELS} pixels, over"),
        (header((MAX_PIXELS, 1, 5)), f"1x{MAX_PIXELS}x5 values, over"),
        (header((2**70, 2**70, 5)), f"{2**70}x{2**70} pixels"),
        (header((-2, -2, 5)) + bytes(20), "shape (-2, -2, 5); give"),
        (header("().__class__"), "cannot be decoded"),
        (header("(" * 3_000), "cannot be decoded"),
        (header((2, 2, 5), "|O") + bytes(160), "values are object"),
        (b"\x93NUMPY\x09\x00" + bytes(99), "NumPy's format 9.0 is not read"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "cannot be decoded"),
        (b"\x93NUMPY", "cannot be decoded"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_hostile_array_is_refused_from_its_header(
    content: bytes, reason: str, channels: int
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableImage) as caught:
            decode(content, channels)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@given(st.data())
def test_damaged_bytes_raise_nothing_else(data: st.DataObject) -> None:
    small = values(5, (3, 2))
    whole = data.draw(st.sampled_from([npy(small), pages(*small.transpose(2, 0, 1))]))
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, max(0, len(content) - 1)), max_size=5)):
        if content:
            content[place] = data.draw(st.integers(0, 255))
    try:
        found = decode(bytes(content), 5)
    except UnreadableImage:
        return
    assert found.shape[0] == 5
    assert found.dtype == torch.uint8


# ---------------------------------------------------------------- crops


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_crop_of_many_channels_is_the_crops_of_each(channels: int) -> None:
    image = planes(values(channels, (37, 41)))
    numbers = np.random.default_rng(2).random(24)
    crops: list[Callable[[Tensor], Tensor]] = [
        lambda x: training_crop(stored(x), numbers, (16, 12), AREA, len(x)),
        lambda x: evaluation_crop(stored(x), (16, 12), len(x)),
    ]
    for crop in crops:
        whole = crop(image)
        assert whole.shape == (channels, 16, 12)
        for channel in range(channels):
            alone = crop(image[channel : channel + 1].expand(3, -1, -1))
            assert int((whole[channel].int() - alone[0].int()).abs().max()) <= 1


def test_grey_crops_are_augmented() -> None:
    augment = RandAugment("rand-m9-mstd0.5-inc1", (16, 16), (0.4,))
    crop = planes(values(1, (16, 16)))
    found = [augment(crop, seed) for seed in range(60)]
    assert all(each.shape == (1, 16, 16) and each.dtype == torch.uint8 for each in found)
    assert any(not torch.equal(each, crop) for each in found)
    assert torch.equal(augment(crop, 7), augment(crop, 7))
    with pytest.raises(UserError, match=r"data.augment=rand-m9 changes RGB or grey.*channels=5"):
        RandAugment("rand-m9", (16, 16), (0.5,) * 5)


# ---------------------------------------------------------------- samples


@pytest.fixture
def microscope(tmp_path: Path) -> Path:
    """Write 12 images of 5 channels, arrays and TIFFs in turn, and one of 4."""
    arrays = [values(5, seed=number) for number in range(12)]
    contents = [
        ("npy", npy(array)) if number % 2 else ("tif", pages(*array.transpose(2, 0, 1)))
        for number, array in enumerate(arrays)
    ]
    contents.append(("npy", npy(values(4))))
    samples = (
        ImageFile(f"{number:03d}", kind, content, number % 2)
        for number, (kind, content) in enumerate(contents)
    )
    write_shard(tmp_path / "a.tar", samples)
    return tmp_path


def test_samples_of_five_channels(microscope: Path) -> None:
    manifest = open_manifest(microscope, "data.shards")
    batch = Samples(manifest, (20, 24), seed=0, labelled=True, channels=5)[Request(0, 0, 13)]
    for number in range(12):
        assert torch.equal(batch.tensors["image"][number], planes(values(5, seed=number)))
    assert batch.tensors["weight"].tolist() == [1.0] * 12 + [0.0]
    [bad] = batch.bad
    assert (bad.key, bad.reason) == ("012", "has 4 channels, data.channels=5")
    assert batch.tensors["label"][:3].tolist() == [0, 1, 0]
    cropped = Samples(manifest, (8, 12), seed=0, crop_area=AREA, channels=5)[Request(1, 0, 16)]
    assert cropped.tensors["image"].shape == (16, 5, 8, 12)


def test_samples_read_forwards(microscope: Path) -> None:
    config = DataConfig(shards=str(microscope), read="sequential", workers=0)
    stream = open_sequential(config, (8, 12), 0, 4, Share(0, 1, 4), channels=5)
    batches = [batch for step in stream.steps(0, 4) for batch in step]
    assert all(batch.tensors["image"].shape == (4, 5, 8, 12) for batch in batches)
    assert {entry.reason for batch in batches for entry in batch.bad} == {
        "has 4 channels, data.channels=5"
    }


def test_grey_samples_are_the_grey_of_the_images(shards: Path) -> None:
    manifest = open_manifest(f"{shards}/val-0.tar", "data.shards")
    size = (24, 20)  # their own
    colours, grey = (Samples(manifest, size, seed=0, channels=n)[Request(0, 0, 10)] for n in (3, 1))
    assert grey.tensors["image"].shape == (10, 1, *size)
    for colour, found in zip(colours.tensors["image"], grey.tensors["image"], strict=True):
        image = Image.fromarray(colour.permute(1, 2, 0).contiguous().numpy())
        assert np.array_equal(found[0].numpy(), np.array(image.convert("L")))


def test_an_array_beside_a_picture_is_its_image_only_for_other_channels() -> None:
    members = {"npy": b"array", "jpg": b"picture", "cls": b"0"}
    assert [pick_image(members, n) for n in (1, 3, 5)] == [b"picture", b"picture", b"array"]
    assert pick_image({"cls": b"0", "npy": b"array"}) == b"array"
    preview = {"png": b"preview", "npy": b"array"}
    assert pick_image(preview, 5) == b"array"


def test_a_damaged_array_beside_a_picture_does_not_matter(tmp_path: Path) -> None:
    from webdataset.writer import TarWriter

    with TarWriter(str(tmp_path / "a.tar"), encoder=False) as tar:
        tar.write({"__key__": "0", "npy": b"features", "png": encode(GREY)})
        tar.write({"__key__": "1", "npy": npy(values(3))})
    manifest = open_manifest(tmp_path, "data.shards")
    batch = Samples(manifest, (20, 24), seed=0)[Request(0, 0, 2)]
    assert not batch.bad
    assert torch.equal(batch.tensors["image"][1], planes(values(3)))
    [shard] = manifest.shards
    assert unusable_members(shard, Storage(), decodes=True) == []
    found = unusable_members(shard, Storage(), decodes=True, channels=5)
    assert found == [
        "0.npy: no image format that Pillow knows",
        "1.npy: has 3 channels, data.channels=5",
    ]


def test_a_folder_of_arrays_is_one_of_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", values(5))
    assert [(i.path, i.label) for i in take_images(list_images(tmp_path)).images] == [
        ("a/0.npy", 0),
        ("b/0.npy", 1),
    ]
    (tmp_path / "b/1.png").write_bytes(encode(GREY))
    source = take_images(list_images(tmp_path))
    assert [image.path for image in source.images] == ["b/1.png"]
    assert source.left_out == (
        "2 files that are no images (2 .npy: a/0.npy, b/0.npy)",
        "1 folder without images, so no class (a)",
    )


# ---------------------------------------------------------------- what is told


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"channels": 0}, "data.channels=0 must be above 0; 3 is RGB, 1 is grey"),
        (
            {"channels": 5, "mean": (0.5,) * 3},
            "data.mean has 3 values, data.channels=5; give one a channel",
        ),
        ({"channels": 1, "std": (0.5, 0.5)}, "data.std has 2 values, data.channels=1; give one"),
        ({"std": (0.5, 0.0)}, "data.std=(0.5, 0.0) must be above 0 in each channel"),
    ],
)
def test_a_wrong_key_says_what_is_right(told: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        ImageConfig(**told)
    assert str(caught.value).startswith(message)


def test_the_keys_take_any_number_of_values() -> None:
    config = LabelledDataConfig(channels=5, mean=(0.1,) * 5, std=(0.2,) * 5, augment=None)
    assert len(config.mean or ()) == 5
    assert ImageConfig(mean=(0.5,)).channels is None
