"""Scenes of two or three simple shapes: what is in them, and their pictures.

A scene is four quarters, each empty or with one shape. No two shapes of a scene have both colour
and form in common, so that `the red circle` is one shape.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE = 48  # pixels of a picture
COLOURS = {
    "red": (215, 45, 45),
    "green": (45, 165, 70),
    "blue": (50, 85, 215),
    "yellow": (235, 215, 60),
    "black": (25, 25, 25),
    "white": (245, 245, 245),
}
FORMS = ("circle", "square", "triangle", "cross")
SIZES = {"small": 12, "large": 19}  # pixels a side
ROWS, COLUMNS = ("top", "bottom"), ("left", "right")
PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
_NAMES = [(colour, form) for colour in COLOURS for form in FORMS]
_QUARTER = SIDE // 2
_SHIFT = 2  # pixels, at most, between the middles of a shape and of its quarter
_TINT = 8  # of 255, at most, between a colour and its value above
_GREY = (110, 150)  # of the background
_SLOPE = 15  # of 255, at most, from one side of the background to the other
_FINER = 4  # a picture is drawn so many times larger, for smooth edges


@dataclass(frozen=True)
class Shape:
    """A shape of a scene, in words: of `COLOURS`, `FORMS`, `SIZES`, `ROWS` and `COLUMNS`."""

    colour: str
    form: str
    size: str
    row: str
    column: str

    @property
    def name(self) -> str:
        """Its colour and form: `red circle`."""
        return f"{self.colour} {self.form}"

    @property
    def place(self) -> str:
        """Its quarter: `top left`."""
        return f"{self.row} {self.column}"


@dataclass(frozen=True)
class Scene:
    """The shapes of a picture, and its number among the scenes."""

    number: int
    shapes: tuple[Shape, ...]


def draw_scenes(count: int, seed: int) -> list[Scene]:
    """Draw scenes that differ in more than sizes; two and three shapes take turns."""
    generator = np.random.default_rng(seed)
    scenes: dict[frozenset[str], Scene] = {}
    while len(scenes) < count:
        number = len(scenes)
        shapes = _draw_shapes(2 + number % 2, generator)
        kind = frozenset(f"{shape.name} {shape.place}" for shape in shapes)
        scenes.setdefault(kind, Scene(number, shapes))
    return list(scenes.values())


def _draw_shapes(count: int, generator: np.random.Generator) -> tuple[Shape, ...]:
    names = generator.permutation(len(_NAMES))[:count]
    quarters = np.sort(generator.permutation(4)[:count])
    sizes = generator.integers(len(SIZES), size=count)
    shapes: list[Shape] = []
    for name, size, quarter in zip(names, sizes, quarters, strict=True):
        colour, form = _NAMES[name]
        row, column = divmod(int(quarter), 2)
        shapes.append(Shape(colour, form, tuple(SIZES)[size], ROWS[row], COLUMNS[column]))
    return tuple(shapes)


def paint(scene: Scene, generator: np.random.Generator) -> Image.Image:
    """Paint a scene on grey: an RGB picture of `SIDE` pixels a side."""
    picture = _background(generator)
    draw = ImageDraw.Draw(picture)
    for shape in scene.shapes:
        _paint_shape(draw, shape, generator)
    return picture.reduce(_FINER)


def _background(generator: np.random.Generator) -> Image.Image:
    corner = generator.uniform(*_GREY) + generator.uniform(-_TINT, _TINT, 3)
    down, across = generator.uniform(-_SLOPE, _SLOPE, 2)
    way = np.linspace(0, 1, SIDE)
    pixels = corner + (down * way[:, None] + across * way)[..., None]  # (H, W, 3)
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    return picture.resize((SIDE * _FINER, SIDE * _FINER), Image.Resampling.NEAREST)


def _paint_shape(draw: ImageDraw.ImageDraw, shape: Shape, generator: np.random.Generator) -> None:
    quarter = np.array([COLUMNS.index(shape.column), ROWS.index(shape.row)])
    shift = generator.uniform(-_SHIFT, _SHIFT, 2)
    x, y = ((quarter + 0.5) * _QUARTER + shift) * _FINER
    tint = COLOURS[shape.colour] + generator.uniform(-_TINT, _TINT, 3)
    red, green, blue = (int(value) for value in tint.round().clip(0, 255))
    half = SIZES[shape.size] * _FINER / 2
    _draw_form(draw, shape.form, (x, y), half, (red, green, blue))


def _draw_form(
    draw: ImageDraw.ImageDraw,
    form: str,
    middle: tuple[float, float],
    half: float,
    colour: tuple[int, int, int],
) -> None:
    x, y = middle
    left, right, top, bottom, bar = x - half, x + half, y - half, y + half, half / 3
    if form == "circle":
        draw.ellipse((left, top, right, bottom), colour)
    elif form == "square":
        draw.rectangle((left, top, right, bottom), colour)
    elif form == "triangle":
        draw.polygon([(left, bottom), (x, top), (right, bottom)], colour)
    else:
        draw.rectangle((left, y - bar, right, y + bar), colour)
        draw.rectangle((x - bar, top, x + bar, bottom), colour)
