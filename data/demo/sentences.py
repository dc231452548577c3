"""What is said of a scene: captions, and a statement that is true or false."""

from collections.abc import Iterable

import numpy as np

from data.demo.drawing import COLOURS, PLACES, Scene, Shape

_NUMBERS = {2: "two", 3: "three"}


def make_captions(scene: Scene, generator: np.random.Generator) -> tuple[str, str]:
    """Return two captions: what lies where, and how two of the shapes lie to each other."""
    shapes = _mixed(scene, generator)
    parts = [f"a {shape.name} {shape.place}" for shape in shapes]
    where = f"{', '.join(parts[:-1])} and {parts[-1]}"
    first, second, *_ = _mixed(scene, generator)
    relation = _relation(first, second, generator)
    sizes = f"the {first.size} {first.name} is {relation} the {second.size} {second.name}"
    return where, f"there are {_NUMBERS[len(shapes)]} shapes, {sizes}"


def make_statement(scene: Scene, generator: np.random.Generator, *, is_true: bool) -> str:
    """Return a statement on a colour, a place or the count of a scene's shapes.

    A false one has another colour, place or count than the true one. Both kinds have the same words
    equally often, so that who does not see the picture can only guess.
    """
    shape = _mixed(scene, generator)[0]
    kind = generator.integers(3)
    if kind == 0:
        colour = shape.colour if is_true else _another(COLOURS, shape.colour, generator)
        return f"the {shape.form} {shape.place} is {colour}"
    if kind == 1:
        place = shape.place if is_true else _another(PLACES, shape.place, generator)
        return f"the {shape.name} is {place}"
    count = len(scene.shapes)
    return f"there are {_NUMBERS[count if is_true else 5 - count]} shapes"


def _another(words: Iterable[str], own: str, generator: np.random.Generator) -> str:
    others = [word for word in words if word != own]
    return others[generator.integers(len(others))]


def _mixed(scene: Scene, generator: np.random.Generator) -> list[Shape]:
    return [scene.shapes[i] for i in generator.permutation(len(scene.shapes))]


def _relation(first: Shape, second: Shape, generator: np.random.Generator) -> str:
    """Draw one of the words that say where the first lies, as seen from the second."""
    words: list[str] = []
    if first.column != second.column:
        words.append(f"{first.column} of")
    if first.row != second.row:
        words.append("above" if first.row == "top" else "below")
    return words[generator.integers(len(words))]
