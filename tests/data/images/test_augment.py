"""RandAugment depends on nothing but the crop and the seed."""

import random

import numpy as np
import pytest
import torch

from data.batch import Request
from data.images.augment import RandAugment
from data.index.open import open_manifest
from data.samples import Samples
from data.settings import UserError

RECIPE = "rand-m9-mstd0.5-inc1"


def crop(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, 16, 24), generator=generator, dtype=torch.uint8)


def test_it_is_a_function_of_the_crop_and_the_seed() -> None:
    augment = RandAugment(RECIPE, (16, 24))
    first = [augment(crop(), seed) for seed in range(20)]
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    again = [RandAugment(RECIPE, (16, 24))(crop(), seed) for seed in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({image.numpy().tobytes() for image in first}) > 10
    assert {tuple(image.shape) for image in first} == {(3, 16, 24)}


def test_the_fill_is_the_datas_mean() -> None:
    augment = RandAugment("rand-m10-n6", (16, 24), mean=(1.0, 0.0, 0.0))
    white = torch.full((3, 16, 24), 255, dtype=torch.uint8)
    corners = torch.cat([augment(white, seed)[:, 0, 0][None] for seed in range(60)])
    assert ((corners[:, 0] == 255) & (corners[:, 1] == 0)).any()


def test_full_strength_works() -> None:
    augment = RandAugment("rand-m10-n9-inc1-mstd0.5", (16, 24))
    assert {augment(crop(seed), seed).dtype for seed in range(200)} == {torch.uint8}


@pytest.mark.parametrize("recipe", ["augmix", ""])
def test_what_is_no_recipe_is_refused(recipe: str) -> None:
    with pytest.raises(UserError, match=r"data.augment=.* is no RandAugment recipe of timm"):
        RandAugment(recipe, (16, 16))


def test_training_crops_are_augmented_alike_wherever_they_are_made(shards: object) -> None:
    manifest = open_manifest(f"{shards}/train-0.tar", "data.train")
    make = RandAugment(RECIPE, (16, 16))
    plain = Samples(manifest, (16, 16), seed=0, crop_area=(0.5, 1.0))[Request(0, 0, 20)]
    augmented = Samples(manifest, (16, 16), seed=0, crop_area=(0.5, 1.0), augment=make)
    whole = augmented[Request(0, 0, 20)].tensors["image"]
    parts = [augmented[Request(0, start, start + 5)].tensors["image"] for start in (15, 0, 5, 10)]
    assert torch.equal(whole, torch.cat([parts[i] for i in (1, 2, 3, 0)]))
    assert not torch.equal(whole, plain.tensors["image"])
    evaluated = Samples(manifest, (16, 16), seed=0, augment=make)[Request(0, 0, 20)]
    assert torch.equal(
        evaluated.tensors["image"],
        Samples(manifest, (16, 16), seed=0)[Request(0, 0, 20)].tensors["image"],
    )
