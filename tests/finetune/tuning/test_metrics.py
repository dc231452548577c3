"""A classifier's figures: against scikit-learn, on several ranks, and where data is scarce."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import (  # pyright: ignore[reportMissingTypeStubs]
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    log_loss,
    top_k_accuracy_score,
)
from torch import Tensor

from finetune.tuning.metrics import Figures, Scores
from tests.launching import run_ranks

NUM_CLASSES = 7
NUM_SAMPLES = 203
ABSENT = 4  # a class that no sample has


def draw(is_multi_label: bool) -> tuple[Tensor, Tensor]:
    """Draw logits that know something of their labels; one class never occurs."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn((NUM_SAMPLES, NUM_CLASSES), generator=generator)
    if is_multi_label:
        labels = (logits + 2 * torch.randn(logits.shape, generator=generator) > 1.5).long()
        labels[:, ABSENT] = 0
        return logits, labels
    noisy = logits + torch.randn(logits.shape, generator=generator)
    noisy[:, ABSENT] = -math.inf
    return logits, noisy.argmax(1)


def score(logits: Tensor, labels: Tensor, batch_size: int = 50) -> Figures:
    scores = Scores(logits.shape[1], labels.ndim == 2)
    for start in range(0, len(logits), batch_size):
        part = slice(start, start + batch_size)
        scores.update(logits[part], labels[part], torch.ones(len(logits[part])))
    return scores.compute()


# ---------------------------------------------------------------- against scikit-learn


def test_one_label() -> None:
    logits, labels = draw(False)
    found = score(logits, labels)
    probability = logits.double().softmax(1).numpy()
    true, answers, every = labels.numpy(), logits.argmax(1).numpy(), range(NUM_CLASSES)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = balanced_accuracy_score(true, answers)
    assert found.scalars == pytest.approx(
        {
            "loss": log_loss(true, probability, labels=every),
            "accuracy": accuracy_score(true, answers),
            "accuracy_top5": top_k_accuracy_score(true, probability, k=5, labels=every),
            "accuracy_balanced": balanced,
            "calibration_error": expected_calibration_error(probability, true),
        },
        rel=1e-6,
    )
    assert found.scalars["accuracy"] == accuracy_score(true, answers)
    table = confusion_matrix(true, answers, labels=every)
    assert found.details["confusion"] == table.tolist()
    assert found.details["support"] == np.bincount(true, minlength=NUM_CLASSES).tolist()
    by_class = [None if k == ABSENT else table[k, k] / table[k].sum() for k in every]
    assert found.details["accuracy_by_class"] == by_class
    json.dumps(found.details, allow_nan=False)


def expected_calibration_error(probability: np.ndarray, true: np.ndarray) -> float:
    """Follow Guo et al. 2017, equation 3; scikit-learn has curves only."""
    confidence, right = probability.max(1), probability.argmax(1) == true
    bins = np.floor(confidence * 15)
    inside = [bins == number for number in range(16)]
    gaps = [
        abs(right[own].mean() - confidence[own].mean()) * own.sum() for own in inside if own.any()
    ]
    return sum(gaps) / len(true)


def test_many_labels() -> None:
    logits, labels = draw(True)
    found = score(logits, labels)
    scores, true = logits.numpy(), labels.numpy()
    by_class = [
        None if k == ABSENT else average_precision_score(true[:, k], scores[:, k])
        for k in range(NUM_CLASSES)
    ]
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits.double(), labels.double())
    assert found.scalars == pytest.approx(
        {
            "loss": float(bce),
            "map": np.mean([value for value in by_class if value is not None]),
            "map_micro": average_precision_score(true.ravel(), scores.ravel()),
        },
        rel=1e-6,
    )
    for own, expected in zip(found.details["average_precision"], by_class, strict=True):
        assert own == (None if expected is None else pytest.approx(expected, rel=1e-6))
    assert found.details["support"] == true.sum(0).tolist()
    json.dumps(found.details, allow_nan=False)


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_logits_between_0_and_1_are_no_probabilities(is_multi_label: bool) -> None:
    """torchmetrics guesses by the batch what it was given."""
    logits, labels = draw(is_multi_label)
    small = logits.clone()
    small[:50] = small[:50].sigmoid()
    assert score(small, labels).scalars == pytest.approx(score(small, labels, 203).scalars)
    assert score(small[:50], labels[:50]).scalars["loss"] > 0
    if not is_multi_label:
        expected = expected_calibration_error(small.double().softmax(1).numpy(), labels.numpy())
        assert score(small, labels).scalars["calibration_error"] == pytest.approx(expected)


def test_high_scores_that_differ_are_not_tied() -> None:
    """A sigmoid in single precision is 1 from 17 on."""
    logits, labels = torch.tensor([[20.0], [25.0]]), torch.tensor([[0], [1]])
    assert score(logits, labels).scalars["map"] == 1.0


# ---------------------------------------------------------------- ties, few classes, many


def test_equal_logits_count_as_the_first_class_alone() -> None:
    """The zero-initialised head knows nothing; it must not be right about every class."""
    labels = torch.arange(10).repeat(3)
    found = score(torch.zeros(30, 10), labels)
    assert found.scalars["accuracy"] == found.scalars["accuracy_balanced"] == 0.1
    assert found.scalars["accuracy_top5"] == 0.5
    assert found.scalars["loss"] == pytest.approx(math.log(10))
    assert found.details["accuracy_by_class"] == [1.0] + [0.0] * 9


def test_equal_logits_of_many_labels_are_worth_the_positives_share() -> None:
    found = score(torch.zeros(4, 2), torch.tensor([[1, 0], [0, 0], [0, 0], [0, 1]]))
    assert found.scalars["map"] == found.scalars["map_micro"] == 0.25


@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_top5_of_fewer_classes_is_all(num_classes: int) -> None:
    logits = torch.randn((20, num_classes), generator=torch.Generator().manual_seed(0))
    found = score(logits, torch.zeros(20, dtype=torch.int64))
    assert found.scalars["accuracy_top5"] == 1.0
    assert found.scalars["accuracy"] == float((logits.argmax(1) == 0).double().mean())
    assert np.shape(found.details["confusion"]) == (num_classes, num_classes)


def test_the_confusion_matrix_of_very_many_classes_is_left_out_and_said() -> None:
    found = score(torch.eye(1_001), torch.arange(1_001))
    assert found.scalars["accuracy"] == found.scalars["accuracy_balanced"] == 1.0
    assert "confusion" not in found.details
    assert found.details["no_confusion"] == "1001 classes, over 1000"


def test_logits_that_are_not_finite() -> None:
    """A run that diverged gets figures too; its loss says what they are worth."""
    found = score(torch.full((6, 3), math.nan), torch.arange(6) % 3)
    assert math.isnan(found.scalars["loss"])
    assert found.scalars["accuracy"] == pytest.approx(1 / 3)


# ---------------------------------------------------------------- what does not count


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_samples_of_weight_0_are_left_out(is_multi_label: bool) -> None:
    logits, labels = draw(is_multi_label)
    padded = torch.cat([logits, torch.full((5, NUM_CLASSES), math.nan)])
    marked = torch.cat([labels, torch.full_like(labels[:5], -1)])
    scores = Scores(NUM_CLASSES, is_multi_label)
    scores.update(padded, marked, torch.cat([torch.ones(NUM_SAMPLES), torch.zeros(5)]))
    scores.update(padded[-5:], marked[-5:], torch.zeros(5))  # a batch with none left
    assert scores.compute() == score(logits, labels, NUM_SAMPLES)


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_no_sample_at_all(is_multi_label: bool) -> None:
    found = Scores(3, is_multi_label).compute()
    assert all(math.isnan(value) for value in found.scalars.values())
    assert found.details["support"] == [0, 0, 0]
    json.dumps(found.details, allow_nan=False)


def test_deterministic_mode_counts_without_a_large_table() -> None:
    """torchmetrics would take 1,000 x 1,000 integers a sample, 4 GB here."""
    torch.use_deterministic_algorithms(True)
    try:
        labels = torch.arange(512) % 1_000
        found = score(torch.eye(1_000)[:512], labels, 512)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert found.scalars["accuracy"] == 1.0


# ---------------------------------------------------------------- several ranks


CUTS = {1: [0, 203], 2: [0, 50, 203], 3: [0, 0, 171, 203]}  # the first of three has no good sample


def main(arguments: list[str]) -> None:
    """Be one rank of `test_the_number_of_ranks`; write the figures."""
    out = Path(arguments[0])
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        torch.distributed.init_process_group("gloo")
    answers: list[Any] = []
    for is_multi_label in (False, True):
        logits, labels = draw(is_multi_label)
        scores = Scores(NUM_CLASSES, is_multi_label)
        first, last = CUTS[world][rank : rank + 2]
        for start in range(first, last, 32):
            part = slice(start, min(start + 32, last))
            padding = torch.zeros(3, dtype=torch.int64)
            places = torch.cat([torch.arange(start, part.stop), padding])
            weight = (torch.arange(len(places)) < part.stop - start).float()
            scores.update(logits[places], labels[places], weight)
        figures = scores.compute()
        answers.append([figures.scalars, figures.details])
    Path(out, f"{world}-{rank}.json").write_text(json.dumps(answers))
    if world > 1:
        torch.distributed.destroy_process_group()


def test_the_number_of_ranks(tmp_path: Path) -> None:
    """Also where the ranks have unequal numbers, and one has none."""
    for world in CUTS:
        run_ranks(
            [str(tmp_path)], world, tmp_path / "logs", script="tests.finetune.tuning.test_metrics"
        )
    read = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert len(read) == 6
    exact = {"accuracy", "accuracy_top5", "accuracy_balanced"}
    for (one, one_details), (many, many_details) in read.values():
        (alone, alone_details), (alone_many, alone_many_details) = read["1-0"]
        assert {name: one[name] for name in exact} == {name: alone[name] for name in exact}
        assert (one_details, many_details) == (alone_details, alone_many_details)
        assert one == pytest.approx(alone, rel=1e-6)
        assert many == pytest.approx(alone_many, rel=1e-9)


def test_a_sample_of_no_class_is_wrong_and_counts_nowhere_else() -> None:
    logits, labels = draw(False)
    known = score(logits, labels)
    more = score(torch.cat([logits, logits[:50]]), torch.cat([labels, torch.full((50,), -1)]))
    ratio = NUM_SAMPLES / (NUM_SAMPLES + 50)
    for name, value in known.scalars.items():
        share = ratio if name in ("accuracy", "accuracy_top5") else 1
        assert more.scalars[name] == pytest.approx(share * value), name
    assert more.details == {**known.details, "num_of_no_class": 50}
