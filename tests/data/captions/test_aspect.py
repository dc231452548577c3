"""Images that keep their aspect, as ViLT's own MinMaxResize sizes them."""

import dataclasses
from pathlib import Path

import pytest
import torch

from data.batch import Request
from data.captions.aspect import Aspect
from data.captions.config import CaptionConfig
from data.captions.samples import CaptionedSamples
from data.captions.vocabulary import Vocabulary
from data.images.decoding import decode
from data.images.resize import resize
from data.index.open import open_manifest
from data.settings import UserError
from data.shards import ImageFile, write_shard
from tests.conftest import make_png

PAPERS = Aspect(384, 640, 32)
SIZES = [(24, 24), (48, 24), (24, 70), (500, 10)]  # widths and heights


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (480, 640, (384, 512)),
        (640, 480, (512, 384)),
        (500, 500, (384, 384)),
        (100, 400, (160, 640)),  # the scenes of NLVR: the long side decides
        (427, 640, (384, 576)),
        (384, 640, (384, 640)),
        (3, 900, (32, 640)),
        (20, 20, (384, 384)),
    ],
)
def test_the_papers_sizes(height: int, width: int, size: tuple[int, int]) -> None:
    assert PAPERS.size(height, width) == size


def min_max_resize(height: int, width: int) -> tuple[int, int]:
    """Return the size by ViLT's own code (vilt/transforms/utils.py)."""
    scale = 384 / min(width, height)
    if height < width:
        newh, neww = 384, scale * width
    else:
        newh, neww = scale * height, 384
    if max(newh, neww) > 640:
        scale = 640 / max(newh, neww)
        newh = newh * scale
        neww = neww * scale
    newh, neww = int(newh + 0.5), int(neww + 0.5)
    return newh // 32 * 32, neww // 32 * 32


def test_it_is_vilts_own_rule() -> None:
    sides = range(60, 1100, 23)
    sizes = {(h, w): PAPERS.size(h, w) for h in sides for w in sides if max(h, w) < 15 * min(h, w)}
    assert {key: min_max_resize(*key) for key in sizes} == sizes


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ((380, 640), r"data\.image_size=380 is not a multiple of encoder\.patch_size=32; try 352"),
        ((384, 650), r"data\.long_side=650 is not a multiple of encoder\.patch_size=32; try 640"),
    ],
)
def test_sides_are_whole_patches(sides: tuple[int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Aspect(*sides, 32)


@pytest.mark.parametrize("is_training", [False, True])
def test_images_lie_at_the_top_left_with_zeros_beside(
    tmp_path: Path, vocabulary: Vocabulary, is_training: bool
) -> None:
    images = [make_png(number, size) for number, size in enumerate(SIZES)]
    files = [
        ImageFile(f"{n}", "png", data, captions=(f"text {n}",)) for n, data in enumerate(images)
    ]
    write_shard(tmp_path / "a.tar", [*files, ImageFile("4", "png", b"none", captions=("a",))])
    manifest = open_manifest(str(tmp_path / "a.tar"), "data.shards")
    samples = CaptionedSamples(
        manifest,
        (32, 32),
        seed=0,
        vocabulary=vocabulary,
        config=dataclasses.replace(CaptionConfig(), long_side=48),
        is_training=is_training,
        patch_size=8,
    )
    batch = samples[Request(0, 0, 6)]
    assert batch.tensors["image"].shape == (6, 3, 48, 48)
    expected = {"0": (32, 32), "1": (24, 48), "2": (48, 16), "3": (8, 48)}
    slots = torch.nonzero(batch.tensors["weight"])[:, 0].tolist()
    for slot, place in zip(slots, batch.places, strict=True):
        height, width = expected[place.key]
        canvas = batch.tensors["image"][slot].clone()
        assert batch.tensors["grid"][slot].tolist() == [height // 8, width // 8]
        whole = resize(decode(images[int(place.key)]), (height, width))
        assert torch.equal(canvas[:, :height, :width], whole)
        canvas[:, :height, :width] = 0
        assert not canvas.any()
    blank = batch.tensors["weight"] == 0
    assert batch.tensors["grid"][blank].tolist() == [[1, 1]] * 2
    assert len(slots) == 4
