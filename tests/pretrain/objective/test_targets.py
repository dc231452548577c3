"""Targets: bin edges, the way back, exact references, and that each reads what it says."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from data.settings import UserError
from pretrain.objective.classes import ColourClasses, class_colours, colour_classes, patch_sums
from pretrain.objective.config import TARGETS, TargetConfig
from pretrain.objective.pixels import Pixels, to_images, to_patches
from pretrain.objective.targets import Target, make_target
from pretrain.objective.words import Words
from tests.visual_words import learn_from_noise

MEAN, STD = (0.4, 0.5, 0.6, 0.3), (0.2, 0.25, 0.3, 0.1)


def random_images(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def target_of(kind: str, patch: tuple[int, int], channels: int = 3, **keys: int) -> Target:
    if kind == "words":
        keys = {"num_words": 32} | keys
    target = make_target(
        TargetConfig(kind, **keys), patch, channels, MEAN[:channels], STD[:channels]
    )
    learn_from_noise(target)
    return target


# ---------------------------------------------------------------- classes


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


FITTING = [(bits, c) for bits in range(1, 9) for c in (1, 2, 3, 4) if bits * c <= 15]


@pytest.mark.parametrize(("bits", "channels"), FITTING)
def test_a_class_is_that_of_its_own_colour(bits: int, channels: int) -> None:
    colours = class_colours(bits, channels)  # (K, C)
    num_classes = len(colours)
    assert num_classes == 2 ** (channels * bits)
    assert target_of("mean_colour", (2, 3), channels, bits=bits).num_classes == num_classes
    assert colours.dtype == torch.uint8
    images = colours.view(-1, channels, 1, 1).expand(-1, -1, 2, 3).contiguous()
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


def overlap(pixel: int, cell: int, side: int, grid: int) -> Fraction:
    """How much of a pixel lies in a cell, along one side of a patch."""
    start, end = Fraction(cell * side, grid), Fraction((cell + 1) * side, grid)
    return max(Fraction(0), min(Fraction(pixel + 1), end) - max(Fraction(pixel), start))


def cell_class(patch: Tensor, row: int, column: int, grid: int, bits: int) -> int:
    """Bin a cell's mean by area, in fractions: patch (C, Ph, Pw)."""
    height, width = patch.shape[1:]
    down = [overlap(pixel, row, height, grid) for pixel in range(height)]
    across = [overlap(pixel, column, width, grid) for pixel in range(width)]
    number = 0
    for values in patch.tolist():
        total = sum(down[y] * across[x] * values[y][x] for y in range(height) for x in range(width))
        mean = total / (sum(down) * sum(across))
        number = number * 2**bits + math.floor(mean * 2**bits / 256)
    return number


@pytest.mark.parametrize(
    ("patch", "grid", "channels", "bits"),
    [
        ((14, 14), 4, 3, 3),
        ((14, 6), 4, 1, 8),
        ((6, 16), 4, 2, 5),
        ((5, 7), 3, 4, 3),
        ((8, 8), 4, 3, 1),
        ((4, 4), 4, 1, 2),
        ((7, 7), 1, 3, 5),
    ],
)
@pytest.mark.parametrize("levels", [[0, 64], list(range(256))])  # the first: means on edges
def test_cells_against_fractions(
    patch: tuple[int, int], grid: int, channels: int, bits: int, levels: list[int]
) -> None:
    chosen = random_images(2, channels, 2 * patch[0], patch[1]).long() % len(levels)
    images = torch.tensor(levels, dtype=torch.uint8)[chosen]
    found = target_of("colour_grid", patch, channels, bits=bits, grid=grid).answers(images)
    wanted = [
        [
            [cell_class(part, *divmod(cell, grid), grid, bits) for cell in range(grid**2)]
            for part in image.unfold(1, patch[0], patch[0]).permute(1, 0, 3, 2)
        ]
        for image in images
    ]
    assert found.tolist() == wanted


@pytest.mark.parametrize("channels", [1, 3])
def test_one_cell_is_the_mean_colour(channels: int) -> None:
    images = random_images(3, channels, 28, 42)
    mean_colour = target_of("mean_colour", (14, 14), channels)
    one_cell = target_of("colour_grid", (14, 14), channels, grid=1)
    wanted = colour_classes(images, (14, 14), 3)[..., None]
    assert torch.equal(mean_colour.answers(images), wanted)
    assert torch.equal(one_cell.answers(images), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_colours_loss_is_cross_entropy_to_the_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 7, 512).to(dtype).requires_grad_()
    classes = torch.randint(512, (4, 7))
    plain = F.cross_entropy(logits.flatten(0, 1).float(), classes.flatten(), reduction="none")
    plain = plain.view(classes.shape)
    (wanted,) = torch.autograd.grad(plain.mean(1).sum(), logits)
    losses = target_of("mean_colour", (4, 4)).losses(logits, classes[..., None])
    (found,) = torch.autograd.grad(losses.mean(1).sum(), logits)
    assert torch.equal(losses, plain)
    assert torch.equal(found, wanted)


def test_the_grids_loss_is_the_mean_over_cells() -> None:
    torch.manual_seed(0)
    target = target_of("colour_grid", (6, 6), 2, bits=2, grid=3)
    outputs, answers = torch.randn(2, 5, 9 * 16), torch.randint(16, (2, 5, 9))
    by_cell = [
        F.cross_entropy(logits.flatten(0, 1), answers[..., cell].flatten(), reduction="none")
        for cell, logits in enumerate(outputs.split(16, dim=-1))
    ]
    torch.testing.assert_close(
        target.losses(outputs, answers), torch.stack(by_cell).mean(0).view(2, 5)
    )
    likeliest = [logits.argmax(-1) for logits in outputs.split(16, dim=-1)]
    assert torch.equal(target.guesses(outputs), torch.stack(likeliest, -1))
    half_right = torch.where(torch.arange(9) < 3, answers, (answers + 1) % 16)
    assert torch.equal(target.scores(half_right, answers), torch.full((2, 5), 1 / 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_of_equally_likely_classes_the_first_is_guessed(dtype: torch.dtype) -> None:
    target = ColourClasses((4, 4), channels=1, bits=4, grid=2)
    outputs = torch.randint(-2, 3, (3, 5, 64), generator=torch.Generator().manual_seed(0))
    ends = outputs.view(3, 5, 4, 16).tolist()
    first = [[[cell.index(max(cell)) for cell in patch] for patch in image] for image in ends]
    assert target.guesses(outputs.to(dtype)).tolist() == first


@pytest.mark.parametrize("patch", [(8, 8), (14, 14), (10, 9)])
def test_cells_are_painted_where_they_are(patch: tuple[int, int]) -> None:
    target = target_of("colour_grid", patch)
    answers = random_images(1, 2, 16).long() * 2
    painted = target.colours(answers, torch.empty(0), torch.empty(0))
    assert painted.shape == (1, 2, 3, *patch)
    colours = class_colours(3)[answers]  # (1, 2, G, 3)
    for cell in range(16):
        row, column = divmod(cell, 4)
        inside = painted[..., (2 * row + 1) * patch[0] // 8, (2 * column + 1) * patch[1] // 8]
        assert torch.equal(inside, colours[:, :, cell])


# ---------------------------------------------------------------- pixels


def test_patches_and_back() -> None:
    images = random_images(2, 3, 12, 10)
    patches = to_patches(images, (4, 5))
    assert patches.shape == (2, 6, 3, 4, 5)
    assert torch.equal(patches[1, 3], images[1, :, 4:8, 5:10])  # row 1, column 1
    assert torch.equal(to_images(patches, (3, 2)), images)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("patch", [(4, 4), (2, 7), (1, 1)])
def test_true_pixels_have_no_error_and_are_the_picture(
    channels: int, patch: tuple[int, int]
) -> None:
    images = random_images(2, channels, 4 * patch[0], 3 * patch[1])
    target = target_of("pixels", patch, channels)
    answers = target.answers(images)
    assert answers.dtype == torch.float32
    assert answers.shape == (2, 12, target.num_outputs)
    assert target.losses(answers, answers).eq(0).all()
    assert target.scores(target.guesses(answers), answers).eq(0).all()
    nothing = torch.zeros(2, 12, dtype=torch.bool)
    painted = target.colours(target.guesses(answers), torch.zeros_like(images), nothing)
    assert torch.equal(to_images(painted, (4, 3)), images)


def test_pixels_are_what_the_encoder_sees() -> None:
    images = random_images(2, 3, 8, 8)
    values = target_of("pixels", (4, 4)).answers(images).unflatten(2, (3, 4, 4))
    mean, std = (torch.tensor(v[:3]).view(3, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(to_images(values, (2, 2)), (images / 255 - mean) / std)


def test_normalised_pixels_are_those_of_maes_code() -> None:
    images = random_images(2, 3, 16, 16)
    found = target_of("normalised_pixels", (8, 8)).answers(images)
    torch.testing.assert_close(found.mean(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.var(-1), torch.ones(2, 4), atol=1e-4, rtol=0)
    # patchify and norm_pix_loss of arXiv:2111.06377's code, in float64
    mean, std = (torch.tensor(v[:3]).view(3, 1, 1).double() for v in (MEAN, STD))
    values = ((images / 255.0 - mean) / std).reshape(2, 3, 2, 8, 2, 8)
    values = torch.einsum("nchpwq->nhwpqc", values).reshape(2, 4, 8**2 * 3)
    values = (values - values.mean(-1, keepdim=True)) / (values.var(-1, keepdim=True) + 1e-6).sqrt()
    wanted = values.unflatten(2, (64, 3)).transpose(2, 3).flatten(2)  # channels first
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=0)


def test_a_plain_patch_is_all_zeros() -> None:
    plain = torch.full((1, 3, 4, 4), 77, dtype=torch.uint8)
    target = make_target(TargetConfig("normalised_pixels"), (4, 4), 3, (0.5,) * 3, (0.2,) * 3)
    assert target.answers(plain).abs().max() < 1e-3


def test_the_mean_squared_error_of_pixels() -> None:
    target = target_of("pixels", (2, 2), 1)
    outputs = torch.tensor([[[1.0, 2, 3, 4], [0, 0, 0, 0]]])
    answers = torch.tensor([[[1.0, 2, 3, 2], [1, 1, -1, -1]]])
    assert target.losses(outputs, answers).tolist() == [[1, 1]]
    assert target.scores(target.guesses(outputs), answers).tolist() == [[1, 1]]


def test_deviations_follow_the_model_and_are_not_saved() -> None:
    target = Pixels((2, 2), (0.5,), (0.2,))
    assert not target.state_dict()
    assert not list(target.parameters())
    assert target.to("meta").mean.is_meta
    assert target.std.is_meta


def test_normalised_pixels_take_brightness_from_visible_patches() -> None:
    images = random_images(2, 3, 8, 8)
    target = target_of("normalised_pixels", (4, 4))
    is_visible = torch.tensor([[True, True, False, True], [False, False, False, False]])
    guesses = torch.randn(2, 4, 48, generator=torch.Generator().manual_seed(0))
    painted = target.colours(guesses, images, is_visible)
    other = to_images(to_patches(images, (4, 4)) * is_visible[..., None, None, None], (2, 2))
    assert torch.equal(target.colours(guesses, other, is_visible), painted)
    # a flat guess has the mean of the visible values
    flat = target.colours(torch.zeros(2, 4, 48), images, is_visible)[0, 0]
    values = target_of("pixels", (4, 4)).answers(images)[0, is_visible[0]].mean()
    wanted = (values * torch.tensor(STD[:3]) + torch.tensor(MEAN[:3])) * 255
    assert torch.equal(flat, wanted.round().byte().view(3, 1, 1).expand(3, 4, 4))
    assert painted[1].float().std() > 0  # no visible patch: the data's own


# ---------------------------------------------------------------- every kind


@st.composite
def cases(draw: st.DrawFn) -> tuple[Target, Tensor]:
    """Draw a target of any kind, and images for it."""
    kind = draw(st.sampled_from(TARGETS))
    patch = (draw(st.integers(2, 9)), draw(st.integers(2, 9)))
    channels = draw(st.integers(1, 4))
    keys: dict[str, int] = {}
    if kind in ("mean_colour", "colour_grid"):
        keys["bits"] = draw(st.integers(1, min(8, 15 // channels)))
    if kind == "colour_grid":
        keys["grid"] = draw(st.integers(1, min(patch)))
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    images = random_images(
        3, channels, rows * patch[0], columns * patch[1], seed=draw(st.integers(0, 99))
    )
    return target_of(kind, patch, channels, **keys), images


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases())
def test_forms_ranges_and_batch_order(case: tuple[Target, Tensor]) -> None:
    target, images = case
    patch: Any = target.patch if isinstance(target, ColourClasses | Pixels | Words) else None
    num_patches = images.shape[2] // patch[0] * (images.shape[3] // patch[1])
    answers = target.answers(images)
    assert answers.shape[:2] == (3, num_patches)
    if target.num_classes is None:
        assert answers.dtype == torch.float32
        assert answers.shape[2] == target.num_outputs == images[0].numel() // num_patches
    else:
        assert answers.dtype == torch.int64
        assert answers.shape[2] * target.num_classes == target.num_outputs
        assert answers.min() >= 0
        assert answers.max() < target.num_classes
    outputs = torch.randn(3, num_patches, target.num_outputs)
    guesses = target.guesses(outputs)
    assert (guesses.shape, guesses.dtype) == (answers.shape, answers.dtype)
    losses, scores = target.losses(outputs.bfloat16(), answers), target.scores(guesses, answers)
    for values in (losses, scores):
        assert (values.shape, values.dtype) == ((3, num_patches), torch.float32)
        assert values.min() >= 0
    is_visible = torch.arange(num_patches).expand(3, -1) % 2 == 0
    painted = target.colours(guesses, images, is_visible)
    assert painted.dtype == torch.uint8
    assert painted.shape == (3, num_patches, images.shape[1], *patch)
    order = [2, 0, 1]
    assert torch.equal(target.answers(images[order]), answers[order])
    torch.testing.assert_close(
        target.losses(outputs[order].bfloat16(), answers[order]), losses[order]
    )
    assert torch.equal(
        target.colours(guesses[order], images[order], is_visible[order]), painted[order]
    )


@pytest.mark.parametrize("kind", TARGETS)
def test_autocast_changes_nothing(kind: str) -> None:
    torch.manual_seed(0)
    target, images = target_of(kind, (8, 8)), random_images(2, 3, 16, 16)
    outputs = torch.randn(2, 4, target.num_outputs).bfloat16()
    answers = target.answers(images)
    losses = target.losses(outputs, answers)
    with torch.autocast("cpu", torch.bfloat16):
        again = target.answers(images)
        assert again.dtype == answers.dtype
        assert torch.equal(again, answers)
        assert torch.equal(target.losses(outputs, again), losses)
    assert torch.equal(target.losses(outputs.float(), answers), losses)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARGETS)
def test_compiles_to_one_graph(kind: str) -> None:
    target, images = target_of(kind, (14, 14)), random_images(2, 3, 28, 28)
    outputs = torch.randn(2, 4, target.num_outputs)

    def loss(images: Tensor, outputs: Tensor) -> Tensor:
        return target.losses(outputs, target.answers(images))

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images, outputs), loss(images, outputs))


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "colour"}, "target.kind=colour is none of mean_colour, colour_grid, pixels"),
        ({"bits": 9}, "target.bits=9 is not in 1..8; the paper has 3"),
        ({"bits": 0}, "target.bits=0 is not in 1..8"),
        ({"kind": "colour_grid", "grid": 0}, "target.grid=0 must be above 0"),
        (
            {"kind": "pixels", "bits": 4},
            "target.bits=4 has no effect with target.kind=pixels; leave it out, or set "
            "target.kind=colour_grid",
        ),
        ({"grid": 2}, "target.grid=2 has no effect with target.kind=mean_colour; leave it out"),
        ({"kind": "normalised_pixels", "grid": 2}, "target.grid=2 has no effect"),
        ({"num_words": 99}, "target.num_words=99 has no effect with target.kind=mean_colour"),
        ({"kind": "words", "num_words": 1}, "target.num_words=1 must be above 1; try 512"),
        ({"kind": "words", "bits": 2}, "target.bits=2 has no effect with target.kind=words"),
    ],
)
def test_keys_that_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        TargetConfig(**keys)


@pytest.mark.parametrize(
    ("keys", "patch", "channels", "message"),
    [
        (
            {},
            (16, 16),
            6,
            "target.bits=3 with data.channels=6 would be 262144 classes, over 32768; "
            "lower target.bits, or set target.kind=pixels",
        ),
        (
            {"kind": "colour_grid", "bits": 1},
            (16, 16),
            16,
            "target.bits=1 with data.channels=16 would be 65536 classes, over 32768; "
            "set target.kind=pixels",
        ),
        (
            {"kind": "colour_grid"},
            (16, 2),
            3,
            "target.grid=4 is more than a patch's 2 pixels a side; lower it",
        ),
        (
            {"kind": "normalised_pixels"},
            (1, 1),
            1,
            "target.kind=normalised_pixels needs two values a patch or more; "
            "set target.kind=pixels",
        ),
    ],
)
def test_targets_that_cannot_be(
    keys: dict[str, Any], patch: tuple[int, int], channels: int, message: str
) -> None:
    with pytest.raises(UserError) as error:
        make_target(TargetConfig(**keys), patch, channels, (0.5,) * channels, (0.2,) * channels)
    assert str(error.value) == message
