"""Baselines from timm, and what a forward pass costs."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

from data.settings import UserError
from finetune.backbone import flops_per_image, is_transformer, make_backbone
from pretrain.encoder import EncoderConfig
from pretrain.encoder.facts import image_data, image_size, num_channels
from pretrain.encoder.tokens import Normalise


@pytest.mark.parametrize(
    ("config", "has_blocks"),
    [
        (EncoderConfig(name="test_resnet"), False),
        (EncoderConfig(name="test_vit"), True),
        (EncoderConfig("vit_tiny_r_s16_p8_224", "none", None, 32, 2, 2), True),
        (EncoderConfig(name="test_convnext"), False),
    ],
)
def test_any_model_of_timm_is_made_for_its_images(config: EncoderConfig, has_blocks: bool) -> None:
    model = make_backbone(config, (32, 64), mean=(0.4, 0.4, 0.4))
    assert image_size(model) == (32, 64)
    assert image_data(model)["mean"] == (0.4, 0.4, 0.4)
    assert model(torch.zeros(1, 3, 32, 64)).shape == (1, model.num_features)
    assert is_transformer(model) == has_blocks


@pytest.mark.parametrize(
    ("config", "size", "text"),
    [
        (EncoderConfig(name="resnet81"), (32, 32), "encoder.name=resnet81 is no model that timm"),
        (EncoderConfig(name="test_resnet", depth=3), (32, 32), "encoder.name=test_resnet with"),
        (EncoderConfig("test_convnext"), (1, 1), "cannot take data.image_size=[1, 1]"),
        (EncoderConfig("test_resnet", position="none"), (32, 32), "encoder.position=none needs a"),
        (EncoderConfig("test_resnet", stem="resnet26d"), (32, 32), "encoder.stem=resnet26d needs"),
        (EncoderConfig("test_vit", sees_masked=False), (160, 160), "sees_masked=false is for pret"),
    ],
)
def test_what_cannot_be_made_is_one_line(
    config: EncoderConfig, size: tuple[int, int], text: str
) -> None:
    with pytest.raises(UserError) as caught:
        make_backbone(config, size)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flops_against_counting_by_hand() -> None:
    config = EncoderConfig("vit_tiny_patch16_224", "none", 4, 32, 2, 2)
    model = make_backbone(config, (16, 16))
    patches, tokens, width, depth = 16, 17, 32, 2
    embedding = patches * width * 3 * 4 * 4
    attention = tokens * width * 3 * width + tokens * width * width + 2 * tokens * tokens * width
    mlp = 2 * tokens * width * 4 * width
    assert flops_per_image(model) == 2 * (embedding + depth * (attention + mlp))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
@pytest.mark.parametrize("channels", [1, 5])
def test_a_model_is_made_for_images_of_any_channels(name: str, channels: int) -> None:
    model = make_backbone(EncoderConfig(name=name), (32, 32), channels=channels)
    assert num_channels(model) == channels
    assert image_data(model)["input_size"] == (channels, 32, 32)
    assert image_data(model)["mean"] == (0.5,) * channels
    images = torch.zeros(2, channels, 32, 32, dtype=torch.uint8)
    assert model(Normalise(model)(images)).shape == (2, model.num_features)
    assert flops_per_image(model) > 0


def test_a_saved_encoder_of_other_channels_is_refused(tmp_path: Path) -> None:
    grey = timm.create_model("test_vit", in_chans=1, num_classes=0)
    save_for_hf(grey, str(tmp_path), safe_serialization=True)
    with pytest.raises(UserError, match=r"encoder.init=.* takes images of 1 channels, "):
        make_backbone(EncoderConfig(init=str(tmp_path)), channels=3)
    with pytest.raises(UserError, match=r"data.mean has 3 values, "):
        make_backbone(EncoderConfig(init=str(tmp_path)), None, (0.5, 0.5, 0.5), None, 1)


def test_a_saved_cnn_is_taken_with_its_weights(tmp_path: Path) -> None:
    saved: Any = timm.create_model("test_resnet", num_classes=3).eval()
    save_for_hf(saved, str(tmp_path), safe_serialization=True)
    model = make_backbone(EncoderConfig(init=str(tmp_path)), (32, 64)).eval()
    assert image_size(model) == (32, 64)
    images = torch.rand(2, 3, 32, 64)
    with torch.no_grad():
        assert torch.equal(model.forward_features(images), saved.forward_features(images))
    with pytest.raises(UserError, match=r"takes images of 3 channels, and data.channels=1"):
        make_backbone(EncoderConfig(init=str(tmp_path)), (32, 64), channels=1)
    with pytest.raises(UserError, match=r"encoder.name=resnet18 with encoder.init=.* leave it out"):
        make_backbone(EncoderConfig("resnet18", str(tmp_path)), (32, 64))
