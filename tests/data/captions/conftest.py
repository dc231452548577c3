"""Captioned shards, and a vocabulary that was learnt from them."""

from pathlib import Path

import pytest

from data.captions.vocabulary import Vocabulary
from data.index.manifest import Manifest
from data.index.open import open_manifest
from data.shards import ImageFile, write_shard
from tests.conftest import make_png

NUM_SAMPLES = 37  # odd: the last one has no neighbour of its own
COLOURS = ("red", "green", "blue", "yellow", "black")
SHAPES = ("square", "circle", "triangle")


def caption_of(number: int) -> str:
    """Return a caption that no other of 75 numbers has."""
    colour, shape = COLOURS[number % 5], SHAPES[number // 5 % 3]
    return f"A {colour} {shape} is left of {number // 15} circles."


def make_captioned(number: int) -> ImageFile:
    lines = (caption_of(number), f"number {number}")[: 1 + number % 2]
    return ImageFile(f"{number:03d}", "png", make_png(number), captions=lines)


@pytest.fixture(scope="session")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 37 captioned images to 2 shards; every second one has two captions."""
    folder = tmp_path_factory.mktemp("captioned")
    for name, numbers in {"a": range(20), "b": range(20, NUM_SAMPLES)}.items():
        write_shard(folder / f"{name}.tar", map(make_captioned, numbers))
    return folder


@pytest.fixture(scope="session")
def manifest(captioned: Path) -> Manifest:
    return open_manifest(f"{captioned}/*.tar", "data.shards")


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    texts = [line for number in range(NUM_SAMPLES) for line in make_captioned(number).captions]
    return Vocabulary.learn(texts, 200)
