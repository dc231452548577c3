"""Measures without labels: against plain formulas and scikit-learn, and where they are known."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from pretrain.evaluation.spectrum import (
    Moments,
    Scatter,
    alpha,
    dead,
    describe_spectrum,
    lidar,
    rankme,
    rankme_centred,
)


def moments_of(values: np.ndarray) -> Moments:
    return Moments.of(torch.from_numpy(values), torch.ones(len(values)))


def correlated(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw float32 features far from the origin, whose dimensions depend on each other."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(width, width)) / np.arange(1, width + 1)[:, None]
    values = generator.normal(size=(count, width)) @ mixing + generator.normal(size=width)
    return values.astype(np.float32)


def with_decay(count: int, width: int, decay: float) -> np.ndarray:
    """Make features whose covariance has exactly the eigenvalues j^-decay."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(count, width))
    basis = np.linalg.qr(noise - noise.mean(0))[0]  # (n, D): orthonormal, of mean 0
    turn = np.linalg.qr(generator.normal(size=(width, width)))[0]
    scale = np.arange(1, width + 1) ** (-decay / 2)
    return np.sqrt(count) * (basis * scale) @ turn + 3


# ---------------------------------------------------------------- RankMe


@pytest.mark.parametrize(("count", "width"), [(300, 40), (20, 40)])
def test_rankme_is_the_entropy_of_the_singular_values(count: int, width: int) -> None:
    values = correlated(count, width)
    singular = np.linalg.svd(values.astype(np.float64), compute_uv=False)
    p = singular / singular.sum() + 1e-7
    expected = np.exp(-(p * np.log(p)).sum())
    assert rankme(moments_of(values)) == pytest.approx(expected, rel=1e-7)
    centred = moments_of(values.astype(np.float64) - values.mean(0, dtype=np.float64))
    assert rankme_centred(moments_of(values)) == pytest.approx(rankme(centred), rel=1e-4)


def test_rankme_of_what_is_known() -> None:
    generator = np.random.default_rng(0)
    assert 63.9 < rankme(moments_of(generator.normal(size=(20_000, 64)))) < 64.001
    line = np.outer(generator.normal(size=500), generator.normal(size=64))
    assert rankme(moments_of(line)) == pytest.approx(1, abs=1e-3)
    axes = np.repeat(np.eye(8, 64), 100, axis=0)  # eight directions alike
    assert rankme(moments_of(axes)) == pytest.approx(8, abs=1e-3)
    assert rankme_centred(moments_of(axes)) == pytest.approx(7, abs=1e-3)


# ---------------------------------------------------------------- alpha-ReQ


@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("width", [32, 160])
def test_alpha_of_a_power_law_is_its_exponent(width: int, decay: float) -> None:
    assert alpha(moments_of(with_decay(400, width, decay))) == pytest.approx(decay, abs=1e-8)


@pytest.mark.parametrize("width", [40, 130])
def test_alpha_is_a_weighted_fit_to_scikit_learns_variances(width: int) -> None:
    values = correlated(500, width)
    variances = PCA(svd_solver="full").fit(values.astype(np.float64)).explained_variance_
    place = np.arange(11, min(width, 100) + 1)
    logs = np.log(place), np.log(variances[10:100])
    slope = np.polyfit(*logs, 1, w=place**-0.5)[0]  # its weights are of residuals
    assert alpha(moments_of(values)) == pytest.approx(-slope, rel=1e-6)


def test_alpha_leaves_out_what_is_rounding_and_is_nothing_of_too_few_eigenvalues() -> None:
    padded = np.pad(with_decay(300, 30, 1.5), [(0, 0), (0, 34)], constant_values=7)
    assert alpha(moments_of(padded)) == pytest.approx(1.5, abs=1e-6)
    assert math.isnan(alpha(moments_of(correlated(300, 14))))
    assert set(describe_spectrum(moments_of(correlated(300, 14)))) == {
        *("rankme", "rankme_centred", "dead")
    }


# ---------------------------------------------------------------- dead dimensions


def test_dead_dimensions_are_counted() -> None:
    values = np.random.default_rng(0).normal(size=(200, 64))
    values[:, 10:12] = 5  # without any variance
    values[:, 20] *= 1e-3
    values[:, 30] *= 1000  # that one is large makes no other dead
    assert dead(moments_of(values.astype(np.float32))) == 3 / 64


def test_features_that_do_not_differ_are_dead_as_a_whole() -> None:
    same = np.repeat(correlated(1, 64), 500, axis=0)
    figures = describe_spectrum(moments_of(same))
    assert figures == {"rankme": pytest.approx(1, abs=1e-3), "dead": 1}


# ---------------------------------------------------------------- sums


def test_sums_over_batches_are_those_of_all_without_what_is_left_out() -> None:
    values = torch.from_numpy(correlated(60, 20))
    weight = torch.ones(60)
    weight[[3, 40]] = 0
    halves = (Moments.of(v, w) for v, w in zip(values.split(30), weight.split(30), strict=True))
    added = next(halves).plus(next(halves))
    kept = values[weight > 0].double().numpy()
    assert added.number == 58
    assert np.allclose(added.covariance.numpy(), np.cov(kept.T, bias=True), rtol=1e-9, atol=1e-12)
    assert rankme(added) == pytest.approx(rankme(moments_of(kept)), rel=1e-12)


# ---------------------------------------------------------------- LiDAR


def scatter_of(crops: np.ndarray) -> Scatter:
    return Scatter.of(torch.from_numpy(crops), torch.ones(len(crops)))


def draw_crops(images: int, crops: int, width: int, noise: float) -> np.ndarray:
    generator = np.random.default_rng(0)
    centres = correlated(images, width)[:, None].astype(np.float64)
    return centres + noise * generator.normal(size=(images, crops, width))


def plain_lidar(crops: np.ndarray) -> float:
    """Follow the paper's formulas, image by image; W^-1 B has the eigenvalues of the LDA matrix."""
    images, number, width = crops.shape
    means = crops.mean(1)
    between, within = np.zeros((width, width)), 1e-4 * np.eye(width)
    for mean, own in zip(means, crops, strict=True):
        away = mean - means.mean(0)
        between += np.outer(away, away) / (images - 1)
        for crop in own:
            within += np.outer(crop - mean, crop - mean) / (images * (number - 1))
    values = np.linalg.eigvals(np.linalg.inv(within) @ between).real
    p = values / values.sum() + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize("noise", [1e-3, 0.1, 1.0])
def test_lidar_is_the_plain_formula(noise: float) -> None:
    crops = draw_crops(60, 5, 12, noise)
    assert lidar(scatter_of(crops), 5) == pytest.approx(plain_lidar(crops), rel=1e-8)


def test_lidar_counts_the_dimensions_that_tell_images_apart() -> None:
    generator = np.random.default_rng(0)
    images = np.zeros((3000, 1, 16))
    images[:, 0, :4] = generator.normal(size=(3000, 4))
    crops = images + 0.05 * generator.normal(size=(3000, 10, 16))
    assert lidar(scatter_of(crops), 10) == pytest.approx(4, abs=0.1)
    assert rankme(moments_of(crops[:, 0])) > 5.5  # which counts noise, too


def test_images_are_left_out_and_batches_add_up() -> None:
    crops = torch.from_numpy(draw_crops(60, 5, 12, 0.3))
    weight = torch.ones(60)
    weight[[0, 59]] = 0
    parts = zip(crops.split(30), weight.split(30), strict=True)
    first, second = (Scatter.of(part, of_part) for part, of_part in parts)
    kept: Tensor = crops[weight > 0]
    assert lidar(first.plus(second), 5) == pytest.approx(plain_lidar(kept.numpy()), rel=1e-8)
