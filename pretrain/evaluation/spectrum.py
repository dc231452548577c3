"""Measures of features that need no labels: how many dimensions they fill, and how evenly.

All of them follow from sums over feature vectors: 1 + D + D x D numbers, however many there are.
Float64 throughout: in that precision the square roots of the eigenvalues of X'X are the singular
values of X to 1e-8 of the largest, which float32 features do not reach.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

Figures = dict[str, float]

EPSILON = 1e-7  # of RankMe, which LiDAR takes over: it keeps the logarithm finite
RIDGE = 1e-4  # on LiDAR's covariance within images
DEAD = 0.01  # of the mean deviation over dimensions: what varies less is dead
_ROUNDING = 1e-6  # of the root mean square of features: what varies less does not vary
_FIRST, _LAST = 10, 100  # eigenvalues that alpha-ReQ is fitted to, the largest being 0
_LEAST = 5  # of them


class Moments(NamedTuple):
    """Sums over feature vectors x, of float64.

    Attributes:
        number: How many, ().
        total: The sum of x, (D,).
        gram: The sum of x x', (D, D).
    """

    number: Tensor
    total: Tensor
    gram: Tensor

    @classmethod
    def of(cls, values: Tensor, weight: Tensor) -> "Moments":
        """Sum features (n, D) up; weights (n,) are 1, or 0 where there is no feature vector."""
        values, weight = values.double(), weight.double()
        values = values * weight[:, None]
        return cls(weight.sum(), values.sum(0), values.T @ values)

    def plus(self, other: "Moments") -> "Moments":
        """Add the sums over other vectors."""
        return Moments(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    @property
    def covariance(self) -> Tensor:
        """The covariance over all vectors, divided by their number: (D, D)."""
        mean = self.total / self.number
        return self.gram / self.number - torch.outer(mean, mean)

    @property
    def mean_square(self) -> Tensor:
        """The mean of the features' squares over vectors and dimensions, ()."""
        return self.gram.trace() / (self.number * len(self.gram))

    @property
    def floor(self) -> Tensor:
        """The variance up to which it is rounding alone, ()."""
        return _ROUNDING**2 * self.mean_square


def describe_spectrum(moments: Moments) -> Figures:
    """Return what is measured of features by name; what is not defined is left out."""
    figures = {name: measure(moments) for name, measure in MEASURES.items()}
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def rankme(moments: Moments) -> float:
    """Return the effective rank of features: exp of the entropy of their singular values.

    With the singular values s of X (n, D), not centred, and p = s / sum(s) + 1e-7, it is
    exp(-sum(p log p)): from 1, all vectors on a line, to D.

    Source: Garrido et al. 2023 (arXiv:2210.02885), equations 1 and 2.
    """
    rank = min(int(moments.number), len(moments.gram))
    squares = torch.linalg.eigvalsh(moments.gram)[-rank:]
    return _effective_rank(squares.clamp(min=0).sqrt())


def rankme_centred(moments: Moments) -> float:
    """Return the effective rank of features less their mean; NaN where they do not differ.

    The mean counts as one of RankMe's directions, and may outweigh all others.
    """
    squares = torch.linalg.eigvalsh(moments.covariance)
    return _effective_rank(squares.where(squares > moments.floor, 0).sqrt())


def _effective_rank(values: Tensor) -> float:
    """Return exp of the entropy of values as probabilities; NaN where all are 0."""
    p = values / values.sum() + EPSILON
    return float(torch.exp(-(p * p.log()).sum()))


def alpha(moments: Moments) -> float:
    """Return the decay of the covariance's eigenvalues: the j-th largest is about c j^-alpha.

    A straight line is fitted to log(eigenvalue) over log(j), each with the weight 1 / j, for j from
    11 to 100, or to the last eigenvalue that is above rounding. NaN where they are fewer than 5.

    Source: Agrawal et al. 2022 (alpha-ReQ, NeurIPS), with the fit of Stringer et al. 2019, and the
    range that its authors' library reptrix has.
    """
    values = torch.linalg.eigvalsh(moments.covariance).flip(0)
    number = min(_LAST, int((values > moments.floor).sum()), int(moments.number) - 1)
    if number - _FIRST < _LEAST:
        return math.nan
    place = torch.arange(_FIRST + 1, number + 1, dtype=values.dtype, device=values.device)
    x, y, weight = place.log(), values[_FIRST:number].log(), 1 / place
    x_mean, y_mean = ((weight * of).sum() / weight.sum() for of in (x, y))
    slope = (weight * (x - x_mean) * (y - y_mean)).sum() / (weight * (x - x_mean) ** 2).sum()
    return -float(slope)


def dead(moments: Moments) -> float:
    """Return the share of dimensions that hardly vary over the vectors.

    A dimension is dead if its deviation is below a hundredth of the mean of all deviations, or
    below a millionth of the features' root mean square, where it is rounding alone.
    """
    deviation = moments.covariance.diagonal().clamp(min=0).sqrt()
    bound = torch.maximum(DEAD * deviation.mean(), moments.floor.sqrt())
    return float((deviation < bound).double().mean())


MEASURES = {"rankme": rankme, "rankme_centred": rankme_centred, "alpha": alpha, "dead": dead}


class Scatter(NamedTuple):
    """Sums over the features of several crops of each image, of float64.

    Attributes:
        means: Over each image's mean over its crops.
        within: Of (x - mean)(x - mean)' over all crops of all images, (D, D).
    """

    means: Moments
    within: Tensor

    @classmethod
    def of(cls, crops: Tensor, weight: Tensor) -> "Scatter":
        """Sum the features of crops (n, q, D) up; weights (n,) are 0 where there is no image."""
        crops = crops.double()
        means = crops.mean(1, keepdim=True)
        centred = (crops - means) * weight.double()[:, None, None]
        centred = centred.flatten(0, 1)  # (n q, D)
        return cls(Moments.of(means[:, 0], weight), centred.T @ centred)

    def plus(self, other: "Scatter") -> "Scatter":
        """Add the sums over other images."""
        return Scatter(self.means.plus(other.means), self.within + other.within)


def lidar(scatter: Scatter, num_crops: int) -> float:
    """Return the effective rank of what tells images apart, beside what differs between crops.

    With the covariance B of the images' means and W of the crops around them, both unbiased, and
    l the eigenvalues of W^-1/2 B W^-1/2: exp of the entropy of l / sum(l) + 1e-7. W has 1e-4 added
    to its diagonal, so features are to be of a scale near 1, as behind a final norm.

    Source: Thilak et al. 2024 (arXiv:2312.04000), section 3. It names no value for what is added;
    1e-4 is that of stable-pretraining.
    """
    number = scatter.means.number
    between = scatter.means.covariance * number / (number - 1)
    within = scatter.within / (number * (num_crops - 1))
    within = within + RIDGE * torch.eye(len(within), dtype=within.dtype, device=within.device)
    values, vectors = torch.linalg.eigh(within)
    whitening = vectors * values.rsqrt()  # its columns
    return _effective_rank(torch.linalg.eigvalsh(whitening.T @ between @ whitening).clamp(min=0))
