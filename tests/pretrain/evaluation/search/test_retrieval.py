"""Retrieval is what torchmetrics says of all scores at once."""

import pytest
import torch
from torch.nn import functional as F
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP

from pretrain.evaluation.features import Features
from pretrain.evaluation.search import retrieval
from pretrain.evaluation.search.retrieval import AT, retrieve


def draw(number: int, seed: int, num_classes: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (number,), generator=generator)
    noise = torch.randn(number, 8, generator=generator)
    return Features(F.one_hot(labels, 8) + noise, labels, torch.arange(number))


def test_recall_and_map_are_those_of_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_NUM_SCORES", 500)  # 8 queries at a time
    gallery, queries = draw(60, 0, num_classes=4), draw(27, 1, num_classes=5)  # 4 is not there
    found = retrieve(gallery, queries)
    # above 0: torchmetrics takes images of other scores for wrong ones
    scores = 2 + F.normalize(queries.values) @ F.normalize(gallery.values).T
    target = queries.labels[:, None] == gallery.labels
    indexes = torch.arange(27)[:, None].expand(-1, 60)
    whole = scores.flatten(), target.flatten(), indexes.flatten()
    expected = float(RetrievalMAP()(*whole))
    assert found.mean_average_precision == pytest.approx(expected, abs=1e-6)
    assert 0 < expected < 1
    for at in AT:
        rate = float(RetrievalHitRate(top_k=at)(*whole))
        assert found.recall[at] == pytest.approx(rate, abs=1e-6)


def test_by_hand() -> None:
    values = torch.tensor([[1.0, 0], [1, 0.1], [1, 0.2], [0, 1]])
    gallery = Features(values, torch.tensor([1, 0, 1, 0]), torch.arange(4))
    query = Features(torch.tensor([[1.0, 0]]), torch.tensor([0]), torch.tensor([9]))
    found = retrieve(gallery, query)
    assert found.recall == {1: 0, 5: 1, 10: 1}
    assert found.mean_average_precision == pytest.approx((1 / 2 + 2 / 4) / 2)
