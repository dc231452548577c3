"""The section on the features of patches, of encoders and images of several kinds."""

import re
from base64 import b64decode

import numpy as np
import pytest
import torch
from torch import Tensor

from data.settings import UserError
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.pictures.patches import patch_features, similarities
from scripts._report.learnt import Take
from scripts._report.patches.section import TITLE, patches


def taker(channels: int, num: int = 8, side: int = 32) -> Take:
    generator = torch.Generator().manual_seed(0)

    def take(most: int) -> tuple[Tensor, Tensor]:
        size = (min(num, most), channels, side, side)
        images = torch.randint(256, size, generator=generator, dtype=torch.uint8)
        return images, torch.arange(len(images))

    return take


def make(channels: int = 3, side: int = 32, depth: int = 2):
    torch.manual_seed(0)
    config = EncoderConfig("vit_tiny_patch16_224", "none", 8, 32, depth, 2)
    return make_encoder(config, (side, side), channels=channels).eval()


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_all_is_drawn_of_any_channels(channels: int) -> None:
    section = patches(make(channels), taker(channels))
    titles = [figure.title for figure in section.figures]
    assert titles == ["Patch features as colours", "Patches like a chosen one"]
    assert section.notes == ()
    assert section.body.count("<canvas") == 2 * 4
    assert section.script


def test_the_page_holds_the_similarities_of_the_last_block_and_one_before() -> None:
    encoder = make(depth=6)
    section = patches(encoder, taker(3, num=1))
    layers = [int(layer) for layer in re.findall(r"<small>block (\d+)", section.body)]
    assert layers == [3, 6]
    held = [
        np.frombuffer(b64decode(values), np.uint8).reshape(16, 16)
        for values in re.findall(r'data-values="([^"]+)"', section.body)
    ]
    images, _ = taker(3, num=1)(1)
    for layer, found in zip(layers, held, strict=True):
        exact = similarities(patch_features(encoder, images, [layer])[layer])[0].numpy()
        low = exact.min()
        np.testing.assert_allclose(found / 255 * (1 - low) + low, exact, atol=(1 - low) / 500)


def test_more_patches_than_a_page_holds_are_not_clickable_and_it_says_so() -> None:
    section = patches(make(side=136), taker(3, num=2, side=136))
    assert len(section.figures) == 2
    assert (section.body, section.script) == ("", "")
    assert "there are 289 of them" in section.notes[0]


def test_without_images_it_says_why() -> None:
    assert patches(make(), None).notes == ("None without images.",)

    def fail(_: int) -> tuple[Tensor, Tensor]:
        raise UserError("no shards here")

    section = patches(make(), fail)
    assert (section.title, section.notes) == (TITLE, ("None: no shards here.",))
