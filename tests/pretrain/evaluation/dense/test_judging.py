"""Figures by hand, and settings that no validation image chooses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from data.segmented import IGNORED
from pretrain.evaluation.classifiers import silent
from pretrain.evaluation.dense.heads import Fit, Predict
from pretrain.evaluation.dense.judging import Figures, count_pixels, judge, standardise
from pretrain.evaluation.dense.patches import Patches

FIT = Fit(4, torch.device("cpu"), silent)


def make(number: int, seed: int = 0, classes: Sequence[int] = (0, 1, 2, IGNORED)) -> Patches:
    generator = np.random.default_rng(seed)
    masks = generator.choice(classes, (number, 4, 6)).astype(np.uint8)
    values = generator.normal(size=(number, 6, 5)).astype(np.float32)
    return Patches(torch.from_numpy(values), torch.from_numpy(masks), (2, 3))


def test_figures_are_those_of_a_confusion_matrix_by_hand() -> None:
    images = make(40)
    said = torch.from_numpy(np.random.default_rng(1).integers(0, 4, (40, 4, 6)))
    parts = iter(said.split(16))
    [matrix] = count_pixels(images, lambda _: [next(parts)], 1, FIT)

    expected = np.zeros((4, 4), int)
    for truth, found in zip(images.masks.flatten().tolist(), said.flatten().tolist(), strict=True):
        if truth != IGNORED:
            expected[truth, found] += 1
    assert np.array_equal(matrix.numpy(), expected)
    figures = Figures.of(matrix)
    ious, accuracies = [], []
    for number in range(3):  # class 3 is said, but no mask has it
        right = expected[number, number]
        ious.append(right / (expected[number].sum() + expected[:, number].sum() - right))
        accuracies.append(right / expected[number].sum())
    assert figures.iou == [*map(pytest.approx, ious), None]
    assert figures.accuracy == [*map(pytest.approx, accuracies), None]
    assert figures.miou == pytest.approx(np.mean(ious))
    assert figures.class_accuracy == pytest.approx(np.mean(accuracies))
    assert figures.pixel_accuracy == pytest.approx(np.trace(expected) / expected.sum())
    assert figures.pixels == pytest.approx((expected.sum(1) / expected.sum()).tolist())
    theirs = MulticlassJaccardIndex(4, average="none", ignore_index=IGNORED)
    assert theirs(said, images.masks.long())[:3].tolist() == pytest.approx(ious)


def test_a_setting_is_chosen_on_images_that_are_not_fitted() -> None:
    train, val = make(35), make(7, seed=1)
    fitted: list[Tensor] = []

    def head(images: Patches, settings: Sequence[Any], _: Fit) -> Predict:
        """Say the true class of so many of all known images, by the setting; else 3."""
        fitted.append(images.values)

        def predict(values: Tensor) -> list[Tensor]:
            seen.append(values)
            known = torch.cat([train.values, val.values])
            masks = torch.cat([train.masks, val.masks]).long()
            places = [int((known == one).all((1, 2)).nonzero()[0]) for one in values]
            truth = masks[places].clamp(max=3)
            right = torch.arange(truth.numel()).view_as(truth) % 100
            return [torch.where(right < setting, truth, 3) for setting in settings]

        return predict

    seen: list[Tensor] = []
    judged = judge(head, [10, 90, 50], train, val, FIT)
    assert judged.setting == 90
    assert judged.held_out is not None
    assert judged.held_out > 0.8
    chosen, last = fitted
    held = torch.cat(seen[:1])
    assert (len(chosen), len(held), len(last)) == (31, 4, 35)
    both = torch.cat([chosen, held])
    assert all((both == one).all((1, 2)).sum() == 1 for one in train.values)
    assert torch.equal(seen[-1], val.values)

    few = judge(head, [10], make(9), val, FIT)
    assert (few.setting, few.held_out) == (10, None)


def test_features_are_standardised_over_the_training_patches() -> None:
    train, val = make(20), make(5, seed=1)
    train.values.mul_(torch.arange(1.0, 6)).add_(7)
    flat = train.values.flatten(0, 1).double().clone()
    expected = (val.values - flat.mean(0)) / flat.std(0, correction=0)
    standardise(train, val)
    assert torch.allclose(val.values.double(), expected, atol=1e-4)
    assert train.values.mean((0, 1)).abs().max() < 1e-5
    assert torch.allclose(train.values.flatten(0, 1).std(0, correction=0), torch.ones(5))
