"""Features part after part: the same from any part on, and no more than one part is held."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from data.batch import Request
from data.settings import UserError
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.encoder.tokens import Normalise
from pretrain.evaluation.embedding import (
    EmbedConfig,
    Part,
    embed_images,
    open_reading,
    read_parts,
)
from pretrain.evaluation.features import read_tokens
from tests.conftest import BAD


@pytest.fixture(scope="module")
def network() -> VisionTransformer:
    torch.manual_seed(0)
    config = EncoderConfig("vit_tiny_patch16_224", "none", 4, 16, 2, 2)
    return make_encoder(config, (16, 16))


@pytest.mark.parametrize("pooling", ["both", "patches"])
def test_parts_are_the_whole_wherever_they_begin(
    network: VisionTransformer, shards: Path, pooling: str
) -> None:
    config = EmbedConfig(pooling=pooling, batch_size=4, workers=0)
    images = f"{shards}/train-*.tar"
    whole = embed_images(network, images, config)
    reading = open_reading(network, images, config)
    parts: list[Part] = []
    read_parts(reading, 8, parts.append)
    assert [part.start for part in parts] == [0, 8, 16, 24, 32]
    assert np.array_equal(np.concatenate([part.values for part in parts]), whole.values)
    assert [name for part in parts for name in reading.names(part)] == whole.keys
    bad = [(part.start, entry.key) for part in parts for entry in part.bad]
    assert bad == [(16, f"{BAD:03d}")]
    assert whole.values.shape == (35, *reading.shape)
    assert whole.values.dtype == reading.dtype
    later: list[Part] = []
    read_parts(reading, 8, later.append, 16)
    for old, new in zip(parts[2:], later, strict=True):
        assert np.array_equal(old.values, new.values)
        assert np.array_equal(old.positions, new.positions)


def test_patches_are_the_tokens_of_the_encoder(network: VisionTransformer, shards: Path) -> None:
    config = EmbedConfig(layer=1, pooling="patches", batch_size=5, workers=0)
    reading = open_reading(network, f"{shards}/val-0.tar", config)
    found: list[Part] = []
    read_parts(reading, 10, found.append)
    batch = reading.samples[Request(0, 0, reading.num_images)]
    with torch.no_grad():
        images = Normalise(network)(batch.tensors["image"])
        expected = read_tokens(network, images, [1])[1].patches
    values = torch.from_numpy(found[0].values)
    assert values.dtype == torch.float16
    torch.testing.assert_close(values.float(), expected, rtol=1e-3, atol=1e-3)


def test_an_image_and_its_mirror_image_have_the_same_features(
    network: VisionTransformer, shards: Path
) -> None:
    images = f"{shards}/val-0.tar"
    config = EmbedConfig(batch_size=10, workers=0, mirror=True)
    found = embed_images(network, images, config).values
    batch = open_reading(network, images, config).samples[Request(0, 0, 10)].tensors["image"]
    with torch.no_grad():
        both = [network(Normalise(network)(side)) for side in (batch, batch.flip(-1))]
    torch.testing.assert_close(torch.from_numpy(found), sum(both) / 2, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="mirror=true with pooling=patches, but a patch lies else"):
        EmbedConfig(mirror=True, pooling="patches")


def test_no_more_than_a_part_is_held(network: VisionTransformer, shards: Path) -> None:
    reading = open_reading(
        network, f"{shards}/train-*.tar", EmbedConfig(batch_size=2, workers=0, pooling="patches")
    )
    held: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    def keep(part: Part) -> None:
        alive.append(sum(reference() is not None for reference in held))
        held.append(weakref.ref(part.values))

    read_parts(reading, 4, keep)
    assert alive == [0] * 9
