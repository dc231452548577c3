"""Which patches are corrupted, how many of each kind, and what becomes of them."""

import hashlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.settings import UserError
from pretrain.encoder.blocks import select
from pretrain.objective.config import CORRUPTIONS, CorruptionConfig
from pretrain.objective.corruption import (
    NUM_BLOCKS,
    Corruption,
    Counts,
    apply,
    apply_to_pixels,
    blocks,
    count,
    draw,
)

PAPER = CorruptionConfig()
GRID = (4, 5)
NUM_PATCHES = 20
CONFIG = CorruptionConfig(ratio=0.5, mask_ratio=0.5, random_ratio=0.3)
COUNTS = Counts(mask=5, random=3, kept=2)  # of CONFIG, in GRID

Grid = tuple[int, int]
grids = st.tuples(st.integers(1, 9), st.integers(1, 9)).filter(lambda grid: max(grid) > 2)
ratios = st.floats(0.15, 0.75)


def draw_many(
    num_images: int = 50, grid: Grid = GRID, config: CorruptionConfig = CONFIG
) -> Corruption:
    return draw(torch.arange(num_images) * 7_919, grid, config)


def kinds(corruption: Corruption) -> tuple[Tensor, ...]:
    return corruption.patches.split(list(corruption.counts), dim=1)


def chi_squared(places: Tensor, num_patches: int) -> float:
    """Return how far the places are from equally frequent ones."""
    histogram = places.flatten().bincount(minlength=num_patches).double()
    expected = places.numel() / num_patches
    return float(((histogram - expected) ** 2 / expected).sum())


def distances(corruption: Corruption, grid: Grid) -> Tensor:
    """Return each corrupted patch's distance to the nearest that is not: (B, M)."""
    places = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).double()
    between = torch.cdist(places, places)[corruption.patches]  # (B, M, N)
    return between.masked_fill(corruption.is_corrupted[:, None], torch.inf).amin(2)


# ---------------------------------------------------------------- how many


@pytest.mark.parametrize(
    ("num_patches", "expected"),
    [
        (196, Counts(78, 10, 10)),  # 98: 78.4, 9.8, 9.8
        (64, Counts(26, 3, 3)),  # 32: 25.6, 3.2, 3.2
        (16, Counts(6, 1, 1)),  # 8: 6.4, 0.8, 0.8
        (20, Counts(8, 1, 1)),  # 10 exactly
        (10, Counts(4, 1, 0)),  # 5: 4, 0.5, 0.5; a tie favours random
        (2, Counts(1, 0, 0)),
        (1_024, Counts(410, 51, 51)),  # 512: 409.6, 51.2, 51.2
    ],
)
def test_counts_of_the_paper(num_patches: int, expected: Counts) -> None:
    assert count(PAPER, num_patches) == expected


@given(
    st.floats(0.05, 1),
    st.integers(0, 100).flatmap(lambda a: st.tuples(st.just(a), st.integers(0, 100 - a))),
    st.integers(12, 400),
)
def test_counts_are_exact(ratio: float, shares: tuple[int, int], num_patches: int) -> None:
    mask_ratio, random_ratio = shares[0] / 100, shares[1] / 100
    counts = count(CorruptionConfig("random", ratio, mask_ratio, random_ratio), num_patches)
    total = round(ratio * num_patches)
    assert sum(counts) == total
    ratios = (mask_ratio, random_ratio, 1 - mask_ratio - random_ratio)
    for number, share in zip(counts, ratios, strict=True):
        assert abs(number - share * total) < 1 + 1e-6
        assert number == 0 or share > 1e-9  # a kind that is not asked for does not occur


def test_counts_that_cannot_be() -> None:
    with pytest.raises(UserError, match=r"corruption.ratio=0.01 corrupts none of 16 patches"):
        count(CorruptionConfig(ratio=0.01), 16)
    with pytest.raises(UserError, match=r"random_ratio needs a second patch to take"):
        count(CorruptionConfig(ratio=1, mask_ratio=0, random_ratio=1), 1)
    with pytest.raises(UserError, match=r"min_block=99 is over the 98 of 196 .* lower it to 98"):
        count(CorruptionConfig("block", min_block=99), 196)
    assert sum(count(CorruptionConfig("block"), 16)) == 8  # the default is cut to what there is


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kind": "blocks"}, "corruption.kind=blocks is not one of random, block, coarse"),
        ({"kind": "coarse", "unit": 0}, "corruption.unit=0 is under 1 patch; the default is 2"),
        ({"kind": "block", "min_block": 0}, "min_block=0 is under 1 patch; the default is 16"),
        ({"unit": 4}, "corruption.unit=4 is of corruption.kind=coarse, and .*kind=random would"),
        ({"kind": "block", "unit": 4}, "kind=block would ignore it; set corruption.kind=coarse"),
        ({"kind": "coarse", "min_block": 9}, "min_block=9 is of corruption.kind=block, and"),
        ({"predicted_ratio": 0}, "predicted_ratio=0 leaves nothing to predict; the paper has 1"),
        ({"predicted_ratio": 1.5}, "corruption.predicted_ratio=1.5 is not in 0..1"),
    ],
)
def test_settings_that_cannot_be(setting: dict[str, str | float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CorruptionConfig(**setting)  # pyright: ignore[reportArgumentType]


def test_one_square_for_all_patches_is_refused() -> None:
    keys = torch.arange(2)
    with pytest.raises(UserError, match=r"unit=4 makes one square of all 4x3 .* below 4"):
        draw(keys, (4, 3), CorruptionConfig("coarse", unit=4))
    assert draw(keys, (5, 3), CorruptionConfig("coarse", unit=4)).patches.shape == (2, 8)


# ---------------------------------------------------------------- which


@settings(max_examples=40)
@given(st.sampled_from(CORRUPTIONS), grids, ratios, st.integers(-(2**63), 2**63 - 9))
def test_each_kind_is_exact_and_consistent(kind: str, grid: Grid, ratio: float, key: int) -> None:
    num_patches = grid[0] * grid[1]
    total = round(ratio * num_patches)
    if not total:
        return
    config = CorruptionConfig(kind, ratio)
    c = draw(torch.arange(8) + key, grid, config)
    assert c.counts == count(config, num_patches)
    assert c.patches.shape == (8, total)
    visible = c.visible
    assert visible.shape == (8, num_patches - c.counts.mask)
    for image, patches in enumerate(c.patches.tolist()):
        assert len(set(patches)) == total
        assert set(c.is_corrupted[image].nonzero().flatten().tolist()) == set(patches)
        masked = set(patches[: c.counts.mask])
        assert visible[image].tolist() == sorted(set(range(num_patches)) - masked)
    assert c.is_corrupted.shape == (8, num_patches)
    assert ((c.source >= 0) & (c.source < num_patches)).all()
    assert not (c.source == kinds(c)[1]).any()


@settings(max_examples=40)
@given(st.sampled_from(CORRUPTIONS), ratios, st.floats(0.01, 1), st.integers(-(2**63), 2**63 - 9))
def test_some_of_each_kind_are_predicted(
    kind: str, ratio: float, predicted_ratio: float, key: int
) -> None:
    config = CorruptionConfig(kind, ratio, min_block=1 if kind == "block" else 16)
    everything = draw(torch.arange(8) + key, GRID, config)
    c = draw(torch.arange(8) + key, GRID, replace(config, predicted_ratio=predicted_ratio))
    assert torch.equal(c.patches, everything.patches)
    assert torch.equal(everything.predicted, everything.patches)
    total = sum(c.counts)
    assert c.predicted.shape == (8, max(1, round(predicted_ratio * total)))
    parts = c.predicted.split(list(c.num_predicted), dim=1)
    for part, whole in zip(parts, kinds(c), strict=True):
        assert torch.equal(part, whole[:, : part.shape[1]])
        assert abs(part.shape[1] - c.predicted.shape[1] * whole.shape[1] / total) < 1


@settings(max_examples=40)
@given(st.sampled_from(CORRUPTIONS), grids, ratios, st.permutations(range(6)), st.integers(1, 6))
def test_a_corruption_depends_on_its_key_alone(
    kind: str, grid: Grid, ratio: float, order: list[int], num_images: int
) -> None:
    config = CorruptionConfig(kind, max(ratio, 1 / (grid[0] * grid[1])))
    keys = torch.tensor([3, -9, 2**62, 0, 1, -(2**63)])
    together = draw(keys, grid, config)
    others = order[:num_images]
    torch.manual_seed(num_images)
    apart = draw(keys[others], grid, config)
    assert torch.equal(apart.patches, together.patches[others])
    assert torch.equal(apart.source, together.source[others])
    assert torch.equal(apart.is_corrupted, together.is_corrupted[others])


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_keys_give_different_corruptions(kind: str) -> None:
    corruption = draw_many(100, (14, 14), CorruptionConfig(kind))
    assert len(corruption.is_corrupted.unique(dim=0)) > 95


def test_a_random_patch_takes_any_other() -> None:
    all_random = CorruptionConfig(ratio=1, mask_ratio=0, random_ratio=1)
    for num_patches in (2, 3):
        small = draw_many(500, (1, num_patches), all_random)
        assert not (small.source == small.patches).any()
        assert set(small.source.unique().tolist()) == set(range(num_patches))


def test_every_patch_is_chosen_about_equally_often() -> None:
    corruption = draw_many(4_000)
    for part in (*kinds(corruption), corruption.source):
        assert chi_squared(part, NUM_PATCHES) < 50  # 19 degrees of freedom: 1 in 7,000


@pytest.mark.parametrize("kind", ["block", "coarse"])
def test_each_kind_of_corruption_is_everywhere_in_a_shape(kind: str) -> None:
    """Kept patches that lay in the last block only would be told from the others by place."""
    corruption = draw_many(2_000, (8, 8), CorruptionConfig(kind))
    rank = corruption.is_corrupted.cumsum(1).gather(1, corruption.patches)  # in row order, 1 to M
    for part in rank.split(list(corruption.counts), dim=1):
        assert chi_squared(part - 1, 32) < 70  # 31 degrees of freedom: 1 in 10,000


def test_the_random_choice_is_the_one_of_the_first_release() -> None:
    """Another choice would make a resumed run another run."""
    config = CorruptionConfig(ratio=0.5, mask_ratio=0.5, random_ratio=0.25)
    corruption = draw(torch.tensor([5, -9, 2**62]), (2, 4), config)
    assert corruption.patches.tolist() == [[7, 4, 3, 5], [7, 1, 4, 3], [3, 7, 2, 5]]
    assert corruption.source.tolist() == [[5], [3], [4]]
    corruption = draw_many(256, (14, 14), PAPER)
    content = [part.numpy().tobytes() for part in (corruption.patches, corruption.source)]
    digest = hashlib.sha256(b"".join(content)).hexdigest()
    assert digest == "8f31ed1987b20d1e8232be00b9b389003d6b3fcadfdb0a985db21a890b0e3c74"


def test_the_other_choices_are_pinned() -> None:
    for kind, patches, source in (
        ("block", [9, 5, 14, 13, 1, 10, 2, 6], [6]),
        ("coarse", [8, 14, 13, 12, 10, 9, 11, 15], [15]),
    ):
        corruption = draw(torch.tensor([5]), (4, 4), CorruptionConfig(kind))
        assert corruption.patches.tolist() == [patches]
        assert corruption.source.tolist() == [source]


# ---------------------------------------------------------------- in which shape


@settings(max_examples=40)
@given(grids, ratios, st.integers(1, 4))
def test_coarse_squares_are_whole_but_one(grid: Grid, ratio: float, unit: int) -> None:
    if unit >= max(grid) or not round(ratio * grid[0] * grid[1]):
        return
    corruption = draw_many(8, grid, CorruptionConfig("coarse", ratio, unit=unit))
    for hidden in corruption.is_corrupted.unflatten(1, grid):
        cut = 0
        for rows in hidden.split(unit):
            for square in rows.split(unit, dim=1):
                flat = square.flatten()
                cut += int(flat.any() and not flat.all())
                assert flat.tolist() == sorted(flat.tolist(), reverse=True)  # cut at its end
        assert cut <= 1


def test_coarse_squares_are_chosen_about_equally_often() -> None:
    config = CorruptionConfig("coarse", 0.25)
    corruption = draw_many(4_000, (8, 8), config)
    squares = corruption.is_corrupted.view(-1, 4, 2, 4, 2)[:, :, 0, :, 0].flatten(1).nonzero()
    assert chi_squared(squares[:, 1], 16) < 42  # 15 degrees of freedom: 1 in 5,000


def held(block: Tensor, columns: int) -> list[int]:
    """List a block's patches by place."""
    top, left, bottom, right = block.tolist()
    return [row * columns + column for row in range(top, bottom) for column in range(left, right)]


@settings(max_examples=40)
@given(grids, ratios, st.integers(1, 20))
def test_blocks_are_whole_but_the_last(grid: Grid, ratio: float, min_block: int) -> None:
    """What is hidden is the first blocks' union, the last cut from its end: a slow reference."""
    total = round(ratio * grid[0] * grid[1])
    if not total:
        return
    smallest = min(min_block, total)
    config = CorruptionConfig("block", ratio, min_block=smallest)
    keys = torch.arange(8) * 7_919
    corruption = draw(keys, grid, config)
    for image, candidates in enumerate(blocks(keys, grid, smallest, total)):
        found: list[int] = []
        for block in candidates:
            found += [patch for patch in held(block, grid[1]) if patch not in found]
        patches = set(corruption.patches[image].tolist())
        assert set(found[:total]) <= patches  # the rest, if any, is filled at random
        assert len(found) < total or set(found[:total]) == patches


@settings(max_examples=40)
@given(grids, st.integers(1, 40), st.integers(0, 40))
def test_blocks_lie_in_the_grid_and_are_as_large_as_asked(
    grid: Grid, smallest: int, more: int
) -> None:
    rows, columns = grid
    smallest = min(smallest, rows * columns)
    largest = min(smallest + more, rows * columns)
    top, left, bottom, right = blocks(torch.arange(20), grid, smallest, largest).unbind(2)
    assert ((top >= 0) & (top < bottom) & (bottom <= rows)).all()
    assert ((left >= 0) & (left < right) & (right <= columns)).all()
    height, width = bottom - top, right - left
    slack = (height + width) / 2 + 0.25  # each side is rounded by half a patch at most
    assert (height * width >= smallest - slack).all()
    assert (height * width <= largest + slack).all()


def test_blocks_have_the_aspects_of_beit() -> None:
    top, left, bottom, right = blocks(torch.arange(2_000), (64, 64), 400, 400).unbind(2)
    aspects = ((bottom - top) / (right - left)).double().log()
    assert aspects.exp().amin() == pytest.approx(0.3, rel=0.05)
    assert aspects.exp().amax() == pytest.approx(1 / 0.3, rel=0.05)
    assert float(aspects.mean()) == pytest.approx(0, abs=0.02)
    assert float(aspects.std()) == pytest.approx(2 * 1.204 / 12**0.5, rel=0.03)  # uniform in log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "num", "expected"),
    [((14, 14), 8, 0.006), ((14, 14), 16, 0), ((8, 32), 16, 0.0002), ((8, 32), NUM_BLOCKS, 0)],
)
def test_there_are_enough_blocks(grid: Grid, num: int, expected: float) -> None:
    """The figures beside NUM_BLOCKS: images of 20,000 at ratio .75 that blocks do not fill."""
    num_patches = grid[0] * grid[1]
    total = round(0.75 * num_patches)
    is_short = torch.zeros(())
    for keys in torch.arange(20_000).split(5_000):
        candidates = blocks(keys, grid, 16, total)[:, :num]
        hidden = torch.zeros(len(keys), *grid, dtype=torch.bool)
        row, column = torch.arange(grid[0])[:, None], torch.arange(grid[1])
        for block in candidates.unbind(1):
            top, left, bottom, right = block[:, :, None, None].unbind(1)
            hidden |= (top <= row) & (row < bottom) & (left <= column) & (column < right)
        is_short += (hidden.sum((1, 2)) < total).sum()
    assert float(is_short) / 20_000 == pytest.approx(expected, abs=0.00005)


def test_what_blocks_do_not_fill_is_filled_at_random() -> None:
    grid, total = (1, 64), 62
    keys = torch.arange(2_000)
    corruption = draw(keys, grid, CorruptionConfig("block", total / 64))
    is_first: list[bool] = []  # of the filled images: is what lies first in the grid taken?
    for hidden, candidates in zip(
        corruption.is_corrupted, blocks(keys, grid, 16, total), strict=True
    ):
        found = {patch for block in candidates for patch in held(block, 64)}
        if len(found) < total:
            left_out = sorted(set(range(64)) - found)
            is_first.append(bool(hidden[left_out[0]]))
    assert len(is_first) > 10
    assert 0.1 < sum(is_first) / len(is_first) < 0.9


@pytest.mark.parametrize("ratio", [0.15, 0.5, 0.75])
def test_shapes_hide_patches_further_from_the_visible(ratio: float) -> None:
    mean = {
        kind: float(
            distances(draw_many(200, (14, 14), CorruptionConfig(kind, ratio)), (14, 14)).mean()
        )
        for kind in CORRUPTIONS
    }
    assert mean["random"] * 1.05 < mean["coarse"]
    assert mean["coarse"] * 1.05 < mean["block"]


# ---------------------------------------------------------------- what becomes of them


def test_each_kind_becomes_what_it_should() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(50, NUM_PATCHES, 6, generator=generator)
    mask_token = torch.randn(6, generator=generator)
    before = embeddings.clone()
    corruption = draw_many()
    after = apply(embeddings, mask_token, corruption)
    masked, random, kept = kinds(corruption)
    assert torch.equal(select(after, masked), mask_token.expand(50, COUNTS.mask, 6))
    # also where the source is itself masked or replaced: its original embedding is taken
    assert torch.equal(select(after, random), select(before, corruption.source))
    assert corruption.is_corrupted.gather(1, corruption.source).any()
    assert torch.equal(select(after, kept), select(before, kept))
    visible = ~corruption.is_corrupted
    assert torch.equal(after[visible], before[visible])
    assert torch.equal(embeddings, before)


def test_without_masks_and_random_patches_nothing_changes() -> None:
    embeddings = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
    all_kept = CorruptionConfig(mask_ratio=0, random_ratio=0)
    corruption = draw(torch.arange(3), (2, 4), all_kept)
    assert torch.equal(apply(embeddings, torch.zeros(4), corruption), embeddings)


def test_all_patches_may_be_masked() -> None:
    embeddings = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
    all_masked = CorruptionConfig(ratio=1, mask_ratio=1, random_ratio=0)
    corruption = draw(torch.arange(3), (2, 4), all_masked)
    assert torch.equal(apply(embeddings, torch.ones(4), corruption), torch.ones(3, 8, 4))


def test_gradients_reach_the_mask_token_and_the_sources() -> None:
    embeddings = torch.randn(2, NUM_PATCHES, 4).requires_grad_()
    mask_token = torch.zeros(4, requires_grad=True)
    corruption = draw_many(2)
    apply(embeddings, mask_token, corruption).sum().backward()
    assert mask_token.grad is not None
    assert embeddings.grad is not None
    assert torch.equal(mask_token.grad, torch.full((4,), 2.0 * COUNTS.mask))
    masked = kinds(corruption)[0]
    taken = torch.zeros(2, NUM_PATCHES).scatter_add(1, corruption.source, torch.ones(2, 3))
    own = torch.ones(2, NUM_PATCHES).scatter(1, corruption.patches[:, : COUNTS.mask + 3], 0)
    assert torch.equal(embeddings.grad[..., 0], own + taken)
    assert masked.numel() == 2 * COUNTS.mask


def test_the_mask_token_takes_the_precision_of_the_embeddings() -> None:
    corruption = draw_many(2)
    embeddings = torch.zeros(2, NUM_PATCHES, 4, dtype=torch.bfloat16)
    assert apply(embeddings, torch.ones(4), corruption).dtype == torch.bfloat16


def test_without_a_mask_token_only_random_patches_change() -> None:
    embeddings = torch.randn(50, NUM_PATCHES, 6, generator=torch.Generator().manual_seed(0))
    corruption = draw_many()
    after = apply(embeddings, None, corruption)
    random = kinds(corruption)[1]
    assert torch.equal(select(after, random), select(embeddings, corruption.source))
    stays = torch.ones(50, NUM_PATCHES, dtype=torch.bool).scatter(1, random, False)
    assert torch.equal(after[stays], embeddings[stays])
    # what a mask-free encoder sees is what the other sees in the same places
    with_masks = apply(embeddings, torch.zeros(6), corruption)
    assert torch.equal(select(after, corruption.visible), select(with_masks, corruption.visible))


# ---------------------------------------------------------------- in pixels

PATCH = (2, 3)


def patch_at(images: Tensor, image: int, place: int) -> Tensor:
    """Return the pixels of a patch of GRID: (C, Ph, Pw)."""
    top, left = place // GRID[1] * PATCH[0], place % GRID[1] * PATCH[1]
    return images[image, :, top : top + PATCH[0], left : left + PATCH[1]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("has_mask", [True, False])
def test_pixels_become_what_embeddings_would(channels: int, has_mask: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, channels, GRID[0] * PATCH[0], GRID[1] * PATCH[1], generator=generator)
    mask_patch = torch.randn(channels, *PATCH, generator=generator) if has_mask else None
    before = images.clone()
    corruption = draw_many(6)
    after = apply_to_pixels(images, mask_patch, corruption, PATCH)
    assert torch.equal(images, before)
    for image in range(6):
        expected = {place: patch_at(images, image, place) for place in range(NUM_PATCHES)}
        masked, random, _ = (part[image].tolist() for part in kinds(corruption))
        if mask_patch is not None:
            expected |= dict.fromkeys(masked, mask_patch)
        for place, source in zip(random, corruption.source[image].tolist(), strict=True):
            expected[place] = patch_at(images, image, source)
        for place, pixels in expected.items():
            assert torch.equal(patch_at(after, image, place), pixels)


@settings(max_examples=40)
@given(grids, st.tuples(st.integers(1, 3), st.integers(1, 3)), st.sampled_from(CORRUPTIONS))
def test_masked_pixels_do_not_depend_on_the_image(grid: Grid, patch: Grid, kind: str) -> None:
    size = (grid[0] * patch[0], grid[1] * patch[1])
    config = CorruptionConfig(kind, 0.6, mask_ratio=1, random_ratio=0)
    corruption = draw_many(2, grid, config)
    mask_patch = torch.full((2, *patch), 7.0)
    one, two = (
        apply_to_pixels(images, mask_patch, corruption, patch)
        for images in (torch.zeros(2, 2, *size), torch.ones(2, 2, *size))
    )
    is_masked = corruption.is_corrupted.unflatten(1, grid)
    wide = is_masked.repeat_interleave(patch[0], 1).repeat_interleave(patch[1], 2)
    assert torch.equal(one == two, wide[:, None].expand_as(one))
    assert (one[wide[:, None].expand_as(one)] == 7).all()


def test_gradients_reach_the_mask_patch() -> None:
    mask_patch = torch.zeros(1, *PATCH, requires_grad=True)
    images = torch.zeros(2, 1, GRID[0] * PATCH[0], GRID[1] * PATCH[1], dtype=torch.bfloat16)
    after = apply_to_pixels(images, mask_patch, draw_many(2), PATCH)
    assert after.dtype == torch.bfloat16
    after.sum().backward()
    assert mask_patch.grad is not None
    assert torch.equal(mask_patch.grad, torch.full((1, *PATCH), 2.0 * COUNTS.mask))
