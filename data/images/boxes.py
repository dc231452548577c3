"""Which part of an image becomes a crop: functions of its size and of random numbers alone."""

import math
from typing import NamedTuple

import numpy as np

NUM_UNIFORM = 24  # random numbers of a sample: 10 tries of 2, place, flip, and what augments it
_NUM_TRIES = 10
_LEFT, _TOP, FLIP, AUGMENTATION = range(2 * _NUM_TRIES, NUM_UNIFORM)


class Box(NamedTuple):
    """A part of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


def whole_box(height: int, width: int) -> Box:
    """Return the part that is all of an image."""
    return Box(0, 0, width, height)


def training_box(
    height: int,
    width: int,
    uniform: np.ndarray,
    size: tuple[int, int],
    crop_area: tuple[float, float],
) -> Box:
    """Draw the part of an image that becomes a training crop.

    Args:
        height: The image's.
        width: The image's.
        uniform: (NUM_UNIFORM,) numbers in [0, 1).
        size: (H, W) of the crop.
        crop_area: Range of the part's area as a fraction of the image's.

    The part's aspect ratio is 3/4 to 4/3 of the result's, so that a rectangular `size` does not
    squeeze the image. Ten tries as in torchvision's RandomResizedCrop, then the whole image, its
    longer side cut to the allowed aspect ratio.

    Source: Szegedy et al. 2015, section 6.
    """
    aspect = size[1] / size[0]
    log_ratio = np.log(aspect) + np.log(4 / 3) * (2 * uniform[_NUM_TRIES : 2 * _NUM_TRIES] - 1)
    # NumPy's exp, on all tries: another's may differ in the last bit; the rest is exact IEEE
    ratios: list[float] = np.exp(log_ratio).tolist()
    fractions: list[float] = uniform.tolist()
    w = max(1, min(width, round(height * aspect * 4 / 3)))
    h = max(1, min(height, round(width / aspect * 4 / 3)))
    for fraction, ratio in zip(fractions[:_NUM_TRIES], ratios, strict=True):
        area = height * width * (crop_area[0] + (crop_area[1] - crop_area[0]) * fraction)
        tried_w, tried_h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < tried_w <= width and 0 < tried_h <= height:
            w, h = tried_w, tried_h
            break
    left, top = int(fractions[_LEFT] * (width - w + 1)), int(fractions[_TOP] * (height - h + 1))
    return Box(left, top, w, h)


def training_boxes(
    sides: np.ndarray,
    uniform: np.ndarray,
    size: tuple[int, int],
    crop_area: tuple[float, float],
) -> np.ndarray:
    """Draw the parts of many images at once, bit for bit those of `training_box`.

    Args:
        sides: int64 (B, 2), the height and width of each image.
        uniform: (B, NUM_UNIFORM) numbers in [0, 1).
        size: (H, W) of the crops.
        crop_area: As for `training_box`.

    Returns:
        int64 (B, 4): left, top, width and height.
    """
    aspect = size[1] / size[0]
    height, width = sides[:, :1], sides[:, 1:]
    log_ratio = np.log(aspect) + np.log(4 / 3) * (2 * uniform[:, _NUM_TRIES : 2 * _NUM_TRIES] - 1)
    ratio = np.exp(log_ratio)
    area = height * width * (crop_area[0] + (crop_area[1] - crop_area[0]) * uniform[:, :_NUM_TRIES])
    widest = np.clip(np.rint(height * aspect * 4 / 3), 1, width)
    highest = np.clip(np.rint(width / aspect * 4 / 3), 1, height)
    # (B, tries + 1): the last is taken where no try fits
    w = np.concatenate([np.rint(np.sqrt(area * ratio)), widest], axis=1)
    h = np.concatenate([np.rint(np.sqrt(area / ratio)), highest], axis=1)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(axis=1)[:, None]
    w, h = (np.take_along_axis(tried, first, axis=1).astype(np.int64) for tried in (w, h))
    left = (uniform[:, _LEFT, None] * (width - w + 1)).astype(np.int64)
    top = (uniform[:, _TOP, None] * (height - h + 1)).astype(np.int64)
    return np.concatenate([left, top, w, h], axis=1)


def evaluation_box(height: int, width: int, size: tuple[int, int]) -> Box:
    """Return the largest part in an image's centre that has the aspect ratio of (H, W)."""
    scale = max(size[0] / height, size[1] / width)
    h = max(1, min(height, round(size[0] / scale)))
    w = max(1, min(width, round(size[1] / scale)))
    return Box((width - w) // 2, (height - h) // 2, w, h)
