"""The crops of training and of evaluation."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from data.images.boxes import NUM_UNIFORM
from data.images.resize import resize
from data.images.transforms import evaluation_crop, training_crop


def npy(image: Tensor) -> bytes:
    """Store (C, h, w) as it is."""
    content = io.BytesIO()
    np.save(content, image.permute(1, 2, 0).numpy())
    return content.getvalue()


# ---------------------------------------------------------------- the training crop


def numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(NUM_UNIFORM)


def gradient(height: int, width: int) -> Tensor:
    """Make an image whose red is the column and whose green is the row, both in 0..255."""
    rows = torch.linspace(0, 255, height).view(-1, 1).expand(height, width)
    columns = torch.linspace(0, 255, width).expand(height, width)
    return torch.stack([columns, rows, torch.zeros(height, width)]).round().to(torch.uint8)


def extent(crop: Tensor) -> tuple[float, float]:
    """Return the part of a gradient's height and width that a crop of it shows."""
    height, width = crop.shape[1:]
    span = [float(crop[c].max()) - float(crop[c].min()) for c in (1, 0)]
    return span[0] / 255 * height / (height - 1), span[1] / 255 * width / (width - 1)


def test_the_training_crop_is_a_function_of_its_numbers() -> None:
    image = gradient(60, 80)
    one, other = (training_crop(npy(image), numbers(seed), (16, 16), (0.1, 1)) for seed in (0, 1))
    assert torch.equal(one, training_crop(npy(image), numbers(0), (16, 16), (0.1, 1)))
    assert not torch.equal(one, other)
    assert one.is_contiguous()


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
@pytest.mark.parametrize("crop_area", [(0.08, 1.0), (0.3, 0.5), (0.25, 0.25)])
def test_crops_cover_the_area_and_aspect_that_are_asked_for(
    size: tuple[int, int], crop_area: tuple[float, float]
) -> None:
    height, width = 200, 240
    image = gradient(height, width)
    areas: list[float] = []
    for seed in range(150):
        crop = training_crop(npy(image), numbers(seed), size, crop_area)
        assert crop.shape == (3, *size)
        rows, columns = extent(crop)
        areas.append(rows * columns)
        aspect = (columns * width) / (rows * height) / (size[1] / size[0])
        assert 3 / 4 * 0.9 < aspect < 4 / 3 * 1.1
    assert min(areas) > crop_area[0] * 0.85
    assert max(areas) < crop_area[1] * 1.15
    if size == (64, 64) and crop_area == (0.08, 1.0):
        assert min(areas) < 0.15  # both ends of the range are reached
        assert max(areas) > 0.85


def test_half_of_the_crops_are_flipped_and_they_reach_all_corners() -> None:
    image = gradient(100, 100)
    crops = [training_crop(npy(image), numbers(seed), (16, 16), (0.1, 0.2)) for seed in range(200)]
    num_flipped = sum(bool(crop[0, 0, 0] > crop[0, 0, -1]) for crop in crops)
    assert 70 < num_flipped < 130
    for channel in (0, 1):
        assert min(int(crop[channel].min()) for crop in crops) < 12
        assert max(int(crop[channel].max()) for crop in crops) > 243


def test_the_whole_image_at_its_own_size_is_left_as_it_is() -> None:
    image = gradient(32, 48)
    uniform = np.full(NUM_UNIFORM, 0.5)  # the middle of the aspect ratios; no flip
    assert torch.equal(training_crop(npy(image), uniform, (32, 48), (1, 1)), image)
    uniform[-2] = 0.4
    assert torch.equal(training_crop(npy(image), uniform, (32, 48), (1, 1)), image.flip(2))


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([(8, 8), (4, 12), (24, 8)]),
    st.sampled_from([(0.08, 1.0), (1.0, 1.0), (0.001, 0.001)]),
    st.integers(0, 1_000),
)
def test_any_image_gives_a_crop_of_the_size(
    height: int, width: int, size: tuple[int, int], crop_area: tuple[float, float], seed: int
) -> None:
    """Also images smaller than the crop, of one pixel, and far from its aspect ratio."""
    image = gradient(height, width)
    assert training_crop(npy(image), numbers(seed), size, crop_area).shape == (3, *size)
    assert evaluation_crop(npy(image), size).shape == (3, *size)


def test_a_long_image_falls_back_to_its_allowed_part() -> None:
    image = gradient(10, 1_000)
    crop = training_crop(npy(image), numbers(0), (16, 16), (1, 1))
    rows, columns = extent(crop)
    assert rows == pytest.approx(1, abs=0.1)
    assert columns * 1_000 == pytest.approx(10 * 4 / 3, rel=0.5)


def test_one_colour_stays_that_colour() -> None:
    image = torch.tensor([1, 128, 255], dtype=torch.uint8).view(3, 1, 1).expand(3, 37, 21)
    expected = image[:, :1, :1].expand(3, 16, 16)
    assert torch.equal(training_crop(npy(image), numbers(0), (16, 16), (0.08, 1)), expected)
    assert torch.equal(evaluation_crop(npy(image), (16, 16)), expected)


# ---------------------------------------------------------------- evaluation and resizing


def test_the_evaluation_crop_is_the_centre() -> None:
    image = gradient(40, 80)
    assert torch.equal(evaluation_crop(npy(image), (40, 40)), image[:, :, 20:60])
    assert torch.equal(evaluation_crop(npy(image), (40, 80)), image)
    crop = evaluation_crop(npy(image), (20, 20))
    assert crop.shape == (3, 20, 20)
    assert extent(crop) == pytest.approx((1, 0.5), abs=0.06)
    assert float(crop[0].float().mean()) == pytest.approx(127.5, abs=1)


def test_the_evaluation_crop_of_a_rectangle_is_not_squeezed() -> None:
    crop = evaluation_crop(npy(gradient(90, 90)), (32, 64))
    rows, columns = extent(crop)
    assert columns == pytest.approx(1, abs=0.05)
    assert rows == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("size", [(7, 5), (31, 50), (64, 20)])
def test_resize_is_the_antialiased_bilinear_of_floats(size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, 30, 41), generator=torch.Generator().manual_seed(0))
    floats = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    found = resize(image.to(torch.uint8), size)
    assert (found.float() - floats).abs().max() <= 1.01  # integers are rounded twice
    assert found.is_contiguous()


def test_resize_does_not_depend_on_the_number_of_threads() -> None:
    image = gradient(301, 203)
    before = torch.get_num_threads()
    try:
        results: list[Tensor] = []
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            results.append(resize(image, (64, 64)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_a_crop_of_a_view_is_the_crop_of_its_copy() -> None:
    image = gradient(40, 40)[:, 3:33, 5:29]
    copy = image.clone(memory_format=torch.contiguous_format)
    for seed in range(5):
        crops = [training_crop(npy(i), numbers(seed), (8, 8), (0.2, 1)) for i in (image, copy)]
        assert torch.equal(*crops)
        assert math.prod(crops[0].shape) == 192
