"""Reconstructions: nothing of a hidden patch is seen, and the pictures show what they say."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from data.settings import UserError
from pretrain.config import PretrainConfig
from pretrain.configuration.load import load
from pretrain.encoder import EncoderConfig, make_encoder, save_encoder
from pretrain.objective.classes import class_colours
from pretrain.objective.config import TARGETS, CorruptionConfig, DecoderConfig, TargetConfig
from pretrain.objective.model import MaskedPatchModel
from pretrain.pictures.draw import rgb
from pretrain.pictures.reconstruct import (
    Reconstruction,
    draw_grid,
    load_model,
    panels,
    reconstruct,
)
from tests.visual_words import learn_from_noise

SIZE, PATCH = 32, 8
HALF = CorruptionConfig()


def make_model(kind: str = "mean_colour", sees_masked: bool = True) -> MaskedPatchModel:
    """Make an untrained model whose answers differ: its head's weights are large."""
    torch.manual_seed(0)
    config = EncoderConfig("vit_tiny_patch16_224", "none", PATCH, 32, 1, 2, sees_masked=sees_masked)
    encoder = make_encoder(config, (SIZE, SIZE))
    decoder = None if sees_masked else DecoderConfig()
    model = MaskedPatchModel(encoder, CorruptionConfig(), TargetConfig(kind), decoder)
    torch.nn.init.normal_(model.head.weight)
    learn_from_noise(model.target)
    return model.eval()


def random_images(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (4, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)


def over_pixels(is_corrupted: torch.Tensor) -> torch.Tensor:
    """bool (B, N) -> (B, 1, H, W)."""
    grid = is_corrupted.unflatten(1, (SIZE // PATCH, SIZE // PATCH))[:, None]
    return grid.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("sees_masked", [True, False])
def test_no_prediction_sees_its_own_patch(kind: str, sees_masked: bool):
    """Nor does its picture: what is painted stays when all that is hidden becomes another image."""
    model = make_model(kind, sees_masked)
    images, keys = random_images(0), torch.arange(4)
    result = reconstruct(model, images, keys, HALF)
    is_hidden = over_pixels(result.is_corrupted)
    other_hidden = torch.where(is_hidden, random_images(1) // 4, images)
    again = reconstruct(model, other_hidden, keys, HALF)
    assert result.num_hidden == 4 * 8
    assert torch.equal(again.predicted, result.predicted)
    assert torch.equal(panels(again)[:, 2], panels(result)[:, 2])
    assert not torch.equal(again.true, result.true)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARGETS)
def test_predictions_follow_the_visible_patches(kind: str):
    """The control: the test above would pass on a model that sees nothing at all."""
    model = make_model(kind)
    images, keys = random_images(0), torch.arange(4)
    result = reconstruct(model, images, keys, HALF)
    other_visible = torch.where(over_pixels(result.is_corrupted), images, random_images(1))
    again = reconstruct(model, other_visible, keys, HALF)
    assert not torch.equal(again.predicted, result.predicted)


@pytest.mark.parametrize("kind", ["block", "coarse"])
def test_patches_are_hidden_as_configured(kind: str):
    config = CorruptionConfig(kind, ratio=0.75, mask_ratio=0.5)
    result = reconstruct(make_model(), random_images(0), torch.arange(4), config)
    assert result.is_corrupted.sum(1).tolist() == [12] * 4
    if kind == "coarse":
        squares = result.is_corrupted.view(4, 2, 2, 2, 2).transpose(2, 3).flatten(3)
        assert torch.equal(squares.all(3), squares.any(3))


def test_the_true_picture_is_the_image_where_pixels_are_predicted():
    images = random_images(0)
    result = reconstruct(make_model("pixels"), images, torch.arange(4), HALF)
    assert torch.equal(result.true, images)
    assert torch.equal(panels(result)[:, 3], images)
    assert result.error is not None
    assert result.verdict == f"The mean squared error over 32 hidden patches is {result.error:.3f}"
    assert result.reading == "their pixels"


def test_words_are_painted_as_the_patches_they_were_learnt_from():
    model = make_model("words")
    result = reconstruct(model, random_images(0), torch.arange(4), HALF)
    assert result.reading == "the mean of the patches that its word was learnt from"
    pixels: torch.Tensor = model.target.pixels.round().byte()  # pyright: ignore
    answers = model.target.answers(random_images(0))
    painted = pixels[answers[..., 0]].unflatten(2, (3, PATCH, PATCH))
    assert torch.equal(result.true[0, :, :PATCH, :PATCH], painted[0, 0])


@pytest.mark.parametrize(("kind", "num_cells"), [("mean_colour", 32), ("colour_grid", 32 * 16)])
def test_what_is_right_is_counted_in_cells(kind: str, num_cells: int):
    images = torch.zeros_like(random_images(0))  # one class: a head's bias alone can be right
    model = make_model(kind)
    torch.nn.init.zeros_(model.head.weight)
    bias = model.head.bias.detach().unflatten(0, (-1, 512))
    bias[:, 0] = 1
    right = reconstruct(model, images, torch.arange(4), HALF)
    assert (right.num_right, right.num_cells, right.error) == (num_cells, num_cells, None)
    cells = "" if kind == "mean_colour" else "512 cells of "
    assert right.verdict == (
        f"The predicted class is right for {num_cells} of {cells}32 hidden patches"
    )
    bias[0, 1] = 2  # the first cell alone is wrong: a sixteenth, or all
    wrong = reconstruct(model, images, torch.arange(4), HALF)
    assert wrong.num_right == num_cells - 32
    assert torch.equal(right.predicted, right.true)
    assert not torch.equal(wrong.predicted, wrong.true)


def test_panels_show_what_they_say():
    images = random_images(0)[:1]
    is_corrupted = torch.zeros(1, 16, dtype=torch.bool)
    is_corrupted[0, 5] = True
    colours = class_colours(3)[[7, 448]][:, None, :, None, None].expand(2, 1, 3, SIZE, SIZE)
    predicted, true = colours
    result = Reconstruction(images, is_corrupted, predicted, true, (PATCH, PATCH), 1, 0, None, "")
    shown = panels(result)[0]
    is_hidden = over_pixels(is_corrupted)[0].expand(3, -1, -1)
    hidden = (slice(None), slice(8, 16), slice(8, 16))  # patch 5 is row 1, column 1
    assert torch.equal(shown[0], images[0])
    for picture in shown[1:]:
        assert torch.equal(picture[~is_hidden], images[0][~is_hidden])
    assert len(shown[1][hidden].unique()) == 2
    assert torch.equal(shown[2][hidden], predicted[0][hidden])
    assert torch.equal(shown[3][hidden], true[0][hidden])


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_images_of_any_channels_are_shown(channels: int):
    images = random_images(0).flatten(0, 1)[: 2 * channels].unflatten(0, (2, channels))
    shown = rgb(images)
    assert shown.shape == (2, 3, SIZE, SIZE)
    if channels == 1:
        assert torch.equal(shown, images.expand(2, 3, -1, -1))
    else:
        assert torch.equal(shown[:, :channels], images[:, :3])
        assert not shown[:, channels:].any()


@pytest.mark.parametrize("channels", [1, 5])
def test_reconstructions_of_other_channels(channels: int):
    torch.manual_seed(0)
    config = EncoderConfig("vit_tiny_patch16_224", "none", PATCH, 32, 1, 2)
    mean, std = (0.5,) * channels, (0.2,) * channels
    encoder = make_encoder(config, (SIZE, SIZE), mean, std, channels)
    model = MaskedPatchModel(encoder, HALF, TargetConfig("colour_grid")).eval()
    images = torch.randint(0, 256, (2, channels, SIZE, SIZE), dtype=torch.uint8)
    result = reconstruct(model, images, torch.arange(2), HALF)
    assert result.predicted.shape == images.shape
    assert panels(result).shape == (2, 4, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    "keys",
    [
        [],
        ["target.kind=colour_grid", "target.grid=2", "target.bits=2"],
        ["target.kind=normalised_pixels", "encoder.sees_masked=false"],
    ],
)
def test_a_checkpoint_is_rebuilt(tmp_path: Path, keys: list[str]):
    config = load(PretrainConfig, ["data.shards=none.tar", "corruption.ratio=0.75", *keys])
    sizes = replace(config.encoder, patch_size=PATCH, embed_dim=32, depth=1, num_heads=2)
    encoder = make_encoder(sizes, (SIZE, SIZE))
    parts = (config.corruption, config.target, config.light_decoder)
    model = MaskedPatchModel(encoder, *parts).eval()
    save_encoder(encoder, tmp_path / "encoder")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    images, keys_of = random_images(0), torch.arange(4)
    wanted = reconstruct(model, images, keys_of, config.corruption)
    found = reconstruct(load_model(tmp_path, config), images, keys_of, config.corruption)
    assert torch.equal(found.predicted, wanted.predicted)
    assert found.verdict == wanted.verdict
    other = replace(config, target=TargetConfig(bits=1))
    with pytest.raises(UserError, match="holds another model than the configuration"):
        load_model(tmp_path, other)


def test_the_picture_keeps_the_pixels():
    pictures = random_images(0)[None]
    sheet = Image.open(io.BytesIO(draw_grid(pictures))).convert("RGB")
    zoom = 160 // SIZE
    tile = sheet.crop((0, sheet.height - 160, 160, sheet.height))
    small = np.asarray(tile)[zoom // 2 :: zoom, zoom // 2 :: zoom]
    assert np.array_equal(small, pictures[0, 0].permute(1, 2, 0).numpy())
