"""k-NN of patches against scikit-learn, and against a slow loop where pixels are ignored."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from data.segmented import IGNORED
from pretrain.evaluation.classifiers import silent
from pretrain.evaluation.dense import nearest
from pretrain.evaluation.dense.heads import Fit, Kept
from pretrain.evaluation.dense.nearest import NearestSettings, fit_nearest, vote
from pretrain.evaluation.dense.patches import Patches, join_pixels

SETTINGS = [NearestSettings(k, by) for by in ("cosine", "euclidean") for k in (1, 4, 9)]


def make_bank(number: int, classes: tuple[int, ...] = (0, 1, 2)) -> Kept:
    generator = np.random.default_rng(3)
    values = torch.from_numpy(generator.normal(size=(number, 6)).astype(np.float32))
    pixels = torch.from_numpy(generator.choice(classes, (number, 4)).astype(np.uint8))
    return Kept(values, pixels, torch.zeros(number, dtype=torch.int64))


QUERIES = torch.from_numpy(np.random.default_rng(4).normal(size=(60, 6)).astype(np.float32))


def test_votes_are_those_of_scikit_learn() -> None:
    bank = make_bank(150)
    found = vote(bank, QUERIES, SETTINGS, 3)
    for setting, answer in zip(SETTINGS, found, strict=True):
        theirs = KNeighborsClassifier(setting.neighbours, metric=setting.distance)
        theirs.fit(bank.values.double().numpy(), bank.pixels.numpy())
        assert np.array_equal(answer.numpy(), theirs.predict(QUERIES.double().numpy())), setting


def test_pixels_of_no_class_have_no_vote() -> None:
    bank = make_bank(150, (1, 2, IGNORED, IGNORED))
    [found] = vote(bank, QUERIES, [NearestSettings(3, "euclidean")], 3)
    num_silent = 0
    for query, answer in zip(QUERIES.double(), found.tolist(), strict=True):
        distances = (bank.values.double() - query).norm(dim=1)
        pixels = bank.pixels[distances.argsort()[:3]].tolist()
        every = Counter(p for row in pixels for p in row if p != IGNORED)
        for place, said in enumerate(answer):
            votes = Counter(row[place] for row in pixels if row[place] != IGNORED)
            num_silent += not votes
            counts = votes or every
            assert said == min(c for c in counts if counts[c] == max(counts.values()))
    assert num_silent > 5


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = make_bank(150)
    whole = vote(bank, QUERIES, SETTINGS, 3)
    monkeypatch.setattr(nearest, "_NUM_SCORES", 1000)  # three queries at a time
    for one, other in zip(whole, vote(bank, QUERIES, SETTINGS, 3), strict=True):
        assert torch.equal(one, other)


def test_an_image_of_the_bank_gets_its_own_mask() -> None:
    generator = np.random.default_rng(0)
    masks = torch.from_numpy(generator.integers(0, 3, (5, 4, 6)).astype(np.uint8))
    train = Patches(torch.from_numpy(generator.normal(size=(5, 6, 8))).float(), masks, (2, 3))
    fit = Fit(3, torch.device("cpu"), silent)
    [found] = fit_nearest(train, [NearestSettings(1, "cosine")], fit, most=100)(train.values)
    assert torch.equal(found, masks.long())
    more = [NearestSettings(50, "cosine")]  # more than there are: all of them vote
    [found] = fit_nearest(train, more, fit, most=100)(train.values[:1])
    counts = torch.stack([(train.pixels() == c).sum((0, 1)) for c in range(3)])
    expected = counts.argmax(0).view(1, 1, 4).expand(1, 6, 4)
    assert torch.equal(found, join_pixels(expected, (2, 3), (4, 6)))
