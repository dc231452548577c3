"""Which patches are corrupted, how many of each kind, and what becomes of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data.settings import UserError
from pretrain.corruption import Corruption, CorruptionConfig, Counts, apply, count, draw, select

PAPER = CorruptionConfig()
NUM_PATCHES = 20
COUNTS = Counts(mask=5, random=3, kept=2)


def draw_many(num_images: int = 50, num_patches: int = NUM_PATCHES) -> Corruption:
    return draw(torch.arange(num_images) * 7_919, num_patches, COUNTS)


def kinds(corruption: Corruption) -> tuple[Tensor, ...]:
    return corruption.patches.split(list(corruption.counts), dim=1)


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
    counts = count(CorruptionConfig(ratio, mask_ratio, random_ratio), num_patches)
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
        count(CorruptionConfig(1, 0, 1), 1)


# ---------------------------------------------------------------- which


def test_corrupted_patches_are_distinct_and_marked() -> None:
    corruption = draw_many()
    assert corruption.patches.shape == (50, sum(COUNTS))
    marked = torch.zeros(50, NUM_PATCHES, dtype=torch.bool)
    for image, patches in enumerate(corruption.patches.tolist()):
        assert len(set(patches)) == sum(COUNTS)
        marked[image, patches] = True
    assert torch.equal(corruption.is_corrupted, marked)


def test_a_random_patch_never_takes_itself() -> None:
    corruption = draw_many(2_000)
    random = kinds(corruption)[1]
    assert corruption.source.shape == random.shape
    assert not (corruption.source == random).any()
    for num_patches in (2, 3):
        small = draw(torch.arange(500), num_patches, Counts(0, num_patches, 0))
        assert not (small.source == small.patches).any()
        assert set(small.source.unique().tolist()) == set(range(num_patches))


def test_a_corruption_depends_on_its_key_alone() -> None:
    keys = torch.tensor([3, -9, 2**62])
    together = draw(keys, NUM_PATCHES, COUNTS)
    for image, key in enumerate(keys):
        alone = draw(key[None], NUM_PATCHES, COUNTS)
        torch.manual_seed(image)
        assert torch.equal(alone.patches[0], together.patches[image])
        assert torch.equal(alone.source[0], together.source[image])
    assert not torch.equal(together.patches[0], together.patches[1])


def test_every_patch_is_chosen_about_equally_often() -> None:
    num_images = 4_000
    corruption = draw_many(num_images)
    for part in (*kinds(corruption), corruption.source):
        histogram = part.flatten().bincount(minlength=NUM_PATCHES).double()
        expected = part.numel() / NUM_PATCHES
        chi_squared = float(((histogram - expected) ** 2 / expected).sum())
        assert chi_squared < 50  # 19 degrees of freedom: 1 in 7,000


def test_the_choice_is_pinned() -> None:
    """Another choice would make a resumed run another run."""
    corruption = draw(torch.tensor([5]), 8, Counts(2, 1, 1))
    assert corruption.patches.tolist() == [[7, 4, 3, 5]]
    assert corruption.source.tolist() == [[5]]


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
    corruption = draw(torch.arange(3), 8, Counts(0, 0, 4))
    assert torch.equal(apply(embeddings, torch.zeros(4), corruption), embeddings)


def test_all_patches_may_be_masked() -> None:
    embeddings = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
    corruption = draw(torch.arange(3), 8, Counts(8, 0, 0))
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
