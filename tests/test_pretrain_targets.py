"""Colour classes: bin edges, the way back, and a plain reference."""

import pytest
import torch
from torch import Tensor

from pretrain.targets import TargetConfig, class_colours, colour_classes, patch_sums


def constant(*colour: float, side: int = 4) -> Tensor:
    """Make one patch whose channels have these exact means, of quarters of a level."""
    patch = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    for channel, mean in enumerate(colour):
        whole, part = divmod(mean * side * side, side * side)
        values = torch.full((side * side,), int(whole))
        values[: int(part)] += 1
        patch[0, channel] = values.view(side, side)
    return patch


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (0, 0),
        (31, 0),
        (31.9375, 0),  # 31 and 15/16
        (32, 1),  # the edge belongs to the upper bin
        (32.0625, 1),
        (63.9375, 1),
        (64, 2),
        (127.9375, 3),
        (128, 4),
        (223.9375, 6),
        (224, 7),
        (255, 7),
    ],
)
def test_bins_of_three_bits(mean: float, expected: int) -> None:
    found = [int(colour_classes(constant(*c), (4, 4), bits=3)) for c in _one_channel(mean)]
    assert found == [expected * 64, expected * 8, expected]


def _one_channel(mean: float) -> list[tuple[float, float, float]]:
    return [(mean, 0, 0), (0, mean, 0), (0, 0, mean)]


@pytest.mark.parametrize("bits", range(1, 6))
def test_a_class_is_that_of_its_own_colour(bits: int) -> None:
    colours = class_colours(bits)  # (K, 3)
    num_classes = TargetConfig(bits).num_classes
    assert num_classes == 2 ** (3 * bits) == len(colours)
    assert colours.dtype == torch.uint8
    images = colours.view(-1, 3, 1, 1).expand(-1, 3, 2, 3).contiguous()
    classes = colour_classes(images, (2, 3), bits)
    assert torch.equal(classes, torch.arange(num_classes)[:, None])


def test_the_colours_of_one_bit() -> None:
    assert class_colours(1).tolist() == [
        [r, g, b] for r in (64, 192) for g in (64, 192) for b in (64, 192)
    ]


def reference(image: Tensor, patch: tuple[int, int], bits: int) -> list[int]:
    """Bin the mean of each patch in floats, patch by patch: exact, since all sums are."""
    classes: list[int] = []
    height, width = image.shape[1:]
    for top in range(0, height, patch[0]):
        for left in range(0, width, patch[1]):
            pixels = image[:, top : top + patch[0], left : left + patch[1]].double()
            bins = [int(float(mean) // 2 ** (8 - bits)) for mean in pixels.mean(dim=(1, 2))]
            classes.append((bins[0] * 2**bits + bins[1]) * 2**bits + bins[2])
    return classes


@pytest.mark.parametrize("bits", [1, 3, 5])
@pytest.mark.parametrize(
    ("size", "patch"),
    [((16, 16), (4, 4)), ((8, 24), (8, 4)), ((32, 16), (2, 16)), ((5, 5), (1, 1))],
)
def test_classes_against_a_loop(size: tuple[int, int], patch: tuple[int, int], bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, *size), generator=generator).to(torch.uint8)
    classes = colour_classes(images, patch, bits)
    assert classes.dtype == torch.int64
    assert classes.tolist() == [reference(image, patch, bits) for image in images]


def test_patches_come_row_by_row() -> None:
    image = torch.arange(6, dtype=torch.uint8).repeat_interleave(2).view(1, 1, 3, 4)
    sums = patch_sums(image.expand(1, 3, 3, 4).contiguous(), (1, 2))
    assert sums[0, :, 0].tolist() == [0, 2, 4, 6, 8, 10]


def test_a_white_patch_of_any_size_is_the_last_class() -> None:
    for side in (1, 16, 224):
        white = torch.full((1, 3, side, side), 255, dtype=torch.uint8)
        assert int(colour_classes(white, (side, side), 3)) == 511
        assert patch_sums(white, (side, side)).tolist() == [[[255 * side * side] * 3]]
