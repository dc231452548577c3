"""Heads, what they read, what is trained with them; their loss and figures."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from data.settings import UserError
from finetune.backbone import make_backbone
from finetune.config import HeadConfig, MixConfig
from finetune.head import Classifier
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.training.config import OptimConfig
from pretrain.training.device import add_sums
from pretrain.training.optim import make_optimizer

TINY = EncoderConfig(name="vit_tiny_patch16_224", patch_size=4, embed_dim=32, depth=3, num_heads=2)
NAMES = ["ant", "bee", "cat", "dog", "emu", "fox"]


def classifier(names: list[str] = NAMES, **config: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(make_encoder(TINY, (16, 16)), names, HeadConfig(**config)).eval()


def batch(labels: list[int], weights: list[float]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (len(labels), 3, 16, 16), generator=generator, dtype=torch.uint8)
    return {"image": images, "label": torch.tensor(labels), "weight": torch.tensor(weights)}


# ---------------------------------------------------------------- loss and figures


@pytest.mark.parametrize("pooling", ["average", "class", "both"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_each_head_starts_at_zero_so_the_loss_is_that_of_chance(pooling: str, kind: str) -> None:
    model = classifier(pooling=pooling, kind=kind)
    output = model(batch([0, 5, 2], [1, 1, 1]))
    assert model.summarise(output.sums)["loss"] == pytest.approx(math.log(6), abs=1e-6)
    assert output.logits is not None
    assert output.logits.shape == (3, 6)


def test_padding_and_bad_samples_count_for_nothing() -> None:
    model = classifier()
    torch.nn.init.normal_(model.last_layer.weight)
    whole, padded = batch([1, 3], [1, 1]), batch([1, 3, -1, -1], [1, 1, 0, 0])
    padded["image"][:2] = whole["image"]
    one, other = (model.summarise(model(b).sums) for b in (whole, padded))
    assert one == pytest.approx(other, abs=1e-6)


def test_sums_add_up_over_batches() -> None:
    model = classifier()
    torch.nn.init.normal_(model.last_layer.weight)
    whole = batch([0, 1, 2, 3, 4, 5], [1] * 6)
    parts = [{name: t[i : i + 2] for name, t in whole.items()} for i in (0, 2, 4)]
    added: dict[str, torch.Tensor] = {}
    for part in parts:
        added = add_sums(added, model(part).sums)
    assert model.summarise(added) == pytest.approx(model.summarise(model(whole).sums), abs=1e-6)


def test_smoothing_is_for_training_alone_and_as_torch_has_it() -> None:
    plain, smooth = classifier(), classifier(label_smoothing=0.5)
    for model in (plain, smooth):
        torch.manual_seed(2)
        torch.nn.init.normal_(model.last_layer.weight)
    b = batch([0, 1], [1, 1])
    assert torch.equal(plain(b).loss, smooth(b).loss)
    output = smooth.train()(b)
    own = torch.nn.functional.cross_entropy
    expected = own(output.logits, b["label"], label_smoothing=0.5, reduction="sum")
    torch.testing.assert_close(output.loss, expected)


def test_many_labels_are_asked_for_one_by_one() -> None:
    model = Classifier(make_encoder(TINY, (16, 16)), NAMES, HeadConfig(), is_multi_label=True)
    b = batch([0, 0], [1.0, 0.0])
    b["label"] = torch.tensor([[1, 0, 1, 0, 0, 0], [-1] * 6])  # as padding comes
    figures = model.summarise(model(b).sums)
    assert figures == {"loss": pytest.approx(math.log(2), abs=1e-6)}


# ---------------------------------------------------------------- what a head reads


def test_poolings_are_those_of_the_tokens() -> None:
    images = batch([0, 1], [1, 1])["image"]
    expected: dict[str, torch.Tensor] = {}
    for pooling in ("average", "class", "both"):
        model = classifier(pooling=pooling)
        tokens = model.encoder.forward_features(model.normalise(images))
        expected |= {"average": tokens[:, 1:].mean(1), "class": tokens[:, 0]}
        expected["both"] = torch.cat([expected["class"], expected["average"]], 1)
        torch.nn.init.normal_(model.last_layer.weight)
        torch.testing.assert_close(model.logits(images), model.last_layer(expected[pooling]))


def test_a_hidden_layer_stands_beside_the_encoder_which_keeps_no_head() -> None:
    model = classifier(kind="mlp")
    assert model.head is not None
    assert model.encoder.num_classes == 0
    assert not any(name.startswith("encoder.head") for name in model.state_dict())
    hidden = model.head[0]
    assert isinstance(hidden, torch.nn.Linear)
    assert hidden.weight.abs().sum() > 0


def test_what_an_encoder_cannot_pool_is_refused() -> None:
    without = replace(TINY, args={"class_token": False})
    with pytest.raises(UserError, match=r"head.pooling=both, but the encoder has no class token"):
        Classifier(make_encoder(without, (16, 16)), NAMES, HeadConfig(pooling="both"))
    resnet = make_backbone(EncoderConfig(name="test_resnet"), (32, 32))
    with pytest.raises(UserError, match=r"head.pooling=class needs a VisionTransformer"):
        Classifier(resnet, NAMES, HeadConfig(pooling="class"))


# ---------------------------------------------------------------- what is trained


@pytest.mark.parametrize(
    ("num", "tuned"),
    [
        (0, ("encoder.head.",)),
        (1, ("encoder.head.", "encoder.norm.", "encoder.blocks.2.")),
        (2, ("encoder.head.", "encoder.norm.", "encoder.blocks.1.", "encoder.blocks.2.")),
        (None, ("encoder.",)),
    ],
)
def test_only_what_is_tuned_changes(num: int | None, tuned: tuple[str, ...]) -> None:
    model = classifier(tuned_blocks=num)
    torch.nn.init.normal_(model.last_layer.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(model, model.encoder, OptimConfig(lr=0.1, algorithm="sgd"))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    model.train()(batch([0, 1, 2], [1, 1, 1])).loss.backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        is_frozen = not name.startswith(tuned)
        # the gradient of a key's bias is zero up to rounding: a softmax cancels it
        assert torch.equal(value, before[name]) == is_frozen or name.endswith("qkv.bias"), name


def test_frozen_parts_stay_in_evaluation() -> None:
    config = replace(TINY, args={"proj_drop_rate": 0.5})
    model = Classifier(make_encoder(config, (16, 16)), NAMES, HeadConfig(tuned_blocks=0)).train()
    torch.nn.init.normal_(model.last_layer.weight)
    b = batch([0, 1], [1, 1])
    assert torch.equal(model(b).loss, model(b).loss)
    assert model.training


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"head.tuned_blocks=4, but the encoder has 3 transformer"):
        classifier(tuned_blocks=4)
    resnet = make_backbone(EncoderConfig(name="test_resnet"), (32, 32))
    with pytest.raises(UserError, match=r"head.tuned_blocks=1, but the encoder has 0 transformer"):
        Classifier(resnet, NAMES, HeadConfig(tuned_blocks=1))


# ---------------------------------------------------------------- mixing


def test_mixing_is_for_training_alone() -> None:
    encoder = make_encoder(TINY, (16, 16))
    model = Classifier(encoder, NAMES, HeadConfig(), mix=MixConfig(mixup=0.8)).eval()
    torch.nn.init.normal_(model.last_layer.weight)
    b = batch([0, 1, 2, 3], [1, 1, 1, 1])
    assert torch.equal(model(b).loss, model(b).loss)
    model.train()
    assert not torch.equal(model(b).loss, model(b).loss)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_padding_changes_no_gradient_and_no_statistics(name: str) -> None:
    """A batch norm must not see the blank slots."""
    torch.manual_seed(0)
    model = Classifier(make_backbone(EncoderConfig(name=name), (160, 160)), NAMES, HeadConfig())
    torch.nn.init.normal_(model.last_layer.weight)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (2, 3, 160, 160), generator=generator, dtype=torch.uint8)
    twice = {
        "image": torch.cat([images, images]),
        "label": torch.tensor([0, 1, 0, 1]),
        "weight": torch.tensor([1.0, 1, 0, 0]),
    }
    padded = {**twice, "image": torch.cat([images, torch.zeros_like(images)])}
    padded["label"] = torch.tensor([0, 1, -1, -1])
    start = {name: value.clone() for name, value in model.state_dict().items()}
    ends: list[dict[str, torch.Tensor]] = []
    for b in (twice, padded):
        model.load_state_dict(start)
        model.zero_grad()
        model.train()(b).loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        ends.append({**model.state_dict(), **gradients})
        ends[-1] = {name: value.clone() for name, value in ends[-1].items()}
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name])
