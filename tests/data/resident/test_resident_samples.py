"""Images in memory: the batches of a loader, bit for bit, with the same bad samples and names."""

import io
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from data.batch import Batch
from data.index.manifest import Manifest
from data.index.open import open_manifest
from data.resident.crops import DeviceCropper
from data.resident.images import DecodedImages, decode_all, estimate_bytes
from data.resident.samples import ResidentSamples
from data.samples import Samples
from data.shards import ImageFile, write_shard
from data.stream import Share, TrainingStream

CPU = torch.device("cpu")
SIZE, AREA, BATCH = (16, 24), (0.2, 1.0), 8


def make_image(number: int) -> ImageFile:
    """Make JPEG and PNG images of many shapes; some are cut, grey, or none at all."""
    generator = np.random.default_rng(number)
    height, width = generator.integers(3, 60, 2)
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("L" if number % 7 == 3 else "RGB")
    kind = ("png", "jpg")[number % 2]
    file = io.BytesIO()
    image.save(file, {"png": "PNG", "jpg": "JPEG"}[kind])
    content = file.getvalue()
    if number in (4, 9):
        content = content[: len(content) // 2]  # cut
    return ImageFile(f"{number:03d}", kind, b"no image" if number == 30 else content)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("mixed")
    write_shard(folder / "a.tar", [make_image(number) for number in range(25)])
    write_shard(folder / "b.tar", [make_image(number) for number in range(25, 42)])
    return open_manifest(f"{folder}/*.tar", "data.shards")


@pytest.fixture(scope="module")
def decoded(manifest: Manifest) -> DecodedImages:
    return decode_all(manifest, 3, CPU, 0)


def batches_of(samples: Samples, share: Share, last: int, workers: int = 0) -> list[Batch]:
    stream = TrainingStream(samples, BATCH, share, workers)
    return [batch for step in stream.steps(0, last) for batch in step]


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (list(one.places), one.bad) == (list(other.places), other.bad)
        assert one.places[1:3] == other.places[1:3]
        assert one.tensors.keys() == other.tensors.keys()
        for name, value in one.tensors.items():
            assert torch.equal(value, other.tensors[name]), name


@pytest.mark.parametrize("share", [Share(0, 1, 8), Share(0, 1, 4), Share(1, 2, 2)])
def test_batches_are_the_loaders(manifest: Manifest, decoded: DecodedImages, share: Share) -> None:
    """Over three epochs, whose last batches are padded, with images that cannot be decoded."""
    plain = Samples(manifest, SIZE, seed=3, crop_area=AREA)
    resident = ResidentSamples(decoded, manifest, SIZE, seed=3, crop_area=AREA)
    expected = batches_of(plain, share, 18)
    assert sum(len(batch.bad) for batch in expected) > 2
    assert_same(batches_of(resident, share, 18), expected)


def test_a_devices_crops_are_the_loaders(
    manifest: Manifest, decoded: DecodedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a GPU, here on the CPU."""
    monkeypatch.setattr("data.resident.samples._is_host", Mock(return_value=False))
    resident = ResidentSamples(decoded, manifest, SIZE, seed=3, crop_area=AREA)
    assert isinstance(resident.cropper, DeviceCropper)
    plain = Samples(manifest, SIZE, seed=3, crop_area=AREA)
    share = Share(0, 1, 8)
    assert_same(batches_of(resident, share, 18), batches_of(plain, share, 18))


@pytest.mark.parametrize("channels", [1, 3])
def test_loader_processes_decode_the_same(manifest: Manifest, channels: int) -> None:
    here, there = (decode_all(manifest, channels, CPU, workers) for workers in (0, 2))
    assert torch.equal(here.pixels, there.pixels)
    assert np.array_equal(here.starts, there.starts)
    assert np.array_equal(here.sides, there.sides)
    assert (here.starts < 0).nonzero()[0].tolist() == [4, 9, 30]
    plain, resident = (
        Samples(manifest, SIZE, seed=1, crop_area=AREA, channels=channels),
        ResidentSamples(there, manifest, SIZE, seed=1, crop_area=AREA, channels=channels),
    )
    share = Share(0, 1, 8)
    assert_same(batches_of(resident, share, 6), batches_of(plain, share, 6, workers=1))


def test_nothing_is_read_again(manifest: Manifest, tmp_path: Path) -> None:
    """The shards may be gone once they are decoded, but for the images that cannot be."""
    path = tmp_path / "c.tar"
    write_shard(path, [make_image(number) for number in (1, 2, 5, 6, 7, 8)])
    whole = open_manifest(str(path), "data.shards")
    resident = ResidentSamples(decode_all(whole, 3, CPU, 0), whole, SIZE, seed=0, crop_area=AREA)
    expected = batches_of(Samples(whole, SIZE, seed=0, crop_area=AREA), Share(0, 1, 8), 4)
    path.unlink()
    found = batches_of(resident, Share(0, 1, 8), 4)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.tensors["image"], other.tensors["image"])


def test_the_estimate_is_of_all(manifest: Manifest, decoded: DecodedImages) -> None:
    """42 images are looked at one by one, so it is exact."""
    assert estimate_bytes(manifest, 3) == pytest.approx(len(decoded.pixels), abs=1)


def test_memory_grows_where_later_images_are_larger(tmp_path: Path) -> None:
    def image(number: int) -> ImageFile:
        side = 4 if number < 70 else 40
        file = io.BytesIO()
        Image.new("RGB", (side, side), (number, 0, 255 - number)).save(file, "PNG")
        return ImageFile(f"{number:03d}", "png", file.getvalue())

    write_shard(tmp_path / "d.tar", map(image, range(200)))
    decoded = decode_all(open_manifest(f"{tmp_path}/d.tar", "data.shards"), 3, CPU, 0)
    assert len(decoded.pixels) == 3 * (70 * 16 + 130 * 1600)
    for number in (0, 69, 70, 150, 199):
        start, area = int(decoded.starts[number]), int(decoded.sides[number].prod())
        colour = decoded.pixels[start : start + 3 * area : area].tolist()  # a value a channel
        assert colour == [number, 0, 255 - number]
