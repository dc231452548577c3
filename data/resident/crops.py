"""Crops of decoded images on their device, many at once, with the pixels of `data.images.resize`.

Bytes are resized in whole numbers: across, rounded to bytes, then down. So the order of a sum does
not matter, and any device gives the same pixels.

Source of the arithmetic: torch's aten/src/ATen/native/cpu/UpSampleKernel.cpp.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.devices import send
from data.images.resize import resize

_MOST_VALUES = 1 << 24  # of an index: what is cut at once, 128 MiB


class _Axis(NamedTuple):
    """How each number of input pixels becomes `out` pixels.

    Attributes:
        first: int64 (most + 1, out), the first input of each output.
        weights: int16 (most + 1, out, taps), those of the inputs from it on.
        precision: int32 (most + 1,): the sum of weights is about 2^precision.
    """

    first: Tensor
    weights: Tensor
    precision: Tensor


def _plan_one(inputs: int, out: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return first inputs int64 (out,), weights int16 (out, taps) and precision of one resize."""
    scale = inputs / out
    support, inverse = (scale, 1 / scale) if scale >= 1 else (1.0, 1.0)
    center = scale * (np.arange(out) + 0.5)
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    last = np.minimum((center + support + 0.5).astype(np.int64), inputs)
    taps = _num_taps(inputs, out)
    places = first[:, None] + np.arange(taps)
    distance = np.abs((places - center[:, None] + 0.5) * inverse)
    exact = np.where((distance < 1) & (places < last[:, None]), 1 - distance, 0.0)
    total = np.zeros(out)
    for tap in range(taps):  # in this order: another sum may differ in the last bit
        total += exact[:, tap]
    exact /= total[:, None]
    precision, largest = 0, float(exact.max())
    while precision < 22 and int(0.5 + largest * (1 << (precision + 1))) < 1 << 15:
        precision += 1
    return first, (0.5 + exact * (1 << precision)).astype(np.int16), precision


class Parts(NamedTuple):
    """The parts of images that become crops.

    Attributes:
        starts: int64 (B,), where the images begin among the pixels of all.
        sides: int64 (B, 2), their heights and widths.
        boxes: int64 (B, 4), left, top, width and height of the parts.
        is_flipped: bool (B,): exchange left and right.
    """

    starts: np.ndarray
    sides: np.ndarray
    boxes: np.ndarray
    is_flipped: np.ndarray

    def within(self, begin: int, end: int) -> "Parts":
        """Return those from `begin` to `end`."""
        return Parts(*(values[begin:end] for values in self))


def crop_on_host(pixels: Tensor, parts: Parts, channels: int, size: tuple[int, int]) -> Tensor:
    """Cut crops one by one, with torch's own resize: as `DeviceCropper`, on the CPU.

    A core takes .6 of the time at 32 px, and a fiftieth at 320.
    """
    crops = torch.empty((len(parts.starts), channels, *size), dtype=torch.uint8)
    values = crops.numpy()
    for slot, (start, (h, w), (left, top, width, height), is_flipped) in enumerate(
        zip(*(field.tolist() for field in parts), strict=True)
    ):
        whole = pixels[start : start + channels * h * w].view(channels, h, w)
        crop = resize(whole[:, top : top + height, left : left + width], size).numpy()
        values[slot] = crop[:, :, ::-1] if is_flipped else crop
    return crops


class DeviceCropper:
    """Cuts, resizes and flips crops of (H, W) on a device, many at once.

    Args:
        size: (H, W).
        most: The longest height and width of an image.
        device: Where the images are.
    """

    def __init__(self, size: tuple[int, int], most: tuple[int, int], device: torch.device) -> None:
        self._size = size
        self._device = device
        self._down, self._across = (
            _plan(inputs, out, device) for inputs, out in zip(most, size, strict=True)
        )

    def __call__(self, pixels: Tensor, parts: Parts, channels: int) -> Tensor:
        """Return crops, uint8 (B, C, H, W).

        Args:
            pixels: uint8 (n,), of each image (C, height, width).
            parts: What becomes crops.
            channels: C.
        """
        values = channels * self._size[1] * max(int(parts.boxes[:, 3].max()), self._size[0])
        number = max(1, _MOST_VALUES // values)
        starts = range(0, len(parts.starts), number)
        crops = [self._cut(pixels, parts.within(k, k + number), channels) for k in starts]
        return crops[0] if len(crops) == 1 else torch.cat(crops)

    def _cut(self, pixels: Tensor, parts: Parts, channels: int) -> Tensor:
        left, top, *box = parts.boxes.T
        begin, plane = parts.starts + top * parts.sides[:, 1] + left, parts.sides.prod(axis=1)
        numbers = np.stack([begin, plane, parts.sides[:, 1], *box, parts.is_flipped])
        device = self._device
        # one transfer; int64 (B,) each
        begin, plane, stride, width, height, flip = send(torch.from_numpy(numbers), device).unbind()
        rows, columns = (torch.arange(side, device=device) for side in self._size)
        columns = torch.where(flip[:, None] > 0, self._size[1] - 1 - columns, columns)  # (B, W)
        most_wide, most_high = (int(sides.max()) for sides in box)

        row = torch.minimum(torch.arange(most_high, device=device), height[:, None] - 1)  # (B, h)
        channel = torch.arange(channels, device=device)
        start = (begin[:, None] + plane[:, None] * channel)[:, :, None, None]
        start = start + (row * stride[:, None])[:, None, :, None]  # (B, C, h, 1)
        across = _resize(
            self._across,
            width,
            columns,
            most_wide,
            lambda place: pixels[start + place],
            (slice(None), None, None, slice(None)),
        )  # (B, C, h, W)
        shape = (*across.shape[:2], *self._size)
        return _resize(
            self._down,
            height,
            rows.expand(len(height), -1),
            most_high,
            lambda place: across.gather(2, place.expand(shape)),
            (slice(None), None, slice(None), None),
        )


def _resize(
    axis: _Axis,
    inputs: Tensor,
    outputs: Tensor,
    most: int,
    take: Callable[[Tensor], Tensor],
    spread: tuple[slice | None, ...],
) -> Tensor:
    """Return the weighted sums of one axis, rounded to bytes.

    Args:
        axis: The weights.
        inputs: int64 (B,), how many pixels each image has.
        outputs: int64 (B, n), which outputs are wanted.
        most: The largest of `inputs`.
        take: Places of pixels, int64 (B, n) spread -> their values, uint8.
        spread: The index that gives (B, n) the dimensions of what `take` returns.
    """
    first = axis.first[inputs[:, None], outputs]
    weights = axis.weights[inputs[:, None], outputs].int()
    precision = axis.precision[inputs][:, None, None, None]
    sums = (1 << precision) >> 1
    for tap in range(_num_taps(most, axis.first.shape[1])):
        place = torch.minimum(first + tap, inputs[:, None] - 1)
        sums = sums + take(place[spread]).int() * weights[..., tap][spread]
    return (sums >> precision).clamp_(0, 255).to(torch.uint8)


def _num_taps(inputs: int, out: int) -> int:
    """Return how many inputs an output is made of, at most."""
    return 2 * max(1, -(-inputs // out)) + 1


def _plan(most: int, out: int, device: torch.device) -> _Axis:
    plans = [_plan_one(inputs, out) for inputs in range(1, most + 1)]
    first = np.zeros((most + 1, out), np.int64)
    weights = np.zeros((most + 1, out, _num_taps(most, out)), np.int16)
    precision = np.zeros(most + 1, np.int32)
    for inputs, (places, own, digits) in enumerate(plans, start=1):
        first[inputs], weights[inputs, :, : own.shape[1]] = places, own
        precision[inputs] = digits
    return _Axis(*(torch.from_numpy(values).to(device) for values in (first, weights, precision)))
