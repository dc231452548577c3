"""Mixing: timm's, seeded by the loop, and never with an empty slot."""

import numpy as np
import pytest
import torch

from data.settings import UserError
from finetune.config import MixConfig
from finetune.mixing import Mixing, fill_empty_slots


def images(*levels: float) -> torch.Tensor:
    return torch.tensor(levels, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()


def test_empty_slots_take_good_samples_in_turn() -> None:
    label, weight = torch.tensor([-1, 1, 2, -1, -1]), torch.tensor([0.0, 1, 1, 0, 0])
    filled, labels = fill_empty_slots(images(0, 1, 2, 0, 0), label, weight)
    assert filled[:, 0, 0, 0].tolist() == [1, 1, 2, 2, 1]
    assert labels.tolist() == [1, 1, 2, 2, 1]


def test_nothing_is_filled_where_all_are_good_or_none_is() -> None:
    label = torch.tensor([0, 1])
    for weight in (torch.ones(2), torch.zeros(2)):
        filled, labels = fill_empty_slots(images(3, 4), label, weight)
        assert filled[:, 0, 0, 0].tolist()[0] in (3, 4)
        assert labels.shape == (2,)
    assert torch.equal(fill_empty_slots(images(3, 4), label, torch.ones(2))[0], images(3, 4))


@pytest.mark.parametrize("config", [MixConfig(mixup=0.8), MixConfig(cutmix=1.0)])
def test_images_and_labels_are_mixed_in_the_same_ratio(config: MixConfig) -> None:
    mixing = Mixing(config, num_classes=3)
    for seed in range(10):
        np.random.seed(seed)  # noqa: NPY002
        mixed = mixing(images(0, 1), torch.tensor([0, 1]))
        share = mixed.images[0].mean()  # of the second image in the first
        torch.testing.assert_close(mixed.targets[0], torch.stack([1 - share, share, share * 0]))


def test_the_seed_decides() -> None:
    mixing = Mixing(MixConfig(mixup=0.8, cutmix=1.0), num_classes=3)
    found: list[float] = []
    for seed in (1, 1, 2):
        np.random.seed(seed)  # noqa: NPY002
        found.append(float(mixing(images(0, 1), torch.tensor([0, 1])).targets[0, 0]))
    assert found[0] == found[1] != found[2]


def test_labels_are_smoothed_and_many_labels_mixed() -> None:
    np.random.seed(0)  # noqa: NPY002
    smooth = Mixing(MixConfig(mixup=0.8), 4, label_smoothing=0.2)
    targets = smooth(images(0, 1), torch.tensor([0, 1])).targets
    torch.testing.assert_close(targets.sum(1), torch.ones(2))
    torch.testing.assert_close(targets[:, 2:], torch.full((2, 2), 0.05))
    many = Mixing(MixConfig(mixup=0.8), 3, is_multi_label=True)
    targets = many(images(0, 1), torch.tensor([[1, 1, 0], [0, 1, 0]])).targets
    torch.testing.assert_close(targets[:, 1:], torch.tensor([[1.0, 0], [1, 0]]))


def test_an_alpha_below_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"mix.mixup=-1 is below 0; 0 is off"):
        MixConfig(mixup=-1)
