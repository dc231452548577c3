"""Patches of images with masks: their pixels, their classes, their shapes."""

import numpy as np
import pytest
import torch

from data.segmented import IGNORED
from data.settings import UserError
from finetune.backbone import make_backbone
from pretrain.encoder import EncoderConfig
from pretrain.evaluation.dense.patches import (
    Patches,
    count_layers,
    find_layers,
    join_pixels,
    majorities,
    read_maps,
)

VIT = EncoderConfig("vit_tiny_patch16_224", "none", 4, 32, 2, 2)


def test_pixels_of_patches_are_those_of_the_mask() -> None:
    masks = torch.arange(2 * 6 * 8, dtype=torch.uint8).view(2, 6, 8)
    patches = Patches(torch.zeros(2, 6, 1), masks, (3, 2))
    pixels = patches.pixels()
    assert pixels.shape == (2, 6, 8)
    for image in range(2):
        for row in range(3):
            for column in range(2):
                cell = masks[image, 2 * row : 2 * row + 2, 4 * column : 4 * column + 4]
                assert torch.equal(pixels[image, 2 * row + column], cell.flatten())
    assert torch.equal(join_pixels(pixels, (3, 2), (6, 8)), masks)
    alike = join_pixels(torch.arange(12).view(2, 6, 1), (3, 2), (6, 8))
    assert torch.equal(alike[1, 2:4, 4:], torch.full((2, 4), 9))


def test_a_patch_is_of_the_class_that_most_of_its_pixels_have() -> None:
    pixels = np.random.default_rng(0).choice([0, 1, 2, IGNORED], (200, 7)).astype(np.uint8)
    for row, found in zip(pixels, majorities(torch.from_numpy(pixels), 3).tolist(), strict=True):
        counts = {number: int((row == number).sum()) for number in (0, 1, 2, IGNORED)}
        assert counts[found] == max(counts.values())
        assert found == min(n for n, count in counts.items() if count == counts[found])


def test_layers_of_a_transformer_are_its_blocks() -> None:
    encoder = make_backbone(VIT, (16, 32))
    layers = find_layers(encoder, [2, 1], "dense.layers")
    assert layers == [(2, (4, 8), 32), (1, (4, 8), 32)]
    images = torch.randn(2, 3, 16, 32)
    with torch.no_grad():
        last, first = read_maps(encoder.eval(), images, [2, 1])
        assert torch.allclose(last, encoder.forward_features(images)[:, 1:], atol=1e-6)
    assert first.shape == (2, 32, 32)
    with pytest.raises(UserError, match=r"dense.layers=3 is not in 1..2, the encoder's blocks"):
        find_layers(encoder, [3], "dense.layers")


def test_layers_of_a_cnn_are_its_feature_maps() -> None:
    encoder = make_backbone(EncoderConfig(name="resnet18"), (64, 96))
    assert count_layers(encoder) == 5
    layers = find_layers(encoder, [3, 5], "dense.layers")
    assert layers == [(3, (8, 12), 128), (5, (2, 3), 512)]
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = read_maps(encoder.eval(), images, [5, 3])
        assert torch.equal(found[0], encoder.forward_features(images))
    assert found[1].shape == (1, 128, 8, 12)
    odd = make_backbone(EncoderConfig(name="resnet18"), (48, 96))
    text = (
        r"data.image_size=\[48, 96\] is no multiple of the 32 pixels of a cell of dense.layers=5; "
    )
    with pytest.raises(UserError, match=text):
        find_layers(odd, [5], "dense.layers")
