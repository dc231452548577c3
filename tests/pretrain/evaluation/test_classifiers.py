"""Ridge, k-NN and logistic regression, against slow references and scikit-learn."""

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

from data.settings import UserError
from pretrain.evaluation import classifiers
from pretrain.evaluation.classifiers import (
    Linear,
    Scale,
    check_penalties,
    choose_shots,
    few_shot,
    knn,
    linear_probe,
    logistic,
    ridge,
    ridge_accuracy,
)
from pretrain.evaluation.features import Features

KEYS = ("fewshot.shots", "data.train")


def features(values: torch.Tensor, labels: torch.Tensor) -> Features:
    return Features(values, labels, torch.arange(len(labels)))


def problem(num: int, width: int, seed: int) -> Features:
    """Draw two classes that one direction tells apart, among noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 2
    values = torch.randn(num, width, generator=generator)
    values[:, 0] += 6.0 * labels
    return features(values * 3 + 5, labels)


def clusters(num: int, seed: int, noise: float = 1.5) -> Features:
    """Draw seven classes around fixed centres of 12 numbers."""
    centres = torch.randn(7, 12, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 7
    return features(
        centres[labels] + noise * torch.randn(num, 12, generator=generator) + 0.5, labels
    )


# ---------------------------------------------------------------- ridge


def test_ridge_is_the_minimum_of_its_objective() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    weights = ridge(x, y, penalty=2.0).requires_grad_()
    with_bias = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], dim=1)
    objective = (with_bias @ weights - y).pow(2).sum() + 2.0 * weights.pow(2).sum()
    [gradient] = torch.autograd.grad(objective, weights)
    assert gradient.abs().max() < 1e-10


@pytest.mark.parametrize(("num", "width"), [(30, 8), (6, 40)], ids=["tall", "wide"])
@pytest.mark.parametrize("penalty", [0.01, 10.0])
def test_ridge_agrees_with_scikit_learn_and_with_least_squares(
    num: int, width: int, penalty: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(num, width, generator=generator), torch.randn(num, 3, generator=generator)
    weights = ridge(x, y, penalty).numpy()
    with_bias = np.concatenate([x.double().numpy(), np.ones((num, 1))], axis=1)
    theirs = Ridge(alpha=penalty, fit_intercept=False).fit(with_bias, y.double().numpy())
    assert np.abs(weights - theirs.coef_.T).max() < 1e-4
    # |[A; sqrt(p) I] W - [Y; 0]|^2 is the same objective
    rows = np.concatenate([with_bias, math.sqrt(penalty) * np.eye(width + 1)])
    wanted = np.concatenate([y.double().numpy(), np.zeros((width + 1, 3))])
    reference = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    assert np.abs(weights - reference).max() < 1e-10


def test_accuracy_on_separable_classes_whatever_their_scale() -> None:
    assert ridge_accuracy(problem(40, 8, 0), problem(200, 8, 1), penalty=1.0) > 0.98


def test_accuracy_counts_wrong_answers() -> None:
    val = problem(200, 8, 1)
    swapped = features(val.values, 1 - val.labels)
    assert ridge_accuracy(problem(40, 8, 0), swapped, penalty=1.0) < 0.02


def test_shots_are_chosen_among_all_that_are_listed_and_unusable_ones_left_out() -> None:
    whole = problem(40, 8, 0)
    choices = choose_shots(whole.labels.numpy(), [3, 20], 2, KEYS)
    places = choices[3][1]
    assert whole.labels[places].tolist() == [0, 0, 0, 1, 1, 1]
    assert not torch.equal(choices[3][0], places)
    is_usable = torch.arange(40) != places[4]
    usable = whole.where(is_usable)
    assert usable.at(places).positions.tolist() == sorted({*places.tolist()} - {int(places[4])})
    found = few_shot(usable, problem(200, 8, 1), choices)
    assert {num: len(accuracies) for num, accuracies in found.items()} == {3: 2, 20: 2}


def test_more_shots_than_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"^probe.shots has 9, but class 1 of probe.train has only"):
        choose_shots(np.array([0] * 9 + [1] * 8), [1, 9], 1, ("probe.shots", "probe.train"))


# ---------------------------------------------------------------- nearest neighbours


def slow_votes(train: Features, val: Features, neighbours: int, temperature: float) -> np.ndarray:
    """Sort all similarities of one image after the other."""
    scores = np.zeros((len(val.labels), 7))
    for row, value in enumerate(val.values.double()):
        similarity = F.cosine_similarity(value[None], train.values.double())
        for place in similarity.argsort(descending=True)[:neighbours]:
            vote = math.exp(float(similarity[place]) / temperature)
            scores[row, train.labels[place]] += vote
    return scores


@pytest.mark.parametrize("neighbours", [1, 20])
def test_nearest_neighbours_agree_with_a_slow_vote(
    neighbours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = clusters(150, 1), clusters(90, 2)
    scores = slow_votes(train, val, neighbours, 0.07)
    truth = val.labels.numpy()
    whole = knn(train, val, neighbours)
    assert whole.top1 == pytest.approx((scores.argmax(1) == truth).mean(), abs=1e-12)
    assert 0.3 < whole.top1 < 1
    ranks = (scores > scores[np.arange(90), truth][:, None]).sum(1)
    is_voted = scores[np.arange(90), truth] > 0
    if neighbours == 20:
        assert whole.top5 == pytest.approx((is_voted & (ranks < 5)).mean(), abs=1e-12)
    monkeypatch.setattr(classifiers, "_NUM_SCORES", 1000)  # six images at a time, then the rest
    assert knn(train, val, neighbours).top1 == whole.top1


def test_nearest_neighbours_agree_with_scikit_learn() -> None:
    train, val = clusters(150, 3), clusters(90, 4)

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / 0.07)

    theirs = KNeighborsClassifier(20, weights=cast(Any, weights), metric="cosine")
    theirs.fit(train.values.numpy(), train.labels.numpy())
    accuracy = theirs.score(val.values.numpy(), val.labels.numpy())
    assert knn(train, val, 20).top1 == pytest.approx(accuracy, abs=1e-12)


# ---------------------------------------------------------------- logistic regression


@pytest.mark.parametrize("counts", [None, [1.0, 4.0, 0.5, 1.0, 2.0, 1.0, 0.1]])
@pytest.mark.parametrize("penalty", [1e-4, 1e-1])
def test_logistic_regression_agrees_with_scikit_learn(
    penalty: float, counts: list[float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = clusters(210, 5), clusters(70, 6)
    scale = Scale.of(train.values)
    x, y = scale(train.values), train.labels
    monkeypatch.setattr(classifiers, "_NUM_SCORES", 500)  # several chunks
    class_weights = None if counts is None else torch.tensor(counts, dtype=torch.float64)
    weights = logistic(x, y, 7, penalty, class_weights=class_weights)
    theirs = LogisticRegression(
        C=1 / (len(y) * penalty),
        tol=1e-10,
        max_iter=10_000,
        class_weight=None if counts is None else dict(enumerate(counts)),
    )
    theirs.fit(x.double().numpy(), y.numpy())
    new = scale(val.values).double()
    ours = torch.softmax(new @ weights[:-1] + weights[-1], dim=1).numpy()
    assert np.abs(ours - theirs.predict_proba(new.numpy())).max() < 1e-3


@pytest.mark.slow
def test_a_linear_probe_chooses_its_penalty_on_the_held_out_tenth() -> None:
    train, val = clusters(140, 7, noise=1.5), clusters(700, 8, noise=1.5)
    found = linear_probe(train, penalties := [1e-8, 1e-1, 1e3])
    alone = {each: linear_probe(train, [each]) for each in penalties}
    assert torch.equal(found.classifier.weights, alone[found.penalty].classifier.weights)
    # so strong that nothing is learnt but how frequent each class is; so weak that noise is
    top1 = {each: probe.classifier.accuracy(val).top1 for each, probe in alone.items()}
    assert top1[1e-1] > max(top1[1e3], top1[1e-8])
    assert found.held_out == alone[1e-1].held_out < min(alone[1e3].held_out, alone[1e-8].held_out)


def test_a_few_images_hold_none_out() -> None:
    probe = linear_probe(clusters(19, 7), [1e-1])
    assert probe.held_out == math.inf


def test_folded_weights_answer_as_the_probe() -> None:
    train, val = clusters(140, 7), clusters(50, 8)
    train = features(train.values * torch.linspace(0.01, 100, train.values.shape[1]), train.labels)
    probe = Linear.fit(train, 1e-2)
    weight, bias = probe.folded()
    assert torch.allclose(val.values.double() @ weight.T + bias, probe(val.values), atol=1e-5)


def test_a_tenth_of_each_class_is_held_out() -> None:
    labels = torch.arange(200) % 4
    is_held_out = classifiers._held_out(labels)
    assert torch.bincount(labels[is_held_out]).tolist() == [5, 5, 5, 5]


def test_several_penalties_need_images_to_choose_with() -> None:
    keys = ("probe.penalties", "data.train")
    check_penalties([0.1], np.zeros(5), keys)
    with pytest.raises(UserError, match=r"probe.penalties has 2, but data.train only 5 images"):
        check_penalties([0.1, 0.2], np.zeros(5), keys)
