"""Photographs of the usual size, for a machine that has no shards at hand."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from data.demo.tiles import load_photographs
from data.shards import ImageFile, write_shard

NUM_IMAGES = 96
SIZE = (500, 375)  # ImageNet's median
_FORMATS: dict[str, dict[str, Any]] = {
    "jpg": {"format": "JPEG", "quality": 90},
    "png": {"format": "PNG"},
}
_MARGIN = 1.25  # a cut shows 1/1.25 of the photograph's width and height
SMALL = (32, 32)


def shards_or_photographs(shards: list[str], folder: Path) -> list[str]:
    """Return the shards, or where there is none, one of photographs that is made in a folder.

    Raises:
        UserError: scikit-image is not installed.
    """
    return shards or [make_photograph_shard(folder)]


def make_photograph_shard(folder: Path) -> str:
    """Write one shard of cuts of scikit-image's photographs as JPEGs, and return its path.

    Raises:
        UserError: scikit-image is not installed.
    """
    path = folder / "photographs-000000.tar"
    write_shard(path, _cuts())
    return str(path)


def make_small_shard(folder: Path, number: int) -> str:
    """Write one shard of cuts of 32 x 32 pixels as PNGs, CIFAR-10's size, and return its path.

    Raises:
        UserError: scikit-image is not installed.
    """
    path = folder / "small-000000.tar"
    write_shard(path, _cuts(number, SMALL, "png"))
    return str(path)


def _cuts(
    number: int = NUM_IMAGES, size: tuple[int, int] = SIZE, kind: str = "jpg"
) -> Iterator[ImageFile]:
    generator = np.random.default_rng(0)
    whole = (round(size[0] * _MARGIN), round(size[1] * _MARGIN))
    photographs = [ImageOps.fit(photograph, whole) for photograph in load_photographs()]
    for name in range(number):
        left = int(generator.integers(whole[0] - size[0] + 1))
        top = int(generator.integers(whole[1] - size[1] + 1))
        photograph = photographs[name % len(photographs)]
        data = BytesIO()
        cut = photograph.crop((left, top, left + size[0], top + size[1]))
        cut.save(data, **_FORMATS[kind])
        yield ImageFile(f"{name:06d}", kind, data.getvalue())
