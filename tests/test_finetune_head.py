"""The zero-initialised head, its loss, and its figures."""

import math

import pytest
import torch

from finetune.head import Classifier, HeadConfig
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.loop import add_sums

TINY = EncoderConfig(name="vit_tiny_patch16_224", patch_size=4, embed_dim=32, depth=2, num_heads=2)


def classifier(num_classes: int = 6, smoothing: float = 0.0) -> Classifier:
    torch.manual_seed(0)
    encoder = make_encoder(TINY, (16, 16))
    return Classifier(encoder, num_classes, HeadConfig(smoothing)).eval()


def head(model: Classifier) -> torch.nn.Linear:
    assert isinstance(model.encoder.head, torch.nn.Linear)
    return model.encoder.head


def batch(labels: list[int], weights: list[float]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (len(labels), 3, 16, 16), generator=generator, dtype=torch.uint8)
    return {"image": images, "label": torch.tensor(labels), "weight": torch.tensor(weights)}


def test_the_head_starts_at_zero_so_the_loss_is_that_of_chance() -> None:
    model = classifier()
    output = model(batch([0, 5, 2], [1, 1, 1]))
    assert model.summarise(output.sums)["loss"] == pytest.approx(math.log(6), abs=1e-6)
    assert head(model).weight.shape == (6, 32)


def test_padding_and_bad_samples_count_for_nothing() -> None:
    model = classifier()
    torch.nn.init.normal_(head(model).weight)
    whole, padded = batch([1, 3], [1, 1]), batch([1, 3, -1, -1], [1, 1, 0, 0])
    assert torch.equal(whole["image"][0], padded["image"][0])
    padded["image"][:2] = whole["image"]
    one, other = (model.summarise(model(b).sums) for b in (whole, padded))
    assert one == pytest.approx(other, abs=1e-6)


def test_figures_against_counting() -> None:
    model = classifier(3)
    logits = torch.tensor([[9.0, 0, 0], [9.0, 0, 0], [0, 9.0, 0], [9.0, 0, 0]])
    labels, weight = torch.tensor([0, 0, 1, 2]), torch.ones(4)
    sums = model._sums(logits, labels, weight) | {"loss": torch.tensor(4.0)}
    figures = model.summarise(sums)
    assert figures["accuracy"] == pytest.approx(3 / 4)
    assert figures["accuracy_balanced"] == pytest.approx(2 / 3)
    assert figures["accuracy_top5"] == 1.0
    assert figures["loss"] == 1.0


def test_sums_add_up_over_batches() -> None:
    model = classifier()
    torch.nn.init.normal_(head(model).weight)
    whole = batch([0, 1, 2, 3, 4, 5], [1] * 6)
    parts = [{name: t[i : i + 2] for name, t in whole.items()} for i in (0, 2, 4)]
    added: dict[str, torch.Tensor] = {}
    for part in parts:
        added = add_sums(added, model(part).sums)
    assert model.summarise(added) == pytest.approx(model.summarise(model(whole).sums), abs=1e-6)


def test_smoothing_is_for_training_alone() -> None:
    plain, smooth = classifier(), classifier(smoothing=0.5)
    for model in (plain, smooth):
        torch.manual_seed(2)
        torch.nn.init.normal_(head(model).weight)
    b = batch([0, 1], [1, 1])
    assert torch.equal(plain(b).loss, smooth(b).loss)
    assert not torch.equal(plain.train()(b).loss, smooth.train()(b).loss)
