"""The learning rate as a function of the step; the groups of parameters."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.training.config import OptimConfig
from pretrain.training.optim import make_optimizer, set_lr


class Model(nn.Module):
    """An encoder, a lone token and a head."""

    def __init__(self, position: str | None = None, position_at: str | None = None) -> None:
        super().__init__()
        self.encoder = make_encoder(
            EncoderConfig(
                name="vit_tiny_patch16_224",
                patch_size=4,
                embed_dim=32,
                depth=3,
                num_heads=2,
                position=position,
                position_at=position_at,
                args={"reg_tokens": 1},
            ),
            (16, 16),
        )
        self.mask_token = nn.Parameter(torch.zeros(32))
        self.head = nn.Linear(32, 5)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


def groups(model: Model, config: OptimConfig) -> dict[str, dict[str, float]]:
    """Map each parameter's name to what its group says."""
    optimizer = make_optimizer(model, model.encoder, config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(parameter)], {key: group[key] for key in ("weight_decay", "lr_scale")})
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(found) == len(names)  # each once
    return dict(found)


# ---------------------------------------------------------------- the schedule


def test_the_schedule_at_its_ends() -> None:
    config = OptimConfig(steps=110, warmup_steps=10, lr=2.0)
    assert config.lr_at(0) == pytest.approx(0.2)
    assert config.lr_at(9) == pytest.approx(2.0)
    assert config.lr_at(10) == pytest.approx(2.0)
    assert config.lr_at(60) == pytest.approx(1.0)  # the middle of the cosine
    assert config.lr_at(109) == pytest.approx(1 - math.cos(math.pi / 100))
    assert config.lr_at(109) > 0


@given(st.integers(1, 300), st.data())
def test_it_rises_to_the_peak_and_then_falls(steps: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, steps))
    config = OptimConfig(steps=steps, warmup_steps=warmup, lr=3.0)
    rates = [config.lr_at(step) for step in range(steps)]
    rising, falling = rates[:warmup], rates[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert max(rates) == pytest.approx(3.0)
    assert min(rates) > 0


def test_set_lr_keeps_the_scales_of_the_layers(model: Model) -> None:
    optimizer = make_optimizer(model, model.encoder, OptimConfig(layer_decay=0.5))
    for _ in range(2):  # a rate is set, not multiplied up
        set_lr(optimizer, 0.8)
    rates = {group["lr"] for group in optimizer.param_groups}
    assert rates == {0.8 * 0.5**power for power in range(4)}


# ---------------------------------------------------------------- the groups


def test_biases_norms_positions_and_tokens_do_not_decay(model: Model) -> None:
    decays = {name: group["weight_decay"] for name, group in groups(model, OptimConfig()).items()}
    for name, parameter in model.named_parameters():
        is_free = name.endswith((".bias", "_token")) or "norm" in name or parameter.ndim < 2
        is_free = is_free or name in ("encoder.pos_embed", "encoder.reg_token")
        assert decays[name] == (0.0 if is_free else 0.1), name
    assert decays["head.weight"] == decays["encoder.blocks.0.attn.qkv.weight"] == 0.1


@pytest.mark.parametrize(("num_classes", "last"), [(0, 0), (7, 1)])
def test_layer_decay_scales_from_the_head_down(num_classes: int, last: int) -> None:
    """A classifier is a layer of the encoder's own, as in MAE; the colour head stands outside."""
    model = Model()
    model.encoder.reset_classifier(num_classes)
    found = groups(model, OptimConfig(layer_decay=0.5))
    scales = {name: group["lr_scale"] for name, group in found.items()}
    assert scales["head.weight"] == scales["head.bias"] == scales["mask_token"] == 1
    assert scales.get("encoder.head.weight", 1) == 1
    for block in range(3):
        assert scales[f"encoder.blocks.{block}.mlp.fc1.weight"] == 0.5 ** (2 - block + last)
        assert scales[f"encoder.blocks.{block}.norm1.bias"] == 0.5 ** (2 - block + last)
    assert scales["encoder.norm.weight"] == scales["encoder.blocks.2.norm1.bias"]
    stem = {"encoder.patch_embed.proj.weight", "encoder.pos_embed", "encoder.cls_token"}
    assert {scales[name] for name in stem} == {0.5 ** (3 + last)}


@pytest.mark.parametrize(
    ("kind", "at", "names", "power"),
    [
        ("learned_2d", "stem", ("pos_embed_table.rows", "pos_embed_table.columns"), 3),
        ("learned_1d", "every_layer_shared", ("pos_embed_table.table",), 3),
        ("learned_1d", "every_layer", ("blocks.2.position.table",), 0),
        ("relative", "stem", ("blocks.1.attn.position.table",), 1),
    ],
)
def test_positions_do_not_decay_and_go_with_their_layer(
    kind: str, at: str, names: tuple[str, ...], power: int
) -> None:
    model = Model(position=kind, position_at=at)
    found = groups(model, OptimConfig(layer_decay=0.5))
    for name in names:
        expected = {"weight_decay": 0.0, "lr_scale": 0.5**power}
        assert found[f"encoder.{name}"] == expected, name
    decayed = {name for name, group in found.items() if group["weight_decay"]}
    assert not any("pos" in name for name in decayed)


def test_without_layer_decay_all_rates_are_equal(model: Model) -> None:
    assert {group["lr_scale"] for group in groups(model, OptimConfig()).values()} == {1}


def test_the_algorithms(model: Model) -> None:
    adamw = make_optimizer(model, model.encoder, OptimConfig(betas=(0.8, 0.95)))
    assert isinstance(adamw, torch.optim.AdamW)
    assert {group["betas"] for group in adamw.param_groups} == {(0.8, 0.95)}
    sgd = make_optimizer(model, model.encoder, OptimConfig(algorithm="sgd", momentum=0.7))
    assert isinstance(sgd, torch.optim.SGD)
    assert {(g["momentum"], g["nesterov"]) for g in sgd.param_groups} == {(0.7, False)}


def test_a_step_of_adamw_is_the_papers() -> None:
    """One parameter, one step: m / (sqrt(v) + eps) is the sign; the decay is decoupled."""
    model = Model()
    optimizer = make_optimizer(model, model.encoder, OptimConfig(weight_decay=0.1))
    before = model.head.weight.detach().clone()
    model.head.weight.grad = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    set_lr(optimizer, 0.01)
    optimizer.step()
    expected = before * (1 - 0.01 * 0.1) - 0.01 * model.head.weight.grad.sign()
    torch.testing.assert_close(model.head.weight.detach(), expected, rtol=1e-4, atol=1e-6)
