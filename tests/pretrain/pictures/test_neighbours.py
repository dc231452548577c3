"""Nearest images: those with the most similar features, and the untrained encoder beside it."""

from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer

from pretrain.encoder import EncoderConfig, make_encoder, save_encoder
from pretrain.pictures.neighbours import begin_again, nearest_images


def make_small() -> VisionTransformer:
    config = EncoderConfig("vit_tiny_patch16_224", "none", 8, 32, 1, 2)
    return make_encoder(config, (16, 16))


def test_an_images_own_copy_is_its_nearest_and_it_is_not_its_own() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)  # of two batches
    images[37] = images[2]
    found = nearest_images(make_small(), images, torch.tensor([2, 37]), 39)
    assert found[:, 0].tolist() == [37, 2]
    for query, places in zip((2, 37), found.tolist(), strict=True):
        assert sorted([*places, query]) == list(range(40))


def test_the_encoder_as_it_began(tmp_path: Path) -> None:
    torch.manual_seed(7)
    encoder = make_small()
    began = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.nn.init.ones_(next(encoder.parameters()))
    save_encoder(encoder, tmp_path / "encoder")
    state = torch.get_rng_state()
    again = begin_again(tmp_path / "encoder", 7)
    assert torch.equal(torch.get_rng_state(), state)
    assert again.state_dict().keys() == began.keys()
    assert all(torch.equal(value, began[name]) for name, value in again.state_dict().items())
