"""Training crops' boxes are those that they have always been."""

import numpy as np
import pytest

from data.images.boxes import NUM_UNIFORM, Box, training_box


def expected_box(
    height: int,
    width: int,
    uniform: np.ndarray,
    size: tuple[int, int],
    crop_area: tuple[float, float],
) -> Box:
    """Draw as the first version did, all tries at once; recorded runs depend on it."""
    area = height * width * (crop_area[0] + (crop_area[1] - crop_area[0]) * uniform[:10])
    aspect = size[1] / size[0]
    log_ratio = np.log(aspect) + np.log(4 / 3) * (2 * uniform[10:20] - 1)
    widths = np.round(np.sqrt(area * np.exp(log_ratio))).astype(int)
    heights = np.round(np.sqrt(area / np.exp(log_ratio))).astype(int)
    fits = np.flatnonzero((widths > 0) & (widths <= width) & (heights > 0) & (heights <= height))
    if fits.size:
        w, h = int(widths[fits[0]]), int(heights[fits[0]])
    else:
        w = max(1, min(width, round(height * aspect * 4 / 3)))
        h = max(1, min(height, round(width / aspect * 4 / 3)))
    left, top = int(uniform[20] * (width - w + 1)), int(uniform[21] * (height - h + 1))
    return Box(left, top, w, h)


@pytest.mark.parametrize("size", [(224, 224), (32, 96), (1, 7)])
@pytest.mark.parametrize("crop_area", [(0.08, 1.0), (1.0, 1.0), (0.001, 0.002)])
def test_boxes_are_those_of_the_first_version(
    size: tuple[int, int], crop_area: tuple[float, float]
) -> None:
    generator = np.random.default_rng(0)
    for _ in range(2_000):
        height, width = (int(side) for side in generator.integers(1, 700, 2))
        uniform = generator.random(NUM_UNIFORM)
        arguments = (height, width, uniform, size, crop_area)
        box = training_box(*arguments)
        assert box == expected_box(*arguments)
        assert 0 <= box.left <= width - box.width
        assert 0 <= box.top <= height - box.height
