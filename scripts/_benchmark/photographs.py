"""Photographs of the usual size, for a machine that has no shards at hand."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ImageOps

from data.demo.tiles import load_photographs
from data.shards import ImageFile, write_shard

NUM_IMAGES = 96
SIZE = (500, 375)  # ImageNet's median
_MARGIN = 1.25  # a cut shows 1/1.25 of the photograph's width and height
_QUALITY = 90


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


def _cuts() -> Iterator[ImageFile]:
    generator = np.random.default_rng(0)
    whole = (round(SIZE[0] * _MARGIN), round(SIZE[1] * _MARGIN))
    photographs = [ImageOps.fit(photograph, whole) for photograph in load_photographs()]
    for number in range(NUM_IMAGES):
        left = int(generator.integers(whole[0] - SIZE[0] + 1))
        top = int(generator.integers(whole[1] - SIZE[1] + 1))
        photograph = photographs[number % len(photographs)]
        data = BytesIO()
        cut = photograph.crop((left, top, left + SIZE[0], top + SIZE[1]))
        cut.save(data, "JPEG", quality=_QUALITY)
        yield ImageFile(f"{number:06d}", "jpg", data.getvalue())
