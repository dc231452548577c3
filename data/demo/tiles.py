"""The demo's data: small tiles of the photographs that scikit-image ships in its wheel.

A tile's class is its photograph. Training and validation tiles are cut from disjoint strips of it,
so that no pixel is in both.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data.demo.making import as_png, make_whole, write_shards
from data.settings import UserError
from data.shards import ImageFile

FOLDER = Path("shards/demo")  # below the working folder
TILE = 48  # pixels a side
NUM_TRAIN, NUM_VAL = 4000, 800  # tiles in all, equally many a photograph
PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
_NUM_TRAIN_SHARDS = 4
_CONTRAST = 16  # of 255, at least in a channel: black corners are all one image
_CROP = (40, 120)  # pixels a side, before the resize to TILE
_VAL_PART = 0.3  # of the photograph's width, at its left: in each of them it looks like the whole
_GAP = 8  # columns between the strips
_SEED = 0


@dataclass(frozen=True)
class Tile:
    """Where a tile is cut: photograph `label`, a square of `side` pixels at (`left`, `top`)."""

    label: int
    left: int
    top: int
    side: int

    def cut(self, photographs: list[Image.Image]) -> Image.Image:
        """Return its pixels, in the photograph's own size."""
        box = (self.left, self.top, self.left + self.side, self.top + self.side)
        return photographs[self.label].crop(box)


def demo_shards_exist(folder: Path) -> bool:
    """Tell whether `make_demo_shards` has made this folder; it makes all of it or nothing."""
    return (folder / "classes.txt").exists() and (folder / "val-000000.tar").exists()


def make_demo_shards(folder: Path = FOLDER) -> None:
    """Make the demo's shards, classes.txt and index, whole or not at all; those there are kept.

    The bytes are the same each time: 4 training shards with 4,000 tiles, 1 validation shard with
    800, both with an equal number of each photograph.

    Raises:
        UserError: If scikit-image is missing, or the folder exists and holds something else.
    """
    if not demo_shards_exist(folder):
        make_whole(folder, _write)


def photograph_files() -> list[Path]:
    """Return where the installed package has the photographs, without importing it.

    Raises:
        UserError: scikit-image is not installed.
    """
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise UserError(
            "the demo's photographs come with scikit-image, which is not installed; "
            "run pip install -e '.[demo]' here, or name your own data.shards"
        )
    return [Path(package.origin).parent / "data" / name for name in PHOTOGRAPHS]


def load_photographs() -> list[Image.Image]:
    """Load the photographs."""
    return [Image.open(path).convert("RGB") for path in photograph_files()]


def _write(folder: Path) -> None:
    photographs = load_photographs()
    generator = np.random.default_rng(_SEED)
    train = _draw_tiles(photographs, NUM_TRAIN, generator, is_val=False)
    val = _draw_tiles(photographs, NUM_VAL, generator, is_val=True)
    plan = {f"train-{i:06d}.tar": train[i::_NUM_TRAIN_SHARDS] for i in range(_NUM_TRAIN_SHARDS)}
    plan["val-000000.tar"] = val
    write_shards(folder, plan, partial(_samples, photographs), "tile")
    names = [f"{Path(name).stem}\n" for name in PHOTOGRAPHS]
    (folder / "classes.txt").write_text("".join(names))


def strip(width: int, *, is_val: bool) -> tuple[int, int]:
    """Return the columns [start, end) of a photograph that a split's tiles are cut from."""
    border = round(width * _VAL_PART)
    return (0, border) if is_val else (border + _GAP, width)


def _draw_tiles(
    photographs: list[Image.Image], number: int, generator: np.random.Generator, *, is_val: bool
) -> list[Tile]:
    """Draw tiles in a mixed order, equally many of each photograph."""
    labels = generator.permutation(np.arange(number) % len(photographs))
    return [_draw_tile(photographs, int(label), generator, is_val=is_val) for label in labels]


def _draw_tile(
    photographs: list[Image.Image], label: int, generator: np.random.Generator, *, is_val: bool
) -> Tile:
    width, height = photographs[label].size
    start, end = strip(width, is_val=is_val)
    while True:
        side = int(generator.integers(_CROP[0], _CROP[1] + 1))
        left = int(generator.integers(start, end - side + 1))
        top = int(generator.integers(0, height - side + 1))
        tile = Tile(label, left, top, side)
        if np.ptp(np.asarray(tile.cut(photographs)), axis=(0, 1)).max() >= _CONTRAST:
            return tile


def _samples(photographs: list[Image.Image], tiles: Sequence[Tile]) -> Iterator[ImageFile]:
    for number, tile in enumerate(tiles):
        # Crop first: resize with a box would take pixels from around it.
        image = tile.cut(photographs).resize((TILE, TILE), Image.Resampling.BICUBIC)
        yield ImageFile(f"{number:08d}", "png", as_png(image), tile.label)
