"""Reconstructions: nothing of a hidden patch is seen, and the pictures show what they say."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.corruption import CorruptionConfig
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.model import MaskedPatchModel
from pretrain.reconstruct import Reconstruction, draw_grid, panels, reconstruct
from pretrain.targets import TargetConfig, class_colours

SIZE, PATCH = 32, 8


@pytest.fixture
def model() -> MaskedPatchModel:
    """An untrained model whose answers differ: its head's weights are large."""
    torch.manual_seed(0)
    config = EncoderConfig("vit_tiny_patch16_224", "none", PATCH, 32, 2, 2)
    encoder = make_encoder(config, (SIZE, SIZE))
    model = MaskedPatchModel(encoder, CorruptionConfig(), TargetConfig())
    torch.nn.init.normal_(model.head.weight)
    return model.eval()


def random_images(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (4, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)


def over_pixels(is_corrupted: torch.Tensor) -> torch.Tensor:
    """bool (B, N) -> (B, 1, H, W)."""
    grid = is_corrupted.unflatten(1, (SIZE // PATCH, SIZE // PATCH))[:, None]
    return grid.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)


def test_no_prediction_sees_its_own_patch(model: MaskedPatchModel):
    images, keys = random_images(0), torch.arange(4)
    result = reconstruct(model, images, keys, ratio=0.5)
    is_hidden = over_pixels(result.is_corrupted)
    other_hidden = torch.where(is_hidden, random_images(1), images)
    again = reconstruct(model, other_hidden, keys, ratio=0.5)
    assert result.num_hidden == 4 * 8
    assert torch.equal(again.predicted, result.predicted)
    assert not torch.equal(again.true, result.true)


def test_predictions_follow_the_visible_patches(model: MaskedPatchModel):
    """The control: the test above would pass on a model that sees nothing at all."""
    images, keys = random_images(0), torch.arange(4)
    result = reconstruct(model, images, keys, ratio=0.5)
    other_visible = torch.where(over_pixels(result.is_corrupted), images, random_images(1))
    again = reconstruct(model, other_visible, keys, ratio=0.5)
    assert not torch.equal(again.predicted, result.predicted)


def test_panels_show_what_they_say():
    images = random_images(0)[:1]
    is_corrupted = torch.zeros(1, 16, dtype=torch.bool)
    is_corrupted[0, 5] = True
    predicted = torch.where(is_corrupted, 7, -1)
    result = Reconstruction(images, is_corrupted, predicted, torch.full((1, 16), 448))
    shown = panels(result, (PATCH, PATCH), bits=3)[0]
    is_hidden = over_pixels(is_corrupted)[0].expand(3, -1, -1)
    hidden = (slice(None), slice(8, 16), slice(8, 16))  # patch 5 is row 1, column 1
    assert torch.equal(shown[0], images[0])
    for picture in shown[1:]:
        assert torch.equal(picture[~is_hidden], images[0][~is_hidden])
    assert len(shown[1][hidden].unique()) == 2
    for picture, colour in ((shown[2], 7), (shown[3], 448)):
        wanted = class_colours(3)[colour][:, None, None].expand(3, 8, 8)
        assert torch.equal(picture[hidden], wanted)


def test_the_picture_keeps_the_pixels():
    pictures = random_images(0)[None]
    sheet = Image.open(io.BytesIO(draw_grid(pictures))).convert("RGB")
    zoom = 160 // SIZE
    tile = sheet.crop((0, sheet.height - 160, 160, sheet.height))
    small = np.asarray(tile)[zoom // 2 :: zoom, zoom // 2 :: zoom]
    assert np.array_equal(small, pictures[0, 0].permute(1, 2, 0).numpy())
