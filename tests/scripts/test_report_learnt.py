"""The pictures of what an encoder has learnt, of encoders that do not have all of it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.objective.config import CorruptionConfig, TargetConfig
from pretrain.objective.model import MaskedPatchModel
from scripts._report.figures import Section
from scripts._report.learnt import Take, learnt

ALL = [
    "Nearest images",
    "Principal filters of the patch embedding",
    "Similarity of position embeddings",
    "Mean attention distance",
    "Attention rollout",
]


def make_model(channels: int = 3, **encoder: Any) -> MaskedPatchModel:
    torch.manual_seed(0)
    options: dict[str, Any] = {"name": "vit_tiny_patch16_224", "patch_size": 8}
    options |= {"embed_dim": 32, "depth": 2, "num_heads": 2}
    config = EncoderConfig(**(options | encoder))
    built = make_encoder(config, (32, 32), channels=channels)
    target = TargetConfig("pixels")
    return MaskedPatchModel(built, CorruptionConfig(), target).eval()


def taker(channels: int) -> Take:
    generator = torch.Generator().manual_seed(0)

    def take(num: int) -> tuple[Tensor, Tensor]:
        size = (min(num, 8), channels, 32, 32)
        images = torch.randint(256, size, generator=generator, dtype=torch.uint8)
        return images, torch.arange(len(images))

    return take


def pictures_of(model: MaskedPatchModel, take: Take | None) -> Section:
    return learnt(model, copy.deepcopy(model.encoder), take)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_all_is_drawn_of_any_channels(channels: int):
    section = pictures_of(make_model(channels), taker(channels))
    assert [figure.title for figure in section.figures] == ALL
    assert section.notes == ()
    is_grey = "in grey" in section.figures[1].caption
    assert is_grey == (channels != 3)


def test_a_hybrid_has_no_filters_and_says_why():
    model = make_model(stem="resnet10t", stem_stride=8)
    section = pictures_of(model, taker(3))
    assert [figure.title for figure in section.figures] == [ALL[0], *ALL[2:]]
    assert section.notes == (
        f"{ALL[1]}: none, since the patches are cut from a CNN's feature map.",
    )


@pytest.mark.parametrize("position", ["none", "relative"])
def test_an_encoder_without_a_table_says_so(position: str):
    section = pictures_of(make_model(position=position), taker(3))
    assert [figure.title for figure in section.figures] == [*ALL[:2], *ALL[3:]]
    assert "encoder.position is none or relative" in section.notes[0]


@pytest.mark.parametrize("position", ["learned_2d", "sincos_2d"])
def test_tables_of_our_own_are_drawn(position: str):
    section = pictures_of(make_model(position=position), taker(3))
    assert [figure.title for figure in section.figures] == ALL


def test_weights_are_drawn_without_images():
    section = pictures_of(make_model(), None)
    assert [figure.title for figure in section.figures] == ALL[1:3]
    assert section.notes == (
        "Nearest images: none without images.",
        "Mean attention distance and attention rollout: none without images.",
    )


def test_an_image_alone_has_no_neighbours():
    def take_one(num: int) -> tuple[Tensor, Tensor]:
        images, keys = taker(3)(num)
        return images[:1], keys[:1]

    section = pictures_of(make_model(), take_one)
    assert "Nearest images" not in [figure.title for figure in section.figures]
    assert section.notes == ("Nearest images: none among 1 image.",)
