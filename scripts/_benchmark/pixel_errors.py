"""How far crops lie from what exact arithmetic makes of the same part of the same photograph.

The truth is a resize in float64, unrounded, of the pixels of the whole image as libjpeg decodes it
by default (through Pillow). It uses the filter that the variant says it uses, so each is held to
its own promise: the triangle for bilinear, Keys' cubic with a=-0.5 for bicubic. Both are widened
by the factor of reduction, which is what antialiasing means, and beyond the part's edges there is
nothing: the weights that are left add up to 1. DALI treats the part's edges otherwise: there it is
up to 8 levels off, elsewhere it rounds rightly.

Each variant is measured twice. `from JPEG` begins with the file's bytes, and has what its decoder
does otherwise, such as a decoding of a part alone or at a fraction of the size. `resize alone`
begins with the pixels of the truth. `rounded` is the truth rounded to a byte: none can be nearer.

Source: Keys 1981, "Cubic convolution interpolation"; Pillow's Resample.c has the same windows.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from data.images.boxes import Box
from data.images.resize import resize
from data.images.transforms import decode
from scripts._benchmark.loader_alternatives import (
    ASPECT,
    CROP_AREA,
    Images,
    open_image,
    read_images,
)

_NUM_IMAGES = 32
_SEED = 0

Pixels = np.ndarray  # (h, w, 3)
Crops = tuple[Pixels, Pixels]  # from the file's bytes, and of pixels that are decoded
Cropper = Callable[[bytes, Pixels, Box], Crops]


def measure_pixel_errors(images: Images, has_dali: bool) -> dict[str, dict[str, Any]]:
    """Crop one part of each of some images in every variant.

    Returns:
        For each variant its `filter`, and for `from_jpeg` and `resize_alone` the `mean` absolute
        error and its 99th percentile `p99`, over all values of all crops, in grey levels.
    """
    size = (images.image_size, images.image_size)
    croppers: dict[str, tuple[str, Cropper]] = {
        "loader": ("bilinear", _ours(size)),
        "pil_bilinear": ("bilinear", _pillow(size, Image.Resampling.BILINEAR)),
        "pil_bicubic": ("bicubic", _pillow(size, Image.Resampling.BICUBIC)),
    }
    if has_dali:
        croppers["dali"] = ("bilinear", _dali(size))
    errors: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in croppers}
    rounded: list[np.ndarray] = []
    generator = np.random.default_rng(_SEED)
    for content in read_images(images.shards, _NUM_IMAGES):
        pixels = np.asarray(open_image(content))
        box = _draw_box(generator, pixels.shape[1], pixels.shape[0])
        part = _cut(pixels, box)
        truths = {name: resize_exactly(part, size, name) for name in KERNELS}
        rounded.append(np.abs(truths["bilinear"].round() - truths["bilinear"]))
        for name, (kernel, crop) in croppers.items():
            whole, alone = crop(content, pixels, box)
            errors[name].append((np.abs(whole - truths[kernel]), np.abs(alone - truths[kernel])))
    record = {
        name: {
            "filter": croppers[name][0],
            "from_jpeg": _summary([whole for whole, _ in pairs]),
            "resize_alone": _summary([alone for _, alone in pairs]),
        }
        for name, pairs in errors.items()
    }
    floor = _summary(rounded)
    return record | {"rounded": {"filter": "bilinear", "from_jpeg": floor, "resize_alone": floor}}


def errors_table(record: dict[str, dict[str, Any]]) -> str:
    """Lay them out for reading."""
    columns = [("from_jpeg", "mean"), ("from_jpeg", "p99")]
    columns += [("resize_alone", "mean"), ("resize_alone", "p99")]
    lines = [
        f"{'error in grey levels':28}{'from JPEG':>20}{'resize alone':>20}",
        f"{'against float64':28}" + f"{'mean':>10}{'99 %':>10}" * 2,
    ]
    for name, values in record.items():
        label = f"{name} ({values['filter']})"
        lines.append(f"{label:28}" + "".join(f"{values[key][of]:10.3f}" for key, of in columns))
    return "\n".join(lines)


def _summary(errors: list[np.ndarray]) -> dict[str, float]:
    values = np.concatenate([error.ravel() for error in errors])
    return {"mean": float(values.mean()), "p99": float(np.quantile(values, 0.99))}


def _draw_box(generator: np.random.Generator, width: int, height: int) -> Box:
    """Draw as training crops are drawn, until one fits."""
    while True:
        area = generator.uniform(*CROP_AREA) * width * height
        ratio = np.exp(generator.uniform(*np.log(ASPECT)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = generator.integers(width - w + 1), generator.integers(height - h + 1)
            return Box(int(left), int(top), w, h)


def _cut(pixels: Pixels, box: Box) -> Pixels:
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


# ---------------------------------------------------------------- the truth


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - distance, 0)


def _cubic(distance: np.ndarray, a: float = -0.5) -> np.ndarray:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


KERNELS = {"bilinear": _triangle, "bicubic": _cubic}


def _weights(length: int, size: int, kernel: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return what each source pixel adds to each target pixel: (size, length)."""
    scale = length / size
    centres = (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1)
    values = kernel(distance)
    return values / values.sum(axis=1, keepdims=True)


def resize_exactly(pixels: Pixels, size: tuple[int, int], kernel: str) -> np.ndarray:
    """Resize (h, w, 3) to float64 (H, W, 3), within 0 and 255 and not rounded."""
    rows = _weights(pixels.shape[0], size[0], KERNELS[kernel])
    columns = _weights(pixels.shape[1], size[1], KERNELS[kernel])
    values = np.tensordot(rows, pixels.astype(np.float64), axes=1)  # (H, w, 3)
    return np.clip(np.einsum("Ww,Hwc->HWc", columns, values, optimize=True), 0, 255)


# ---------------------------------------------------------------- the variants


def _ours(size: tuple[int, int]) -> Cropper:
    """Crop by the two steps of `training_crop`, with a box that is known."""

    def resized(part: torch.Tensor) -> Pixels:
        return resize(part, size).permute(1, 2, 0).numpy()

    def crop(content: bytes, pixels: Pixels, box: Box) -> Crops:
        decoded = torch.from_numpy(_cut(pixels, box).copy()).permute(2, 0, 1)
        return resized(decode(content, choose=lambda _h, _w: box)), resized(decoded)

    return crop


def _pillow(size: tuple[int, int], filter_: Image.Resampling) -> Cropper:
    """Crop as `RandomResizedCrop` does; the truth begins with the same decoder."""

    def crop(_: bytes, pixels: Pixels, box: Box) -> Crops:
        part = Image.fromarray(np.ascontiguousarray(_cut(pixels, box)))
        made = np.asarray(part.resize((size[1], size[0]), filter_))
        return made, made

    return crop


def _dali(size: tuple[int, int]) -> Cropper:
    """Crop by `decoders.image_slice`, image_random_crop with a box that is known."""
    nvidia, fn, types = (import_module(f"nvidia.dali{part}") for part in ("", ".fn", ".types"))
    pipeline = nvidia.Pipeline(1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        content, start, shape, part = (
            fn.external_source(name=name) for name in ("content", "start", "shape", "part")
        )
        decoded = fn.decoders.image_slice(content, start=start, shape=shape, output_type=types.RGB)
        pipeline.set_outputs(
            *(
                fn.resize(pixels, size=size, interp_type=types.INTERP_LINEAR)
                for pixels in (decoded, part)
            )
        )
    pipeline.build()

    def crop(content: bytes, pixels: Pixels, box: Box) -> Crops:
        values = {
            "content": np.frombuffer(content, np.uint8),
            "start": np.array([box.left, box.top], np.int32),  # x first
            "shape": np.array([box.width, box.height], np.int32),
            "part": np.ascontiguousarray(_cut(pixels, box)),
        }
        for name, value in values.items():
            pipeline.feed_input(name, [value])
        made = [np.array(batch.at(0)) for batch in pipeline.run()]
        return cast(Crops, tuple(made))

    return crop
