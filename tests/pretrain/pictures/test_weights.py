"""What is read off the weights: the same as scikit-learn's, and as plain loops."""

from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
from sklearn.decomposition import PCA  # pyright: ignore[reportMissingTypeStubs]
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pretrain.encoder import EncoderConfig, make_encoder, positions
from pretrain.pictures.weights import position_similarity, principal_filters

SIZES = {"embed_dim": 24, "depth": 2, "num_heads": 2}


def make(size: tuple[int, int] = (12, 20), **more: Any) -> VisionTransformer:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "patch_size": 4,
        "img_size": size,
        "num_classes": 0,
        **SIZES,
        **more,
    }
    return cast(VisionTransformer, timm.create_model("vit_tiny_patch16_224", **arguments))


def kernel(encoder: VisionTransformer) -> Tensor:
    return cast(Any, encoder).patch_embed.proj.weight.detach()


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_the_filters_are_principal_components(channels: int) -> None:
    encoder = make(in_chans=channels)
    found = principal_filters(encoder, num=7)
    assert found is not None
    assert found.shape == (7, channels, 4, 4)
    filters = kernel(encoder).flatten(1).double().numpy()
    expected: Any = PCA(n_components=7, svd_solver="full").fit(filters).components_
    signs = np.sign((found.flatten(1).numpy() * expected).sum(1, keepdims=True))
    np.testing.assert_allclose(found.flatten(1).numpy(), expected * signs, atol=1e-6)
    peaks = found.flatten(1)
    assert (peaks.gather(1, peaks.abs().argmax(1, keepdim=True)) > 0).all()


def test_the_sign_does_not_hang_on_the_weights_sign() -> None:
    encoder = make()
    found = principal_filters(encoder, num=5)
    kernel(encoder).neg_()
    torch.testing.assert_close(principal_filters(encoder, num=5), found)


def test_there_are_no_more_filters_than_components() -> None:
    found = principal_filters(make())
    assert found is not None
    assert found.shape == (23, 3, 4, 4)  # 24 filters span 23 directions around their mean


def test_patches_of_a_feature_map_have_no_pixels() -> None:
    encoder = make_encoder(EncoderConfig(name="vit_tiny_r_s16_p8_224", args=SIZES), (64, 64))
    assert principal_filters(encoder) is None


def test_a_linear_patch_embedding_has_the_same_filters() -> None:
    found: list[Tensor | None] = []
    for kind in ("conv", "linear"):
        torch.manual_seed(0)
        config = EncoderConfig(
            name="vit_tiny_patch16_224", patch_size=4, args=SIZES, patch_embed=kind
        )
        found.append(principal_filters(make_encoder(config, (16, 16))))
    assert found[0] is not None
    assert found[1] is not None
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("more", [{}, {"no_embed_class": True, "reg_tokens": 2}])
def test_similarity_is_the_cosine_of_patches(more: dict[str, Any]) -> None:
    encoder = make(**more)
    found = position_similarity(encoder)
    assert found is not None
    assert found.shape == (15, 3, 5)
    table = cast(Tensor, encoder.pos_embed)[0, -15:].detach().double()
    for place in range(15):
        for other in range(15):
            expected = table[place] @ table[other] / table[place].norm() / table[other].norm()
            assert float(found[place, other // 5, other % 5]) == pytest.approx(float(expected))


def test_similarity_of_our_own_tables() -> None:
    """Of sines and cosines: a place is like itself most, and its neighbour more than one afar."""
    encoder = make(pos_embed="none")
    positions.install(encoder, "sincos_2d", "every_layer")
    found = position_similarity(encoder)
    assert found is not None
    assert found.flatten(1).argmax(1).tolist() == list(range(15))
    assert found[0, 0, 1] > found[0, 0, 3]


@pytest.mark.parametrize("kind", ["none", "relative"])
def test_without_a_table_there_is_no_similarity(kind: str) -> None:
    encoder = make(pos_embed="none")
    positions.install(encoder, kind, "stem")
    assert position_similarity(encoder) is None
