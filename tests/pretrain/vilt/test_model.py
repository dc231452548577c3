"""ViLT's model: what may and what may not change its answers."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data.settings import UserError
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.objective.config import CorruptionConfig, TargetConfig
from pretrain.vilt.config import LossConfig, TextConfig
from pretrain.vilt.model import Canvas, Pieces, ViltModel

PIECES = Pieces(60, pad=0, mask=4, special=frozenset(range(5)))
LENGTH, SIDE, PATCH = 12, 32, 8
ALL = LossConfig(matching=1.0, words=0.7, alignment=0.3, patches=0.5)


def make_model(loss: LossConfig = ALL, canvas: Canvas | None = None, **encoder: Any) -> ViltModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 2}
    config = EncoderConfig(name="vit_tiny_patch16_224", **(sizes | encoder))
    timms = make_encoder(config, size=(SIDE, SIDE), channels=3)
    if timms.pos_embed is not None:
        torch.nn.init.normal_(timms.pos_embed, std=0.5)
    parts = CorruptionConfig(), TargetConfig()
    return ViltModel(timms, PIECES, LENGTH, TextConfig(), loss, parts, canvas)


def make_batch(number: int = 6, side: int = SIDE) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    words = torch.full((number, LENGTH), -1)
    tokens = torch.zeros(number, LENGTH, dtype=torch.int64)
    for row in range(number):
        length = 3 + row % 6
        words[row, 1 : 1 + length] = torch.arange(length) // 2
        tokens[row, 1 : 1 + length] = torch.randint(5, 60, (length,), generator=generator)
        tokens[row, 0], tokens[row, 1 + length] = 2, 3
    return {
        "image": torch.randint(0, 256, (number, 3, side, side), generator=generator).byte(),
        "weight": torch.ones(number),
        "random_key": torch.arange(number) * 12345,
        "tokens": tokens,
        "words": words,
        "pair_tokens": tokens.roll(1, 0),
        "is_match": torch.arange(number) % 2,
        "num_cut": torch.arange(number),
    }


@pytest.fixture(params=[True, False], ids=["training", "evaluation"])
def is_training(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    model, batch = make_model(), make_batch()
    output = model(batch)
    figures = model.summarise(output.sums)
    parts = [
        figures["loss_matching"],
        0.7 * figures["loss_words"],
        0.3 * figures["loss_alignment"],
        0.5 * figures["loss_patches"],
    ]
    assert output.loss.item() / 6 == pytest.approx(sum(parts), rel=1e-5)
    assert figures["accuracy_matching_majority"] == pytest.approx(0.5)
    assert figures["cut_ratio"] == pytest.approx(15 / (15 + int((batch["words"] >= 0).sum())))


def test_each_loss_alone_is_what_it_is_among_others() -> None:
    batch, whole = make_batch(), make_model()
    expected = whole.summarise(whole(batch).sums)
    for name in ("matching", "words", "patches"):
        zeros = {"matching": 0.0, "words": 0.0, "alignment": 0.0, "patches": 0.0}
        model = make_model(LossConfig(**(zeros | {name: 1.0})))
        own = model.state_dict()
        model.load_state_dict({k: v for k, v in whole.state_dict().items() if k in own})
        figures = model.summarise(model(batch).sums)
        assert figures["loss"] == pytest.approx(expected[f"loss_{name}"], rel=1e-5)
        gone = {"matching", "words", "patches"} - {name}
        assert not any(f"loss_{other}" in figures for other in gone)


def test_a_sample_without_weight_changes_nothing(is_training: bool) -> None:
    """Not even where it has no word, as the slot of a bad sample has none."""
    model, batch = make_model().train(is_training), make_batch()
    expected = model(batch)
    more = {name: torch.cat([value, value[:2]]) for name, value in batch.items()}
    more["weight"][6:] = 0
    for name in ("tokens", "pair_tokens"):
        more[name][6:, 1] = 3
        more[name][6:, 2:] = 0
    more["words"][6:] = -1
    found = model(more)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    for name, value in found.sums.items():
        torch.testing.assert_close(value, expected.sums[name], rtol=1e-6, atol=1e-9)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_padding_of_captions_is_not_seen() -> None:
    model, batch = make_model().eval(), make_batch(2)
    images = model.image_tokens(batch)
    short = model.fuse(batch["tokens"][:, :7], images)
    long = model.fuse(batch["tokens"], images)
    torch.testing.assert_close(short.text, long.text[:, :7], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(short.image, long.image, rtol=1e-5, atol=1e-5)
    plans = [
        model.align(tokens, images, fused).plan
        for tokens, fused in ((batch["tokens"][:, :7], short), (batch["tokens"], long))
    ]
    torch.testing.assert_close(plans[0], plans[1][:, :7], rtol=1e-4, atol=1e-6)
    assert plans[1][:, 7:].eq(0).all()


def test_captions_and_images_see_each_other() -> None:
    model, batch = make_model().eval(), make_batch(2)
    fused = model.fuse(batch["tokens"], model.image_tokens(batch))
    blank = model.fuse(batch["tokens"], model.blank_tokens(batch))
    other = model.fuse(batch["tokens"].flip(0), model.image_tokens(batch))
    assert not torch.allclose(fused.text, blank.text, atol=1e-3)
    assert not torch.allclose(fused.image, other.image, atol=1e-3)


@pytest.mark.parametrize("position", ["learned_1d", "learned_2d", "sincos_2d", "none"])
def test_the_encoder_alone_is_the_image_half(position: str) -> None:
    """Where no token of a caption is seen, the image's are the encoder's own."""
    model, batch = make_model(position=position).eval(), make_batch(2)
    nothing = torch.zeros_like(batch["tokens"])  # padding alone
    fused = model.fuse(nothing, model.image_tokens(batch))
    features = model.encoder.forward_features(model.normalise(batch["image"]))
    torch.testing.assert_close(fused.image, features, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- images of their own aspect


def on_canvas(batch: dict[str, Tensor], side: int, grid: list[list[int]]) -> dict[str, Tensor]:
    canvas = F.pad(batch["image"], (0, side - SIDE, 0, side - SIDE))
    return batch | {"image": canvas, "grid": torch.tensor(grid)}


@pytest.mark.parametrize("position", ["learned_1d", "sincos_2d"])
def test_an_image_of_the_encoders_size_is_the_same_on_a_canvas(position: str) -> None:
    loss = LossConfig(patches=0)
    plain = make_model(loss, position=position).eval()
    wide = make_model(loss, Canvas(64, 64), position=position).eval()
    wide.load_state_dict(plain.state_dict())
    batch = make_batch(3)
    found = wide(on_canvas(batch, 64, [[4, 4]] * 3))
    expected = plain(batch)
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)


def test_what_lies_beside_an_image_is_not_seen(is_training: bool) -> None:
    model = make_model(LossConfig(patches=0), Canvas(64, 64)).train(is_training)
    batch = on_canvas(make_batch(3), 64, [[4, 4], [2, 3], [1, 4]])
    expected = model(batch).loss
    spoilt = batch["image"].clone()
    for row, (rows, columns) in enumerate(batch["grid"].tolist()):
        outside = torch.ones(64, 64, dtype=torch.bool)
        outside[: PATCH * rows, : PATCH * columns] = False
        spoilt[row][:, outside] = 77
    assert model(batch | {"image": spoilt}).loss.item() == expected.item()
    spoilt[1, :, 0, 0] = 255 - batch["image"][1, :, 0, 0]
    assert model(batch | {"image": spoilt}).loss.item() != expected.item()


def test_while_training_no_more_patches_enter_than_asked() -> None:
    model = make_model(LossConfig(patches=0), Canvas(64, 5))
    batch = on_canvas(make_batch(3), 64, [[4, 4], [2, 2], [4, 8]])
    images = model.image_tokens(batch)
    assert images.is_token.sum(1).tolist() == [6, 5, 6]  # with the class token
    again = model.image_tokens(batch | {"random_key": batch["random_key"] + 1})
    assert not torch.equal(images.tokens[0], again.tokens[0])
    assert model.eval().image_tokens(batch).is_token.sum(1).tolist() == [17, 5, 33]


def test_positions_in_the_layers_are_refused() -> None:
    with pytest.raises(UserError, match=r"encoder\.position=relative .* acts in the layers"):
        make_model(position="relative")


def test_the_example_batch_is_one(is_training: bool) -> None:
    for canvas, loss in ((None, ALL), (Canvas(64, 10), LossConfig())):
        model = make_model(loss, canvas).train(is_training)
        assert model(model.example_batch(3)).loss.isfinite()


@pytest.mark.slow
def test_a_compiled_forward_pass_is_one_graph() -> None:
    """A break would cost speed, and torch would warn of gradients that it cannot keep."""
    explained = torch._dynamo.explain(make_model())(make_batch())
    assert (explained.graph_count, explained.break_reasons) == (1, [])
