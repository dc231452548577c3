"""Classifiers on frozen features: ridge in closed form, k-NN, logistic regression.

All of them work where the features are, and draw nothing from any generator but k-shot's own.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.labels.labelled import k_shot
from data.settings import require
from pretrain.evaluation.config import NEIGHBOURS, PENALTIES, PENALTY
from pretrain.evaluation.features import Features

TEMPERATURE = 0.07
_NUM_SCORES = 1 << 26  # numbers that a chunk of scores holds at most: 256 MiB in float32
Report = Callable[[int], object]  # is told of so many fits that are done; 0: one goes on
_HELD_OUT = 10  # a tenth of the training images chooses the logistic regression's penalty
MIN_IMAGES = 2 * _HELD_OUT  # that allow it


def silent(_: int) -> None:
    """Report no progress."""


class Accuracy(NamedTuple):
    """How often the true class is the first answer, and one of the first five."""

    top1: float
    top5: float


def top_accuracy(scores: Iterable[Tensor], labels: Iterable[Tensor]) -> Accuracy:
    """Count over chunks of scores (n, K) and labels (n,)."""
    hits = torch.zeros(2, dtype=torch.float64)
    total = 0
    for chunk, truth in zip(scores, labels, strict=True):
        ranked = chunk.topk(min(5, chunk.shape[1])).indices
        is_right = ranked == truth[:, None]
        hits += torch.stack([is_right[:, 0].sum(), is_right.sum()]).cpu()
        total += len(truth)
    return Accuracy(*(hits / total).tolist())


def _num_classes(train: Features) -> int:
    return int(train.labels.max()) + 1


class Scale(NamedTuple):
    """Each feature's mean and deviation over the training images, both (D,)."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, values: Tensor) -> "Scale":
        """Measure features (n, D)."""
        return cls(values.mean(0), values.std(0, correction=0) + 1e-6)

    def __call__(self, values: Tensor) -> Tensor:
        """Standardise features (n, D)."""
        return (values - self.mean) / self.deviation


# ---------------------------------------------------------------- ridge


def ridge(features: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """Solve min_W |[X, 1] W - Y|^2 + penalty |W|^2 in closed form, in float64.

    Setting the gradient to zero: (X'X + penalty I) W = X'Y. The bias is a feature like any other.

    Args:
        features: (n, D).
        targets: (n, K).
        penalty: Above 0.

    Returns:
        W: (D + 1, K).
    """
    x = _with_bias(features.double())
    gram = x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(gram, x.T @ targets.double())


def ridge_accuracy(train: Features, val: Features, penalty: float) -> float:
    """Fit labels as {-1, 1}^K on standardised features; return the accuracy on `val`.

    Source: the paper's in-loop measure, section 4.1 "few-shot"; google-research/big_vision,
    evaluators/fewshot_lsr.py.
    """
    scale = Scale.of(train.values)
    targets = F.one_hot(train.labels) * 2 - 1  # (n, K)
    weights = ridge(scale(train.values), targets, penalty)
    scores = _with_bias(scale(val.values).double()) @ weights
    return top_accuracy([scores], [val.labels]).top1


def _with_bias(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)


Choices = dict[int, list[Tensor]]  # labelled images a class -> the listed positions, by seed


def choose_shots(
    labels: np.ndarray, shots: Sequence[int], num_seeds: int, keys: tuple[str, str]
) -> Choices:
    """Choose the few labelled images, of all that are listed, before any image is read.

    Args:
        labels: Of all listed training images.
        shots: Labelled images a class.
        num_seeds: Choices of each.
        keys: The configuration keys of the shots and of the images, for messages.

    Raises:
        UserError: A class has fewer.
    """
    return {
        num: [torch.from_numpy(k_shot(labels, num, seed, keys)) for seed in range(num_seeds)]
        for num in shots
    }


def few_shot(
    train: Features,
    val: Features,
    choices: Choices,
    penalty: float = PENALTY,
    report: Report = silent,
) -> dict[int, list[float]]:
    """Return the ridge's accuracy for each number of shots and each choice of them."""

    def accuracy(places: Tensor) -> float:
        result = ridge_accuracy(train.at(places), val, penalty)
        report(1)
        return result

    return {num: [accuracy(places) for places in chosen] for num, chosen in choices.items()}


# ---------------------------------------------------------------- nearest neighbours


def knn(
    train: Features,
    val: Features,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Accuracy:
    """Let the nearest training images vote, each with exp(cosine similarity / temperature).

    Memory: the training features once more, and 256 MiB of similarities at a time (one row, where
    a row is larger).

    Source: Wu et al. 2018, arXiv:1805.01978, section 3.4; DINO, arXiv:2104.14294, section 4.1.
    """
    bank = F.normalize(train.values, dim=1)
    rows = max(1, _NUM_SCORES // max(len(bank), _num_classes(train)))

    def votes(values: Tensor) -> Tensor:
        similarities = F.normalize(values, dim=1) @ bank.T
        nearest, places = similarities.topk(min(neighbours, len(bank)))
        empty = nearest.new_zeros(len(values), _num_classes(train))
        return empty.scatter_add_(1, train.labels[places], (nearest / temperature).exp())

    return top_accuracy(map(votes, val.values.split(rows)), val.labels.split(rows))


# ---------------------------------------------------------------- logistic regression


def logistic(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    penalty: float,
    report: Report = silent,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Fit min_W mean cross-entropy([X, 1] W, labels) + penalty / 2 |W without its bias|^2.

    It is scikit-learn's `LogisticRegression(C=1 / (n penalty))`, by full-batch L-BFGS in float64.
    Memory: the features once more, in float64, and 512 MiB of scores at a time.

    Args:
        features: (n, D), standardised.
        labels: int64 (n,).
        num_classes: K.
        penalty: Above 0.
        report: Is told of each pass over the features.
        class_weights: float64 (K,), what an image of each class counts; None: all the same.

    Returns:
        W: float64 (D + 1, K).
    """
    inputs = _with_bias(features.double())
    weights = inputs.new_zeros(inputs.shape[1], num_classes, requires_grad=True)
    rows = max(1, _NUM_SCORES // num_classes)
    solver = torch.optim.LBFGS(
        [weights],
        max_iter=1000,
        tolerance_grad=3e-7,
        tolerance_change=1e-12,
        history_size=50,  # features are correlated: 10 take two to three times as many passes
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        solver.zero_grad()
        loss = penalty / 2 * weights[:-1].pow(2).sum()
        loss.backward()
        value = float(loss.detach())
        for x, y in zip(inputs.split(rows), labels.split(rows), strict=True):
            part = F.cross_entropy(x @ weights, y, class_weights, reduction="sum")
            (part / len(labels)).backward()
            value += float(part.detach()) / len(labels)
        report(0)
        return value

    solver.step(closure)
    return weights.detach()


class Linear(NamedTuple):
    """A fitted logistic regression: its weights (D + 1, K), for features as `scale` gives them."""

    scale: Scale
    weights: Tensor

    @classmethod
    def fit(
        cls,
        train: Features,
        penalty: float,
        report: Report = silent,
        class_weights: Tensor | None = None,
    ) -> "Linear":
        """Fit it on features as they are."""
        scale = Scale.of(train.values)
        number = _num_classes(train)
        if class_weights is not None:
            class_weights = class_weights[:number]
        inputs = scale(train.values)
        weights = logistic(inputs, train.labels, number, penalty, report, class_weights)
        report(1)
        return cls(scale, weights)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the weight (K, D) and bias (K,), float64, for features that are not scaled."""
        weight = self.weights[:-1] / self.scale.deviation.double()[:, None]  # (D, K)
        return weight.T, self.weights[-1] - self.scale.mean.double() @ weight

    def __call__(self, values: Tensor) -> Tensor:
        """Return the logits of features: (n, D) -> float64 (n, K)."""
        return _with_bias(self.scale(values).double()) @ self.weights

    def accuracy(self, val: Features) -> Accuracy:
        """Judge it, in chunks as in `logistic`."""
        rows = max(1, _NUM_SCORES // max(self.weights.shape))
        return top_accuracy(map(self, val.values.split(rows)), val.labels.split(rows))


class Probe(NamedTuple):
    """A linear probe.

    Attributes:
        classifier: Fitted on all training images.
        penalty: By which it was fitted.
        held_out: The cross-entropy, in nats, of one that was fitted without a tenth of the training
            images, on those; infinite where they are too few. It compares layers without a look
            at the validation images.
    """

    classifier: Linear
    penalty: float
    held_out: float


def check_penalties(penalties: Sequence[float], labels: np.ndarray, keys: tuple[str, str]) -> None:
    """Raise `UserError` unless there are images to choose among several penalties with."""
    require(
        len(penalties) == 1 or len(labels) >= MIN_IMAGES,
        f"{keys[0]} has {len(penalties)}, but {keys[1]} only {len(labels)} images to choose among "
        "them; name one",
    )


def num_linear_fits(penalties: Sequence[float]) -> int:
    """Return of how many fits `linear_probe` reports."""
    return 1 + len(penalties)


def linear_probe(
    train: Features,
    penalties: Sequence[float] = PENALTIES,
    report: Report = silent,
    class_weights: Tensor | None = None,
) -> Probe:
    """Fit a logistic regression on all training images, by the penalty of `choose_penalty`.

    Fewer than `MIN_IMAGES` hold none out; then it is the strongest penalty. `class_weights` are as
    in `logistic`, of as many classes or more.
    """
    penalty, held_out = max(penalties), math.inf
    if len(train.labels) >= MIN_IMAGES:
        penalty, held_out = choose_penalty(train, penalties, report, class_weights)
    return Probe(Linear.fit(train, penalty, report, class_weights), penalty, held_out)


def choose_penalty(
    train: Features,
    penalties: Sequence[float],
    report: Report = silent,
    class_weights: Tensor | None = None,
) -> tuple[float, float]:
    """Return the penalty of the least cross-entropy, and that, on a tenth that no fit sees.

    Accuracy has ties where a tenth is a few dozen images, and then says nothing. From the strongest
    on, it ends where the loss rises: what is weaker takes longest, and fits noise.
    """
    fitted, judged = (train.where(is_part) for is_part in hold_out(train.labels))

    best, least = max(penalties), float("inf")
    for place, penalty in enumerate(sorted(penalties, reverse=True), start=1):
        logits = Linear.fit(fitted, penalty, report, class_weights)(judged.values)
        weights = None if class_weights is None else class_weights[: logits.shape[1]]
        loss = float(F.cross_entropy(logits, judged.labels, weights))
        if loss > least:
            report(len(penalties) - place)  # those are not needed
            break
        best, least = penalty, loss
    return best, least


def hold_out(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Choose what is fitted, and what is judged of the tenth that is held out: both bool (n,).

    A class of one image may be held out as a whole; no fit knows it, so it is not judged.
    """
    is_held_out = _held_out(labels)
    return ~is_held_out, is_held_out & torch.isin(labels, labels[~is_held_out])


def _held_out(labels: Tensor) -> Tensor:
    """Choose every tenth image of those sorted by class, in an order drawn once: bool (n,)."""
    drawn = torch.from_numpy(np.random.default_rng(0).permutation(len(labels))).to(labels.device)
    by_class = drawn[labels[drawn].argsort(stable=True)]
    is_held_out = torch.zeros_like(labels, dtype=torch.bool)
    is_held_out[by_class[_HELD_OUT - 1 :: _HELD_OUT]] = True
    return is_held_out
