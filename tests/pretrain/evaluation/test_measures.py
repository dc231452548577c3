"""An encoder by images without labels, layer by layer."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data.batch import Request
from data.settings import UserError
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.encoder.tokens import Normalise
from pretrain.evaluation.features import PATCHES, read_tokens
from pretrain.evaluation.measures import MeasureConfig, measure_images
from pretrain.evaluation.spectrum import MEASURES
from tests.pretrain.evaluation.test_features import SIZE, tiny
from tests.pretrain.evaluation.test_spectrum import plain_lidar
from tests.pretrain.evaluation.test_unlabelled import AREA, NUM, crops_of


def test_lidar_of_an_encoder_is_the_plain_formula(shards: Path) -> None:
    encoder = tiny()
    config = MeasureConfig(layers=(3,), crops=NUM, crop_area=AREA, batch_size=8, workers=0)
    cells, *numbers = measure_images(encoder, f"{shards}/train-*.tar", config)
    assert numbers == [35, 1, 32]
    batch = crops_of(shards)[Request(0, 0, 36)]
    with torch.no_grad():
        tokens = read_tokens(encoder, Normalise(encoder)(batch.tensors["image"]), [3])
    pooled = tokens[3].patches.mean(1)[batch.tensors["weight"] > 0]
    expected = plain_lidar(pooled.double().unflatten(0, (35, NUM)).numpy())
    assert cells[0]["lidar"] == pytest.approx(expected, rel=1e-4)
    assert [(cell["layer"], cell["pooling"]) for cell in cells] == [(3, "average"), (3, PATCHES)]
    assert cells[1]["lidar"] is None


def test_without_crops_there_is_no_lidar_and_all_layers_are_read(shards: Path) -> None:
    config = MeasureConfig(crops=0, workers=0)
    cells = measure_images(tiny(), f"{shards}/train-*.tar", config).cells
    assert [cell["layer"] for cell in cells] == [1, 1, 2, 2, 3, 3]
    assert set(cells[0]) == {"layer", "pooling", *MEASURES}


REFUSED: list[tuple[Callable[[], MeasureConfig], str]] = [
    (lambda: MeasureConfig(crops=1), "crops=1: LiDAR compares several crops of an image; 10 do"),
    (
        lambda: MeasureConfig(crops=0, crop_area=(0.5, 1.0)),
        r"crop_area=\[0.5, 1.0\] is of the crops, and crops=0; leave one of them out",
    ),
    (lambda: MeasureConfig(crop_area=(0.5, 0.2)), r"crop_area=\[0.5, 0.2\] is no range within"),
    (
        lambda: MeasureConfig(untrained=True),
        "untrained=True makes an encoder anew, and one was given",
    ),
    (lambda: MeasureConfig(batch_size=0), "batch_size=0 must be above 0"),
    (lambda: MeasureConfig(layers=(4,)), "layers=4 is not in 1..3, the encoder's blocks"),
    (lambda: MeasureConfig(pooling="max"), "pooling=max is not one of average, class, both"),
    (
        lambda: MeasureConfig(pooling="both"),
        "images: 36 images for features of 64 dimensions; no rank is above the number of images",
    ),
]


@pytest.mark.parametrize(("make", "text"), REFUSED)
def test_what_cannot_be_measured_is_refused(
    shards: Path, make: Callable[[], MeasureConfig], text: str
) -> None:
    with pytest.raises(UserError, match=text):
        measure_images(tiny(), f"{shards}/train-*.tar", make())


def test_images_that_cannot_be_read_do_not_count(shards: Path) -> None:
    config = EncoderConfig(name="vit_tiny_patch16_224", patch_size=4, embed_dim=36, num_heads=2)
    encoder = make_encoder(config, SIZE)  # there are 36 images, and one is damaged
    with pytest.raises(UserError, match="images that can be read: 35 images for features of 36"):
        measure_images(encoder, f"{shards}/train-*.tar", MeasureConfig(crops=0, workers=0))
