"""Small shards of images with masks, whose colours tell the classes."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

NUM_CLASSES = 3
IGNORED = 9  # in these shards
COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])


def make_mask(number: int, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    """Make a mask (h, w) of four stripes of classes; some pixels are ignored."""
    generator = np.random.default_rng(number)
    stripes = generator.integers(0, NUM_CLASSES, (2, 2))
    mask = stripes.repeat(size[0] // 2, 0).repeat(size[1] // 2, 1).astype(np.uint8)
    mask[generator.random(size) < 0.1] = IGNORED
    return mask


def make_image(mask: np.ndarray, number: int) -> np.ndarray:
    """Make an image (h, w, 3) in the colours of a mask's classes, with noise."""
    generator = np.random.default_rng(number)
    colours = COLOURS[np.where(mask == IGNORED, 0, mask)]
    return np.clip(colours + generator.normal(0, 20, colours.shape), 0, 255).astype(np.uint8)


def as_png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    """Encode pixels; in mode P with a palette."""
    content, image = io.BytesIO(), Image.fromarray(pixels)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    image.save(content, "PNG")
    return content.getvalue()


def make_members(number: int) -> dict[str, bytes]:
    """Make a sample: its members by extension."""
    mask = make_mask(number)
    return {"png": as_png(make_image(mask, number)), "seg.png": as_png(mask)}


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> Path:
    """Write samples, by key and members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def write_segmented(path: Path, numbers: Iterable[int]) -> Path:
    """Write a shard of images with masks."""
    return write_tar(path, ((f"{number:03d}", make_members(number)) for number in numbers))
