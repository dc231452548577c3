"""Features of patches: components as colours, similarities, and the layers that they are of."""

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.encoder.tokens import Normalise
from pretrain.pictures.patches import (
    colours,
    component_pictures,
    enlarged,
    patch_features,
    similarities,
)


def make_small(channels: int = 3) -> VisionTransformer:
    torch.manual_seed(0)
    config = EncoderConfig("vit_tiny_patch16_224", "none", 8, 32, 3, 2)
    return make_encoder(config, (16, 24), channels=channels)


def random_features(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_features_are_those_of_timms_layers() -> None:
    encoder = make_small().train()
    images = torch.randint(0, 256, (9, 3, 16, 24), dtype=torch.uint8)  # of two batches
    found = patch_features(encoder, images, [1, 3])
    assert encoder.training
    assert {layer: of.shape for layer, of in found.items()} == dict.fromkeys((1, 3), (9, 2, 3, 32))
    with torch.no_grad():
        last = encoder.eval().forward_features(Normalise(encoder)(images))[:, 1:]
    torch.testing.assert_close(found[3].flatten(1, 2), last)


def test_colours_are_the_principal_components_of_all_images() -> None:
    features = random_features(3, 4, 5, 7) * torch.linspace(1, 3, 7) + 5
    found = colours(features)
    assert found.shape == (3, 3, 4, 5)
    values = features.reshape(-1, 7).double().numpy()
    values = values - values.mean(0)
    _, _, directions = np.linalg.svd(values, full_matrices=False)
    for place, direction in enumerate(directions[:3]):
        component = values @ direction * np.sign(direction[np.abs(direction).argmax()])
        low, high = np.quantile(component, [0.01, 0.99])
        expected = ((component - low) / (high - low)).clip(0, 1)
        np.testing.assert_allclose(found[:, place].flatten(), expected, atol=1e-6)


def test_the_sign_of_a_colour_does_not_change_by_itself() -> None:
    features = random_features(2, 4, 4, 6)
    torch.testing.assert_close(colours(features.flip(0)), colours(features).flip(0))


def test_features_that_are_all_the_same_have_a_colour() -> None:
    assert bool(colours(torch.ones(2, 2, 2, 8)).isfinite().all())


def test_similarities_are_cosines() -> None:
    features = random_features(2, 2, 3, 5)
    found = similarities(features)
    flat = features.flatten(1, 2)
    for image in range(2):
        for first in range(6):
            for second in range(6):
                a, b = flat[image, first].double(), flat[image, second].double()
                cosine = float(a @ b / (a.norm() * b.norm()))
                assert float(found[image, first, second]) == pytest.approx(cosine, abs=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_each_image_stands_beside_its_colours(channels: int) -> None:
    images = torch.randint(0, 256, (2, channels, 16, 24), dtype=torch.uint8)
    features = patch_features(make_small(channels), images, [1, 2])
    found = component_pictures(images, features)
    assert (found.shape, found.dtype) == ((2, 3, 3, 16, 24), torch.uint8)
    assert torch.equal(found[:, 1], enlarged(colours(features[1]), (16, 24)))
    patch = found[0, 2, :, :8, :8]
    assert bool((patch == patch[:, :1, :1]).all())  # a patch has one colour
