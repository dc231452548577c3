"""Crops of images in memory: the boxes and the pixels of those that are cut one by one."""

import numpy as np
import pytest
import torch

from data.images.boxes import FLIP, NUM_UNIFORM, training_box, training_boxes
from data.images.resize import resize
from data.resident.crops import DeviceCropper, Parts, crop_on_host

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(32, 32), (50, 200), (224, 160)])
@pytest.mark.parametrize("area", [(0.08, 1.0), (0.4, 0.4), (1.0, 1.0)])
def test_boxes_of_many_are_those_of_one(size: tuple[int, int], area: tuple[float, float]) -> None:
    generator = np.random.default_rng(0)
    sides = generator.integers(1, 700, (2000, 2))
    uniform = generator.random((2000, NUM_UNIFORM))
    boxes = training_boxes(sides, uniform, size, area)
    for (height, width), numbers, box in zip(sides.tolist(), uniform, boxes.tolist(), strict=True):
        assert training_box(height, width, numbers, size, area) == tuple(box)


def random_parts(
    generator: np.random.Generator, number: int, channels: int, size: tuple[int, int], most: int
) -> tuple[torch.Tensor, Parts]:
    """Draw images of all shapes up to `most` pixels a side, and a crop of each."""
    sides = generator.integers(1, most + 1, (number, 2))
    counts = channels * sides.prod(axis=1)
    pixels = torch.from_numpy(generator.integers(0, 256, int(counts.sum()), dtype=np.uint8))
    uniform = generator.random((number, NUM_UNIFORM))
    boxes = training_boxes(sides, uniform, size, (0.05, 1.0))
    return pixels, Parts(np.cumsum(counts) - counts, sides, boxes, uniform[:, FLIP] < 0.5)


def expected(
    pixels: torch.Tensor, parts: Parts, channels: int, size: tuple[int, int]
) -> torch.Tensor:
    """Cut crops as a loader process does of an image that was decoded whole."""
    crops: list[torch.Tensor] = []
    for start, (h, w), (left, top, width, height), flip in zip(*parts, strict=True):
        image = pixels[start : start + channels * h * w].view(channels, h, w)
        crop = resize(image[:, top : top + height, left : left + width].clone(), size)
        crops.append(crop.flip(2) if flip else crop)
    return torch.stack(crops)


@pytest.mark.parametrize(
    ("number", "channels", "size", "most"),
    [
        (5000, 3, (16, 16), 48),
        (3000, 1, (24, 11), 70),
        (1500, 3, (9, 30), 90),
        (500, 5, (8, 8), 60),
        (9, 3, (4, 3), 1200),  # a side becomes 300 times as short
    ],
)
def test_both_ways_give_the_loaders_pixels(
    number: int, channels: int, size: tuple[int, int], most: int
) -> None:
    """10,000 images, boxes and sizes: up and down, grey and more channels, flipped and not."""
    pixels, parts = random_parts(np.random.default_rng(1), number, channels, size, most)
    right = expected(pixels, parts, channels, size)
    assert torch.equal(crop_on_host(pixels, parts, channels, size), right)
    cropper = DeviceCropper(size, (most, most), CPU)
    step = 500
    found = [
        cropper(pixels, parts.within(at, at + step), channels) for at in range(0, number, step)
    ]
    assert torch.equal(torch.cat(found), right)


def test_black_and_white_stay_so() -> None:
    sides = np.array([[37, 53]])
    box = np.array([[3, 5, 41, 29]])
    parts = Parts(np.zeros(1, np.int64), sides, box, np.zeros(1, bool))
    for value in (0, 255):
        pixels = torch.full((3 * 37 * 53,), value, dtype=torch.uint8)
        crops = DeviceCropper((16, 16), (37, 53), CPU)(pixels, parts, 3)
        assert (crops == value).all()


def test_many_crops_are_cut_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, parts = random_parts(np.random.default_rng(2), 50, 3, (16, 16), 40)
    cropper = DeviceCropper((16, 16), (40, 40), CPU)
    whole = cropper(pixels, parts, 3)
    monkeypatch.setattr("data.resident.crops._MOST_VALUES", 3 * 16 * 40 * 7)
    assert torch.equal(cropper(pixels, parts, 3), whole)
