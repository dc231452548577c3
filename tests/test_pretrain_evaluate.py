"""Frozen features and ridge regression in closed form."""

import pytest
import torch

from data.settings import UserError
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.evaluate import Features, check_features, ridge, ridge_accuracy

TINY = EncoderConfig(name="vit_tiny_patch16_224", patch_size=4, embed_dim=32, depth=2, num_heads=2)


def problem(num: int, width: int, seed: int) -> Features:
    """Draw two classes that one direction tells apart, among noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 2
    values = torch.randn(num, width, generator=generator)
    values[:, 0] += 6.0 * labels
    return Features(values * 3 + 5, labels)


def test_ridge_is_the_minimum_of_its_objective() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    weights = ridge(x, y, penalty=2.0).requires_grad_()
    with_bias = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], dim=1)
    objective = (with_bias @ weights - y).pow(2).sum() + 2.0 * weights.pow(2).sum()
    [gradient] = torch.autograd.grad(objective, weights)
    assert gradient.abs().max() < 1e-10


def test_ridge_works_with_fewer_samples_than_features() -> None:
    weights = ridge(torch.eye(4)[:2], torch.ones(2, 1), penalty=0.1)
    assert weights.shape == (5, 1)
    assert torch.isfinite(weights).all()


def test_accuracy_on_separable_classes_whatever_their_scale() -> None:
    assert ridge_accuracy(problem(40, 8, 0), problem(200, 8, 1), penalty=1.0) > 0.98


def test_accuracy_counts_wrong_answers() -> None:
    val = problem(200, 8, 1)
    swapped = Features(val.values, 1 - val.labels)
    assert ridge_accuracy(problem(40, 8, 0), swapped, penalty=1.0) < 0.02


def test_layers_and_poolings_that_do_not_exist_are_refused() -> None:
    encoder = make_encoder(TINY, (16, 16))
    with pytest.raises(UserError, match=r"fewshot.layer=3 is not in 1..2"):
        check_features(encoder, 3, "average")
    with pytest.raises(UserError, match=r"fewshot.pooling=max is not one of average, class"):
        check_features(encoder, 1, "max")
