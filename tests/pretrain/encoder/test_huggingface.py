"""ViTs that transformers wrote: their names and settings, read by timm."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from data.settings import UserError
from pretrain.encoder import EncoderConfig, load_encoder, make_encoder, save_encoder
from pretrain.encoder.facts import image_data, image_size, patch_size
from pretrain.encoder.huggingface import from_hf, hf_names, read_hf_settings, to_hf
from pretrain.encoder.saved import Saved

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 72,
    "patch_size": 4,
    "layer_norm_eps": 1e-6,
}


def write(kind: type[Any], folder: Path, **settings: Any) -> Any:
    """Let transformers write a small model in which each parameter matters."""
    config_type = ViTMAEConfig if "MAE" in kind.__name__ else ViTConfig
    told: dict[str, Any] = {"image_size": 16} | SHAPE | settings
    model = kind(config_type(**told)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    model.save_pretrained(folder)
    return model


def images(size: tuple[int, int] = (16, 16)) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def tokens_of(encoder: Any, size: tuple[int, int] = (16, 16)) -> torch.Tensor:
    with torch.no_grad():
        return encoder.eval().forward_features(images(size))


# ---------------------------------------------------------------- names


def test_each_parameter_has_a_name_there_and_comes_back() -> None:
    config = EncoderConfig(patch_size=4, embed_dim=32, depth=11, num_heads=2)
    encoder = make_encoder(config, (8, 8))
    encoder.reset_classifier(3)
    state = encoder.state_dict()
    tensors = to_hf(state)
    assert len(tensors) == len(state) + 2 * 2 * 11  # qkv is three, weight and bias
    assert "vit.encoder.layer.10.attention.attention.key.bias" in tensors
    back, missing, unused = from_hf(tensors, [name for name in state if "head" not in name])
    assert (missing, unused) == ([], ["classifier.bias", "classifier.weight"])
    for name, value in back.items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("name", ["reg_token", "blocks.0.ls1.gamma", "norm_pre.weight", "x.weight"])
def test_what_its_vit_lacks_has_no_name_there(name: str) -> None:
    assert hf_names(name) == []


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("size", [16, [16, 32]])
@pytest.mark.parametrize("kind", [ViTModel, ViTForImageClassification, ViTForMaskedImageModeling])
def test_a_vit_computes_the_same_in_timm(tmp_path: Path, kind: type[Any], size: Any) -> None:
    model = write(kind, tmp_path, image_size=size)
    pair = (size, size) if isinstance(size, int) else (size[0], size[1])
    encoder = load_encoder(tmp_path)
    assert (image_size(encoder), patch_size(encoder)) == (pair, (4, 4))
    with torch.no_grad():
        expected = getattr(model, "vit", model)(images(pair)).last_hidden_state
    torch.testing.assert_close(tokens_of(encoder, pair), expected, atol=1e-5, rtol=0)


def test_a_masked_autoencoder_gives_its_encoder(tmp_path: Path) -> None:
    model = write(ViTMAEForPreTraining, tmp_path, mask_ratio=0.0)
    with torch.no_grad():
        model.vit.embeddings.position_embeddings[:, 0] = 0  # as it is there by construction
        model.save_pretrained(tmp_path)
        noise = torch.arange(16.0).expand(2, 16)  # which keeps all patches, in order
        expected = model.vit(images(), noise=noise).last_hidden_state
    torch.testing.assert_close(tokens_of(load_encoder(tmp_path)), expected, atol=1e-5, rtol=0)


def test_mean_and_deviation_are_the_image_processors(tmp_path: Path) -> None:
    write(ViTModel, tmp_path)
    ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(
        tmp_path
    )
    data = image_data(load_encoder(tmp_path))
    assert (data["mean"], data["std"]) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert data["input_size"] == (3, 16, 16)


def test_it_goes_on_as_an_encoder_of_ours(tmp_path: Path) -> None:
    write(ViTForImageClassification, tmp_path / "hf", hidden_act="quick_gelu", qkv_bias=False)
    encoder = make_encoder(EncoderConfig(init=str(tmp_path / "hf")), (24, 16))
    save_encoder(encoder, tmp_path / "run/encoder")
    again = load_encoder(tmp_path / "run")
    assert torch.equal(tokens_of(again, (24, 16)), tokens_of(encoder, (24, 16)))


def test_a_width_that_the_ratio_does_not_divide(tmp_path: Path) -> None:
    for hidden in range(64, 105):
        config = {"model_type": "vit", **SHAPE, "hidden_size": 24, "intermediate_size": hidden}
        arguments = read_hf_settings(Saved(tmp_path, config), "encoder.init=it").arguments
        assert int(24 * arguments["mlp_ratio"]) == hidden  # as timm takes it


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    write(ViTModel, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no model\.safetensors; pickled weights are not read"):
        load_encoder(tmp_path)


# ---------------------------------------------------------------- what is said


def test_what_is_not_used_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(ViTModel, tmp_path, layer_norm_eps=1e-12, hidden_dropout_prob=0.1)
    with caplog.at_level(logging.INFO, "pretrain"):
        load_encoder(tmp_path)
    start = f"{tmp_path}: "
    assert [record.getMessage() for record in caplog.records] == [
        f"{start}layer_norm_eps=1e-12 becomes timm's 1e-06",
        f"{start}hidden_dropout_prob=0.1 is not used; see encoder.args.proj_drop_rate and its like",
        f"{start}not used: pooler.dense.bias, pooler.dense.weight",
    ]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write(ViTForImageClassification, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = ["vit.embeddings.cls_token", "vit.encoder.layer.1.attention.attention.key.bias"]
    kept = {name: value for name, value in tensors.items() if name not in gone}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError) as raised:
        load_encoder(tmp_path)
    assert f"{tmp_path} lacks {', '.join(gone)}; " in str(raised.value)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"model_type": "deit"}, "model_type=deit is not read; of transformers' models only vit, "),
        ({"hidden_act": "mish"}, "hidden_act=mish is nothing that this project's encoders have"),
        ({"layer_norm_eps": 1e-3}, "layer_norm_eps=0.001 is nothing that"),
        ({"num_channels": 1}, "size mismatch for patch_embed.proj.weight"),
        ({"hidden_size": 48}, "size mismatch for"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, setting: dict[str, Any], text: str) -> None:
    write(ViTModel, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | setting
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as raised:
        load_encoder(tmp_path)
    assert text in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_configuration_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json .*; restore it"):
        load_encoder(tmp_path)
