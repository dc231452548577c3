"""Features by layer and pooling, in one pass over the images."""

import logging
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from timm.models.vision_transformer import VisionTransformer

from data.batch import Request
from data.index.open import open_manifest
from data.labels.labelled import read_labels
from data.samples import Samples
from data.settings import UserError
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.encoder.tokens import Normalise
from pretrain.evaluation.features import POOLINGS, View, extract, make_views, pool
from pretrain.records.bad_samples import say_unusable
from tests.conftest import BAD

SIZE = (16, 16)
KEYS = ("fewshot.layers", "fewshot.poolings")


def tiny(**arguments: object) -> VisionTransformer:
    config = EncoderConfig(
        name="vit_tiny_patch16_224",
        patch_size=4,
        embed_dim=32,
        depth=3,
        num_heads=2,
        args=dict(arguments),
    )
    torch.manual_seed(0)
    return make_encoder(config, SIZE)


def samples(shards: Path, pattern: str) -> Samples:
    manifest = open_manifest(f"{shards}/{pattern}", "data.train")
    return Samples(manifest, SIZE, seed=0, labelled=True)


def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@torch.no_grad()
def tokens_of_each_block(encoder: VisionTransformer, images: torch.Tensor) -> list[torch.Tensor]:
    """Run block after block by hand: (B, T, D) after each, with the final norm."""
    x = encoder.norm_pre(encoder._pos_embed(encoder.patch_embed(images)))
    outputs: list[torch.Tensor] = []
    for block in encoder.blocks:
        x = block(x)
        outputs.append(encoder.norm(x))
    return outputs


def test_layers_and_poolings_against_running_the_blocks_by_hand(shards: Path) -> None:
    encoder = tiny().eval()
    views = make_views(encoder, [3, 1], POOLINGS, KEYS)
    assert views[0] == View(3, "average")
    found = extract(
        accelerator(), encoder, samples(shards, "val-0.tar"), views, 4, 0, "data.val"
    ).features
    assert list(found) == views
    batch = samples(shards, "val-0.tar")[Request(0, 0, 10)]
    outputs = tokens_of_each_block(encoder, Normalise(encoder)(batch.tensors["image"]))
    for view, features in found.items():
        tokens = outputs[view.layer - 1]
        average, first = tokens[:, 1:].mean(1), tokens[:, 0]
        both = torch.cat([average, first], dim=1)
        expected = {"average": average, "class": first, "both": both}[view.pooling]
        assert torch.allclose(features.values, expected, atol=1e-5)
        assert torch.equal(features.labels, batch.tensors["label"])


def test_features_keep_the_listed_order_and_say_what_is_missing(
    shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = tiny()
    view = View(3, "average")
    train = samples(shards, "train-*.tar")
    found = extract(accelerator(), encoder, train, [view], 5, 0, "data.train")
    with caplog.at_level(logging.WARNING):
        say_unusable(found.unusable)
    features = found.features[view]
    positions = [place for place in range(36) if place != BAD]
    assert features.positions.tolist() == positions
    labels = read_labels(train.manifest, "data.train")
    assert features.labels.tolist() == labels[positions].tolist()
    [line] = [record.getMessage() for record in caplog.records]
    assert line == (
        "data.train: 1 of 36 images cannot be used, such as train-1.tar/022: "
        "no image format that Pillow knows"
    )


def test_no_global_generator_is_drawn_from(shards: Path) -> None:
    encoder, before = tiny(), torch.get_rng_state()
    extract(accelerator(), encoder, samples(shards, "val-0.tar"), [View(1, "both")], 4, 1, "data")
    assert torch.equal(torch.get_rng_state(), before)


def test_an_encoder_without_any_prefix_token_is_averaged(shards: Path) -> None:
    encoder = tiny(class_token=False)
    [view] = make_views(encoder, [0], ["average"], KEYS)
    found = extract(
        accelerator(), encoder, samples(shards, "val-0.tar"), [view], 4, 0, "data.val"
    ).features
    assert found[view].values.shape == (10, 32)
    for pooling in ("class", "both"):
        with pytest.raises(UserError, match=rf"fewshot.poolings={pooling}, but the encoder has no"):
            make_views(encoder, [0], [pooling], KEYS)


def test_a_view_that_is_asked_for_twice_is_read_once() -> None:
    assert make_views(tiny(), [0, 3, 3], ["average"], KEYS) == [View(3, "average")]


def test_what_is_pooled_keeps_no_other_tokens() -> None:
    views = [View(layer, pooling) for layer in (1, 2) for pooling in POOLINGS]
    for pooled in pool(tiny(), torch.zeros(3, 3, 16, 16), views):
        assert pooled.untyped_storage().nbytes() == 4 * pooled.numel()


def test_layers_and_poolings_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UserError, match=r"fewshot.layers=4 is not in 1..3, the encoder's blocks"):
        make_views(tiny(), [1, 4], ["average"], KEYS)
    rule = r"fewshot.poolings=max is not one of average, class, both"
    with pytest.raises(UserError, match=rule):
        make_views(tiny(), [1], ["max"], KEYS)
