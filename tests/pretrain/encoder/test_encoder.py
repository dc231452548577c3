"""The encoder in two halves, saved, loaded and resized."""

import logging
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from data.settings import UserError
from pretrain.encoder import EncoderConfig, load_encoder, make_encoder, save_encoder
from pretrain.encoder.facts import grid_size, image_data, image_size, patch_size
from pretrain.encoder.tokens import (
    Normalise,
    choose_attention,
    embed,
    encode,
    narrow_residual,
    patch_tokens,
)

SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def small(
    size: tuple[int, int] = (16, 16), name: str = "vit_tiny_patch16_224", **args: Any
) -> VisionTransformer:
    torch.manual_seed(0)
    position = args.pop("position", None)
    config = EncoderConfig(name=name, patch_size=4, position=position, args=args, **SMALL)
    encoder = make_encoder(config, size).eval()
    for parameter in encoder.parameters():  # also what timm starts at zero matters
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder


def positions(encoder: VisionTransformer) -> torch.Tensor:
    assert encoder.pos_embed is not None
    return encoder.pos_embed


def images(size: tuple[int, int] = (16, 16)) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- two halves


@pytest.mark.parametrize(
    ("name", "args", "num_prefix"),
    [
        ("vit_tiny_patch16_224", {}, 1),
        ("vit_tiny_patch16_224", {"class_token": False}, 0),
        ("vit_tiny_patch16_224", {"reg_tokens": 3}, 4),
        ("vit_tiny_patch16_224", {"pre_norm": True, "qkv_bias": False}, 1),
        ("vit_tiny_patch16_224", {"init_values": 0.1, "qk_norm": True}, 1),
        ("vit_tiny_patch16_224", {"position": "none"}, 1),
        ("vit_small_patch16_18x2_224", {}, 1),
        ("vit_small_patch14_reg4_dinov2", {}, 5),
        ("vit_base_patch16_clip_224", {}, 1),
        ("vit_medium_patch16_gap_256", {}, 0),
    ],
)
def test_both_halves_together_are_timms_forward_features(
    name: str, args: dict[str, Any], num_prefix: int
) -> None:
    encoder = small(name=name, **args)
    with torch.no_grad():
        tokens = encode(encoder, embed(encoder, images()))
        assert torch.equal(tokens, encoder.forward_features(images()))
        assert tokens.shape == (2, num_prefix + 16, 32)
        patches = patch_tokens(encoder, tokens)
        assert patches.shape == (2, 16, 32)
        torch.testing.assert_close(encoder(images()), patches.mean(1))


def test_rectangles_are_encoded() -> None:
    encoder = small((8, 24))
    assert (image_size(encoder), grid_size(encoder), patch_size(encoder)) == (
        (8, 24),
        (2, 6),
        (4, 4),
    )
    with torch.no_grad():
        tokens = encode(encoder, embed(encoder, images((8, 24))))
        assert torch.equal(tokens, encoder.forward_features(images((8, 24))))


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_relpos_small_patch16_224"])
def test_other_architectures_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"encoder.name={name} is no VisionTransformer"):
        make_encoder(EncoderConfig(name=name))


def test_the_default_is_vit_base() -> None:
    with torch.device("meta"):
        encoder = make_encoder(EncoderConfig())
    assert (image_size(encoder), patch_size(encoder)) == ((224, 224), (16, 16))
    assert (encoder.embed_dim, len(encoder.blocks)) == (768, 12)


# ---------------------------------------------------------------- saved and loaded


@pytest.mark.parametrize("args", [{}, {"class_token": False}, {"reg_tokens": 2}])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_a_saved_encoder_is_loaded_as_it_was(
    tmp_path: Path, size: tuple[int, int], args: dict[str, Any]
) -> None:
    encoder = small(size, **args)
    image_data(encoder).update(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    save_encoder(encoder, tmp_path / "encoder")
    by_timm: Any = timm.create_model(f"local-dir:{tmp_path}/encoder", pretrained=True)
    for loaded in (load_encoder(tmp_path / "encoder"), load_encoder(tmp_path), by_timm):
        assert image_size(loaded) == size
        assert tuple(image_data(loaded)["mean"]) == (0.1, 0.2, 0.3)
        assert tuple(image_data(loaded)["std"]) == (0.4, 0.5, 0.6)
        for name, weight in encoder.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], weight), name
        with torch.no_grad():
            assert torch.equal(loaded.eval()(images(size)), encoder(images(size)))


def test_what_is_given_replaces_what_was_saved(tmp_path: Path) -> None:
    save_encoder(small(), tmp_path)
    config = EncoderConfig(init=str(tmp_path), embed_dim=32, name="vit_tiny_patch16_224.any_tag")
    mean, std = (0.1, 0.1, 0.1), (0.2, 0.2, 0.2)
    encoder = make_encoder(config, (24, 24), mean, std)
    assert image_data(encoder)["input_size"] == (3, 24, 24)
    assert (image_data(encoder)["mean"], image_data(encoder)["std"]) == (mean, std)


# ---------------------------------------------------------------- what does not fit


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "pretrain.encoder.pretrained"]


def test_what_a_folder_has_more_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = small()
    encoder.reset_classifier(3)
    save_encoder(encoder, tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"decoder.bias": torch.ones(2)}, path)
    with caplog.at_level(logging.INFO, "pretrain"):
        loaded = load_encoder(tmp_path)
    assert said(caplog) == [
        f"{tmp_path}: not used: decoder.bias",
        f"{tmp_path}: not used: head.bias, head.weight",
    ]
    assert torch.equal(positions(loaded), positions(encoder))


def test_what_a_folder_lacks_is_named(tmp_path: Path) -> None:
    save_encoder(small(), tmp_path)
    path = tmp_path / "model.safetensors"
    gone = ("blocks.1.norm2.bias", "cls_token")
    save_file({name: value for name, value in load_file(path).items() if name not in gone}, path)
    with pytest.raises(UserError) as raised:
        load_encoder(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path} lacks blocks.1.norm2.bias, cls_token; nothing is left at random: "
        "correct encoder.args, or start from another encoder"
    )


def test_an_argument_that_needs_other_weights(tmp_path: Path) -> None:
    save_encoder(small(), tmp_path)
    config = EncoderConfig(init=str(tmp_path), args={"init_values": 0.1})
    with pytest.raises(UserError, match=r"lacks blocks\.0\.ls1\.gamma, blocks\.0\.ls2\.gamma, "):
        make_encoder(config)
    with pytest.raises(
        UserError, match=r"cannot be loaded: .*size mismatch for blocks\.0\.mlp\.fc1"
    ):
        make_encoder(EncoderConfig(init=str(tmp_path), args={"mlp_ratio": 2}))


def test_damaged_weights_are_one_line(tmp_path: Path) -> None:
    save_encoder(small(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read: "):
        load_encoder(tmp_path)


def serve(monkeypatch: pytest.MonkeyPatch, **state: torch.Tensor) -> None:
    """Answer timm's requests for pretrained weights, in place of the hub."""

    def answer(*_: object, **__: object) -> dict[str, torch.Tensor]:
        return dict(state)

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", answer)


def weights_of(name: str) -> dict[str, torch.Tensor]:
    model = timm.create_model(name)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.state_dict()


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("test_vit.r160_in1k", ["not used: head.bias, head.weight"]),
        (
            "test_vit2.r160_in1k",
            [
                "fc_norm becomes norm, before pooling and not after",
                "not used: head.bias, head.weight",
            ],
        ),
    ],
)
def test_of_a_timm_name_what_is_not_used_is_named(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    notes: list[str],
) -> None:
    state = weights_of(name.split(".")[0])
    serve(monkeypatch, **state)
    with caplog.at_level(logging.INFO, "pretrain"):
        encoder = load_encoder(name)
    assert said(caplog) == [f"{name}: {note}" for note in notes]
    own = encoder.state_dict()
    norm = "fc_norm" if "fc_norm.weight" in state else "norm"
    assert torch.equal(own["norm.weight"], state[f"{norm}.weight"])
    assert torch.equal(own["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])
    assert (encoder.global_pool, encoder.num_classes) == ("avg", 0)


def test_the_attention_that_pools_is_dropped_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    serve(monkeypatch, **weights_of("test_vit3"))
    with caplog.at_level(logging.INFO, "pretrain"):
        encoder = load_encoder("test_vit3.r160_in1k").eval()
    assert "attn_pool.kv.bias, attn_pool.kv.weight" in said(caplog)[-1]
    save_encoder(encoder, tmp_path)
    by_timm: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pixels = images((160, 160))
    with torch.no_grad():
        expected = patch_tokens(encoder, encoder.forward_features(pixels)).mean(1)
        torch.testing.assert_close(encoder(pixels), expected)
        torch.testing.assert_close(by_timm(pixels), expected)


def test_of_a_timm_name_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    state = weights_of("test_vit")
    del state["norm.weight"]
    serve(monkeypatch, **state)
    with pytest.raises(UserError, match=r'test_vit.r160_in1k cannot be .*"norm.weight"'):
        load_encoder("test_vit.r160_in1k")


# ---------------------------------------------------------------- another size


def resized(encoder: VisionTransformer, folder: Path, size: tuple[int, int]) -> VisionTransformer:
    save_encoder(encoder, folder)
    return make_encoder(EncoderConfig(init=str(folder)), size).eval()


def test_the_same_size_changes_nothing(tmp_path: Path) -> None:
    encoder = small()
    same = resized(encoder, tmp_path, (16, 16))
    assert torch.equal(positions(same), positions(encoder))


@pytest.mark.parametrize("size", [(24, 24), (8, 8), (16, 32)])
def test_position_embeddings_are_interpolated_by_place(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    encoder = small()
    # a plane over the grid: what bicubic interpolation keeps, but for the borders
    row, column = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    plane = torch.stack([row, column], dim=-1).view(1, 16, 2)
    with torch.no_grad():
        positions(encoder)[:, 1:, :2] = plane
    larger = resized(encoder, tmp_path, size)
    rows, columns = size[0] // 4, size[1] // 4
    assert positions(larger).shape == (1, 1 + rows * columns, 32)
    assert torch.equal(positions(larger)[:, 0], positions(encoder)[:, 0])  # the class token's
    places = positions(larger)[0, 1:, :2].detach().view(rows, columns, 2)
    for axis, length in ((0, rows), (1, columns)):
        along = places[..., axis].mean(1 - axis)
        expected = (torch.arange(length) + 0.5) * 4 / length - 0.5
        assert torch.all(along.diff() > 0)
        assert (along - expected).abs().max() < 0.3
        across = places[..., axis].std(1 - axis, correction=0)
        assert across.max() < 1e-4
    with torch.no_grad():
        assert larger(images(size)).shape == (2, 32)


@pytest.mark.parametrize(("before", "after"), [((16, 16), (24, 24)), ((16, 24), (32, 12))])
@pytest.mark.parametrize("args", [{}, {"reg_tokens": 2}, {"no_embed_class": True}], ids=str)
def test_interpolation_is_timms_and_leaves_prefix_tokens(
    tmp_path: Path, before: tuple[int, int], after: tuple[int, int], args: dict[str, Any]
) -> None:
    encoder = small(before, **args)
    num_prefix = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
    larger = resized(encoder, tmp_path, after)
    expected = resample_abs_pos_embed(
        positions(encoder),
        new_size=[side // 4 for side in after],
        old_size=[side // 4 for side in before],
        num_prefix_tokens=num_prefix,
    )
    assert torch.equal(positions(larger), expected)
    assert torch.equal(positions(larger)[:, :num_prefix], positions(encoder)[:, :num_prefix])
    with torch.no_grad():
        assert larger(images(after)).shape == (2, 32)


def test_a_size_between_patches_is_refused(tmp_path: Path) -> None:
    save_encoder(small(), tmp_path)
    with pytest.raises(UserError, match=r"data.image_size=18 is not a multiple of .*=4; try 16"):
        make_encoder(EncoderConfig(init=str(tmp_path)), (16, 18))
    with pytest.raises(UserError, match=r"image_size=225 is not a multiple of .*=16; try 224"):
        make_encoder(EncoderConfig(**SMALL), (225, 225))


# ---------------------------------------------------------------- pixels


def test_normalise_is_torchvisions() -> None:
    encoder = small()
    image_data(encoder).update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    pixels = torch.randint(0, 256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (pixels / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    normalise = Normalise(encoder)
    torch.testing.assert_close(normalise(pixels.to(torch.uint8)), expected)
    assert normalise.state_dict() == {}  # config.json holds them
    assert normalise.to("meta").mean.device.type == "meta"  # they follow the module


# ---------------------------------------------------------------- attention


def attention_kinds(encoder: VisionTransformer) -> set[bool]:
    modules = encoder.modules()
    return {bool(module.fused_attn) for module in modules if hasattr(module, "fused_attn")}


def test_plain_attention_is_taken_for_bf16_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    encoder = small()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fused = encoder.forward_features(images())
        choose_attention(encoder, torch.device("cpu"), "bf16")
        plain = encoder.forward_features(images())
    assert attention_kinds(encoder) == {False}
    torch.testing.assert_close(plain, fused, rtol=0.05, atol=0.05 * float(fused.std()))


@pytest.mark.parametrize(
    ("device", "precision", "has_amx"),
    [("cpu", "no", False), ("cuda", "bf16", False), ("cpu", "bf16", True)],
)
def test_fused_attention_stays_elsewhere(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: str, has_amx: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    encoder = small()
    choose_attention(encoder, torch.device(device), precision)
    assert attention_kinds(encoder) == {True}


# ---------------------------------------------------------------- tokens between blocks


def test_tokens_between_blocks_are_narrow_under_autocast_alone() -> None:
    """Also behind a layer scale in fp32, which widens them."""
    encoder = small(init_values=0.1)
    wide = _seen_by_blocks(encoder)
    narrow_residual(encoder)
    narrow = _seen_by_blocks(encoder)
    assert {tokens.dtype for tokens in wide[True]} == {torch.float32}
    assert {tokens.dtype for tokens in narrow[True]} == {torch.bfloat16}
    for before, after in zip(wide[False], narrow[False], strict=True):
        assert torch.equal(before, after)
    for before, after in zip(wide[True], narrow[True], strict=True):
        torch.testing.assert_close(after.float(), before, rtol=0.05, atol=0.05)


def _seen_by_blocks(encoder: VisionTransformer) -> dict[bool, list[torch.Tensor]]:
    """Return what enters each block's first norm, with autocast and without."""
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    is_on = False

    def look(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        seen[is_on].append(given[0])

    hooks = [block.norm1.register_forward_pre_hook(look) for block in cast(Any, encoder).blocks]
    for is_on in seen:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            encode(encoder, embed(encoder, images()))
    for hook in hooks:
        hook.remove()
    return seen


def test_narrow_tokens_need_blocks() -> None:
    with pytest.raises(UserError, match=r"run\.bf16_residual=true is for a VisionTransformer"):
        narrow_residual(nn.Conv2d(3, 4, 1))
