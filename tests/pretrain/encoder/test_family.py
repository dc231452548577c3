"""Targets, masks, positions and precisions together; CNN stems and the light decoder."""

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from data.settings import UserError
from pretrain.encoder import EncoderConfig, load_encoder, make_encoder, save_encoder
from pretrain.encoder.encoder import set_image_size
from pretrain.encoder.extensions import Extensions, extensions_of, timm_format
from pretrain.encoder.facts import grid_size, image_data, patch_size
from pretrain.encoder.stems import FlatPatches, is_hybrid
from pretrain.encoder.tokens import embed, encode, patch_tokens
from pretrain.objective import corruption as corrupting
from pretrain.objective.config import (
    ATTENTIONS,
    TARGETS,
    CorruptionConfig,
    DecoderConfig,
    TargetConfig,
)
from pretrain.objective.decoder import Decoder
from pretrain.objective.model import MaskedPatchModel
from pretrain.training.config import OptimConfig
from pretrain.training.optim import make_optimizer, set_lr
from tests.visual_words import learn_from_noise

TINY: dict[str, Any] = {"name": "vit_tiny_patch16_224", "embed_dim": 16, "depth": 2, "num_heads": 2}
SIZE = (16, 24)

AXES: dict[str, list[Any]] = {
    "target": list(TARGETS),
    "mask": ["random", "block", "coarse"],
    "position": [
        ("none", "stem"),
        ("learned_1d", "stem"),
        ("learned_1d", "every_layer"),
        ("learned_2d", "stem"),
        ("learned_2d", "every_layer_shared"),
        ("relative", "stem"),
        ("sincos_2d", "stem"),
        ("sincos_2d", "every_layer"),
    ],
    "precision": [torch.float32, torch.bfloat16],
    "decoder": [None, *ATTENTIONS],  # None: the encoder sees mask embeddings
    "predicted_ratio": [1.0, 0.5],
}


def pairs(row: tuple[Any, ...]) -> set[tuple[Any, ...]]:
    places = itertools.combinations(range(len(row)), 2)
    return {(i, j, str(row[i]), str(row[j])) for i, j in places}


def covering_rows() -> list[tuple[Any, ...]]:
    """Choose rows until each pair of values of two axes is in one, greedily."""
    candidates = list(itertools.product(*AXES.values()))
    missing = set[tuple[Any, ...]]().union(*map(pairs, candidates))
    rows: list[tuple[Any, ...]] = []
    while missing:
        best = max(candidates, key=lambda row: len(pairs(row) & missing))
        rows.append(best)
        missing -= pairs(best)
    return rows


def make_model(sees_masked: bool = True, **parts: Any) -> MaskedPatchModel:
    torch.manual_seed(0)
    encoder = make_encoder(EncoderConfig(**{"patch_size": 4} | TINY | parts["encoder"]), SIZE)
    return MaskedPatchModel(
        encoder,
        parts.get("corruption", CorruptionConfig()),
        parts.get("target", TargetConfig()),
        None if sees_masked else parts.get("decoder", DecoderConfig()),
    )


def batch(
    num_images: int = 4, size: tuple[int, int] = SIZE, channels: int = 3
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_images, channels, *size), generator=generator)
    return {
        "image": images.to(torch.uint8),
        "weight": torch.ones(num_images),
        "random_key": torch.arange(num_images) * 31,
    }


@pytest.mark.parametrize("row", covering_rows(), ids=lambda row: "-".join(map(str, row)))
def test_every_pair_of_choices_trains(row: tuple[Any, ...]) -> None:
    target, mask, (position, place), precision, decoder, predicted_ratio = row
    shape = {"min_block": 4} if mask == "block" else {}
    model = make_model(
        decoder is None,
        decoder=decoder and DecoderConfig(attention=decoder),
        encoder={"position": position, "position_at": place},
        target=TargetConfig(kind=target, **({"grid": 2} if target == "colour_grid" else {})),
        corruption=CorruptionConfig(mask, predicted_ratio=predicted_ratio, **shape),
    )
    learn_from_noise(model.target)
    config = OptimConfig(steps=3, batch_size=4, warmup_steps=0)
    optimizer = make_optimizer(model, model.encoder, config)
    before = {name: value.clone() for name, value in model.named_parameters()}
    losses: list[float] = []
    for _ in range(3):
        set_lr(optimizer, 3e-3)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            output = model(batch())
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
        figures = model.summarise(output.sums)
        assert all(map(math.isfinite, figures.values()))
    assert losses[2] < losses[0]
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == (not value.requires_grad), name
    model.eval()
    figures = model.summarise(model(batch()).sums)
    assert ("accuracy" in figures) == (target in ("mean_colour", "colour_grid", "words"))
    assert sum(figures[f"ratio_distance_{d}"] for d in range(1, 5)) == pytest.approx(1)


# ---------------------------------------------------------------- mask-free encoding


@torch.no_grad()
def test_what_is_masked_does_not_enter_the_encoder() -> None:
    # a random patch may take the embedding of one that is masked, and so what lies under a mask
    all_masked = CorruptionConfig(mask_ratio=1.0, random_ratio=0.0)
    model = make_model(False, encoder={}, corruption=all_masked).eval()
    seen: list[int] = []
    model.encoder.blocks[0].register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].shape[1])
    )
    corruption = corrupting.draw(batch()["random_key"], model.grid, model.corruption)
    images = batch()["image"]
    outputs = model.predict(images, corruption)
    assert seen == [1 + 24 - corruption.counts.mask]
    changed = images.clone()
    for image, patches in enumerate(corruption.patches[:, : corruption.counts.mask].tolist()):
        for patch in patches:
            row, column = 4 * (patch // 6), 4 * (patch % 6)
            changed[image, :, row : row + 4, column : column + 4] += 77
    assert not torch.equal(images, changed)
    assert torch.equal(model.predict(changed, corruption), outputs)


@torch.no_grad()
def test_encoding_all_patches_by_name_is_encoding_all() -> None:
    encoder = make_encoder(EncoderConfig(patch_size=4, position="learned_2d", **TINY), SIZE).eval()
    embeddings = embed(encoder, torch.randn(2, 3, *SIZE))
    everything = torch.arange(24).expand(2, -1)
    torch.testing.assert_close(encode(encoder, embeddings, everything), encode(encoder, embeddings))


@torch.no_grad()
def test_cross_attention_is_from_masked_to_visible_patches_alone() -> None:
    config = DecoderConfig(depth=2, num_heads=2, attention="cross")
    decoder = Decoder(config, 16, 2, (4, 6)).double().eval()
    tokens = torch.randn(3, 9, 16, dtype=torch.float64)
    places = torch.stack([torch.randperm(24) for _ in range(3)])
    visible, asked = places[:, :9], places[:, 9:16]
    memory = decoder.embed(tokens) + decoder.positions[visible]
    x = decoder.mask_token + decoder.positions[asked]  # (3, 7, 16)
    for block in decoder.blocks:
        parts: Any = block
        q, k, v = parts.attn.qkv.weight.chunk(3)
        q_bias, k_bias, v_bias = parts.attn.qkv.bias.chunk(3)
        seen, asking = parts.norm1(memory), parts.norm1(x)
        heads: list[Tensor] = []
        for head in (slice(0, 8), slice(8, 16)):
            queries = asking @ q[head].T + q_bias[head]
            keys = seen @ k[head].T + k_bias[head]
            weights = (queries @ keys.transpose(1, 2) / math.sqrt(8)).softmax(-1)  # (3, 7, 9)
            heads.append(weights @ (seen @ v[head].T + v_bias[head]))
        x = x + parts.attn.proj(torch.cat(heads, dim=-1))
        x = x + parts.mlp(parts.norm2(x))
    torch.testing.assert_close(decoder(tokens, visible, asked), decoder.norm(x))


@torch.no_grad()
@pytest.mark.parametrize("decoder", [None, *ATTENTIONS])
def test_predicting_fewer_patches_changes_none_of_their_answers(decoder: str | None) -> None:
    model = make_model(
        decoder is None,
        encoder={},
        decoder=decoder and DecoderConfig(attention=decoder),
        corruption=CorruptionConfig(predicted_ratio=0.4),
    ).eval()
    corruption = corrupting.draw(batch()["random_key"], model.grid, model.corruption)
    assert (corruption.counts, corruption.num_predicted) == ((10, 1, 1), (4, 1, 0))  # of 12: 4.8
    places = torch.tensor([0, 1, 2, 3, 10])
    assert torch.equal(corruption.predicted, corruption.patches[:, places])
    images = batch()["image"]
    answers = model.predict(images, corruption, corruption.predicted)
    torch.testing.assert_close(answers, model.predict(images, corruption)[:, places])
    output = model(batch())
    classes = corrupting.select(model.target.answers(images), corruption.predicted)
    expected = model.target.losses(answers, classes).mean(1).sum()
    torch.testing.assert_close(output.loss, expected)
    figures = model.summarise(output.sums)
    assert figures["corrupted_ratio"] == 0.5
    assert figures["mask_ratio"] == 0.8


def test_a_decoder_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"decoder\.attention=crossed is none of self, cross"):
        DecoderConfig(attention="crossed")
    encoder = make_encoder(EncoderConfig(patch_size=4, **TINY), SIZE)
    with pytest.raises(UserError, match=r"decoder\.width=18 must be a multiple of decoder\.num_"):
        MaskedPatchModel(encoder, CorruptionConfig(), TargetConfig(), DecoderConfig(width=18))


# ---------------------------------------------------------------- stems


def gradients(encoder: VisionTransformer) -> dict[str, Tensor]:
    """Return the patch embeddings of some images, and the gradients of their kernel and bias."""
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    embedded = embed(encoder, images)
    embedded.square().sum().backward()
    named = encoder.patch_embed.named_parameters()
    found = {name: p.grad for name, p in named if p.grad is not None}
    return found | {"embedded": embedded.detach()}


def embedder(kind: str) -> VisionTransformer:
    torch.manual_seed(0)
    return make_encoder(EncoderConfig(patch_size=4, patch_embed=kind, **TINY), SIZE)


def test_linear_patches_are_the_convolution() -> None:
    convolution, linear = embedder("conv"), embedder("linear")
    assert list(linear.state_dict()) == list(convolution.state_dict())
    linear.load_state_dict(convolution.state_dict())  # the shapes are the same too
    expected, found = gradients(convolution), gradients(copy.deepcopy(linear))
    assert found.keys() == expected.keys() == {"proj.weight", "proj.bias", "embedded"}
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert not torch.equal(found["embedded"], expected["embedded"])  # it is another computation


def test_patches_are_a_convolution_on_cpus_where_nothing_is_said() -> None:
    expected, found = gradients(embedder("conv")), gradients(embedder("auto"))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(("device", "is_convolution"), [("cuda", False), ("cpu", True)])
def test_patches_are_one_product_on_cuda_alone(device: str, is_convolution: bool) -> None:
    """On tensors that have a device and no values, so that none has to be there."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        convolution = nn.Conv2d(3, 16, 4, 4, device=device)
        FlatPatches(convolution, is_everywhere=False)(torch.empty(2, 3, *SIZE, device=device))
    counted = counter.get_flop_counts()["Global"]
    assert (torch.ops.aten.convolution in counted) == is_convolution
    assert sum(counted.values()) == 2 * 2 * 24 * 48 * 16  # 24 patches of 48 numbers, 16 wide


def test_how_patches_are_embedded_is_not_saved(tmp_path: Path) -> None:
    for kind in ("conv", "linear"):
        save_encoder(embedder(kind), tmp_path / kind)
    for file in (tmp_path / "conv").iterdir():
        assert file.read_bytes() == (tmp_path / "linear" / file.name).read_bytes()


def hybrid(**parts: Any) -> MaskedPatchModel:
    stem = {"stem": "resnet18", "patch_size": 8}
    return make_model(encoder=stem | parts.pop("encoder", {}), **parts).eval()


@torch.no_grad()
@pytest.mark.parametrize("stride", [4, 8])
def test_patches_of_a_feature_map_cover_the_same_pixels(stride: int) -> None:
    model = hybrid(encoder={"stem_stride": stride})
    embedding: Any = model.encoder.patch_embed
    assert is_hybrid(model.encoder)
    assert embedding.patch_size == (8 // stride, 8 // stride)  # 1x1 of the map where they are equal
    assert (patch_size(model.encoder), grid_size(model.encoder)) == ((8, 8), (2, 3))
    assert embed(model.encoder, torch.rand(1, 3, *SIZE)).shape == (1, 6, 16)


def answers_change(model: MaskedPatchModel, *, hides_pixels: bool) -> float:
    """Return by how much outputs for masked patches change with the pixels under the masks."""
    config = CorruptionConfig(mask_ratio=1.0, random_ratio=0.0)
    corruption = corrupting.draw(torch.arange(2), model.grid, config)
    outputs: list[Tensor] = []
    for seed in (1, 2):
        other = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(0)
        pixels = torch.randn(2, 3, *SIZE)
        hidden = corruption.is_corrupted.unflatten(1, model.grid)
        hidden = hidden.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
        pixels = torch.where(hidden, other, pixels)
        if hides_pixels:
            pixels = corrupting.apply_to_pixels(pixels, model.mask_token, corruption, model.patch)
            embeddings = embed(model.encoder, pixels)
        else:
            token = torch.zeros(model.encoder.embed_dim)
            embeddings = corrupting.apply(embed(model.encoder, pixels), token, corruption)
        tokens = patch_tokens(model.encoder, encode(model.encoder, embeddings))
        outputs.append(model.head(corrupting.select(tokens, corruption.patches)))
    return float((outputs[0] - outputs[1]).abs().max())


@torch.no_grad()
def test_behind_a_cnn_corrupted_embeddings_would_leak_and_pixels_do_not() -> None:
    model = hybrid()
    assert answers_change(model, hides_pixels=False) > 1e-4
    assert answers_change(model, hides_pixels=True) == 0
    # and this is what the model does
    corruption = corrupting.draw(batch()["random_key"], model.grid, model.corruption)
    images = batch()["image"]
    changed = images.clone()
    for image, patch in enumerate(corruption.patches[:, 0].tolist()):
        row, column = 8 * (patch // 3), 8 * (patch % 3)
        changed[image, :, row : row + 8, column : column + 8] += 99
    assert corruption.counts.mask > 0
    assert torch.equal(model.predict(changed, corruption), model.predict(images, corruption))


@pytest.mark.parametrize("sees_masked", [True, False])
def test_a_hybrid_trains(sees_masked: bool) -> None:
    model = make_model(sees_masked, encoder={"stem": "resnet18", "patch_size": 8})
    model(batch()).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


def test_timms_own_hybrids_are_encoders() -> None:
    with torch.device("meta"):
        encoder = make_encoder(EncoderConfig(name="vit_small_resnet26d_224"), (64, 96))
    assert (patch_size(encoder), grid_size(encoder)) == ((32, 32), (2, 3))
    with pytest.raises(UserError, match=r"vit_small_resnet26d_224 has a CNN stem and patches of"):
        make_encoder(EncoderConfig(name="vit_small_resnet26d_224", patch_size=16))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stem": "resnet81"}, "encoder.stem=resnet81 is no model that timm knows; try resnet26d"),
        ({"stem": "mixer_b16_224"}, "of stride 16, none of which divides .*=8; try .*size=16"),
        ({"stem": "resnet18", "patch_size": 3}, "of stride 2, 4, 8, 16, 32, none of .*=3"),
        ({"stem": "resnet18", "stem_stride": 3}, "encoder.stem_stride=3 is not one of 2, 4, 8"),
        ({"stem_stride": 4}, "encoder.stem_stride=4 needs a CNN; set encoder.stem"),
        ({"stem": "resnet18", "patch_embed": "linear"}, "patch_embed=linear is for patches of"),
        ({"position": "learnt"}, "encoder.position=learnt is not one of none, learned_1d"),
        ({"position_at": "top"}, "encoder.position_at=top is not one of stem, every_layer"),
        ({"args": {"pos_embed": "none"}}, "args.pos_embed is set by .*; set encoder.position"),
        ({"args": {"in_chans": 1}}, "args.in_chans is set by .*; set data.channels"),
    ],
)
def test_what_cannot_be_is_one_line(keys: dict[str, Any], message: str) -> None:
    sizes: dict[str, Any] = {"patch_size": 8, **TINY}
    side = 3 * 8
    with pytest.raises(UserError, match=message):
        make_encoder(EncoderConfig(**{**sizes, **keys}), (side, side))


# ---------------------------------------------------------------- our own format


OWN = [
    {"position": "learned_2d"},
    {"position": "relative"},
    {"position": "learned_1d", "position_at": "every_layer"},
    {"position": "sincos_2d", "position_at": "every_layer_shared"},
    {"stem": "resnet18", "stem_stride": 4},
]


@torch.no_grad()
@pytest.mark.parametrize("keys", OWN, ids=str)
def test_what_timm_cannot_hold_is_loaded_as_it_was(tmp_path: Path, keys: dict[str, Any]) -> None:
    encoder = make_encoder(EncoderConfig(patch_size=8, **TINY, **keys), SIZE).eval()
    image_data(encoder).update(mean=(0.1, 0.2, 0.3))
    encoder.reset_classifier(3)
    save_encoder(encoder, tmp_path / "encoder")
    images = torch.rand(2, 3, *SIZE)
    loaded = load_encoder(tmp_path, keep_head=True).eval()
    assert torch.equal(loaded(images), encoder(images))
    assert extensions_of(loaded) == extensions_of(encoder) != Extensions()
    assert tuple(image_data(loaded)["mean"]) == (0.1, 0.2, 0.3)
    if keys == {"position": "learned_2d"}:
        by_timm: Any = timm.create_model(f"local-dir:{tmp_path}/encoder", pretrained=True)
        assert torch.equal(by_timm.eval()(images), encoder(images))
    else:
        with pytest.raises(RuntimeError, match="Unknown model"):
            timm.create_model(f"local-dir:{tmp_path}/encoder", pretrained=True)
    bare = make_encoder(EncoderConfig(init=str(tmp_path), position=keys.get("position")), (32, 16))
    assert bare.eval()(torch.rand(1, 3, 32, 16)).shape == (1, 16)


def test_another_position_than_was_loaded_is_refused(tmp_path: Path) -> None:
    save_encoder(make_encoder(EncoderConfig(patch_size=8, **TINY), SIZE), tmp_path)
    with pytest.raises(UserError, match=r"position=relative, but the encoder of .* has learned_1d"):
        make_encoder(EncoderConfig(init=str(tmp_path), position="relative"))


def test_a_later_versions_encoder_is_named(tmp_path: Path) -> None:
    config = EncoderConfig(patch_size=8, position="relative", **TINY)
    save_encoder(make_encoder(config, SIZE), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"stem_stride"', '"rotary"'))
    with pytest.raises(UserError, match="describes an encoder that this version does not know"):
        load_encoder(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("args", [{}, {"reg_tokens": 2}, {"no_embed_class": True}], ids=str)
@pytest.mark.parametrize("kind", ["learned_2d", "sincos_2d"])
def test_a_table_at_the_stem_is_saved_as_timms(
    tmp_path: Path, kind: str, args: dict[str, Any]
) -> None:
    """And `load_encoder` finds it as it was: fixed, or of rows and columns, at any size."""
    encoder = make_encoder(EncoderConfig(patch_size=8, position=kind, args=args, **TINY), SIZE)
    images, larger = torch.rand(2, 3, *SIZE), torch.rand(2, 3, 48, 32)
    for name, form in {"ours": encoder, "plain": timm_format(encoder, "--to timm")}.items():
        save_encoder(form, tmp_path / name)
        by_timm: Any = timm.create_model(f"local-dir:{tmp_path}/{name}", pretrained=True)
        assert torch.equal(by_timm.eval()(images), encoder.eval()(images))
    loaded = load_encoder(tmp_path / "ours").eval()
    assert extensions_of(loaded) == extensions_of(encoder)
    state = encoder.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    again = make_encoder(EncoderConfig(init=str(tmp_path / "ours")), (48, 32)).eval()
    set_image_size(encoder, (48, 32))
    assert torch.equal(again(larger), encoder(larger))


@pytest.mark.parametrize("kind", ["learned_2d", "sincos_2d"])
def test_a_folder_from_before_tables_were_saved_as_timms_is_loaded(
    tmp_path: Path, kind: str
) -> None:
    encoder = make_encoder(EncoderConfig(patch_size=8, position=kind, **TINY), SIZE)
    save_encoder(encoder, tmp_path)
    path, told = tmp_path / "config.json", json.loads((tmp_path / "config.json").read_text())
    told["architecture"] = f"masked_patch.{told['architecture']}"
    told["model_args"]["pos_embed"] = "none"
    path.write_text(json.dumps(told))
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")
    loaded = load_encoder(tmp_path)
    assert extensions_of(loaded) == extensions_of(encoder)
    for name, value in encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize("kind", ["learned_2d", "sincos_2d"])
def test_a_table_that_was_changed_elsewhere_is_refused(tmp_path: Path, kind: str) -> None:
    save_encoder(make_encoder(EncoderConfig(patch_size=8, position=kind, **TINY), SIZE), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["pos_embed"][0, -1] += 0.1
    save_file(tensors, path)
    with pytest.raises(UserError, match=f"its pos_embed was changed, .* encoder.position={kind}"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("keys", [OWN[1], OWN[2], OWN[4]], ids=str)
def test_what_timms_format_cannot_hold_is_said(keys: dict[str, Any]) -> None:
    encoder = make_encoder(EncoderConfig(patch_size=8, **TINY, **keys), SIZE)
    with pytest.raises(UserError, match=r"--to timm cannot hold encoder\.(position|stem)="):
        timm_format(encoder, "--to timm")


# ---------------------------------------------------------------- channels


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_any_number_of_channels(channels: int, tmp_path: Path) -> None:
    encoder = make_encoder(EncoderConfig(patch_size=4, **TINY), SIZE, channels=channels)
    assert image_data(encoder)["mean"] == (0.5,) * channels
    bits = 3 if channels == 1 else 2
    model = MaskedPatchModel(encoder, CorruptionConfig(), TargetConfig(bits=bits))
    assert model.head.out_features == 1 << (bits * channels)
    assert model(batch(channels=channels)).loss.isfinite()
    save_encoder(encoder, tmp_path)
    assert make_encoder(EncoderConfig(init=str(tmp_path)), channels=channels).in_chans == channels
    with pytest.raises(UserError, match=rf"of {channels} channels, and data.channels=3; leave"):
        make_encoder(EncoderConfig(init=str(tmp_path)), channels=3)
    with pytest.raises(UserError, match=rf"data.std has 3 values, data.channels={channels}; give"):
        make_encoder(EncoderConfig(init=str(tmp_path)), std=(1, 1, 1), channels=channels)
