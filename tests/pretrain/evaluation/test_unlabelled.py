"""What is read of images without labels: sums of their features, and crops that images decide."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.batch import Request
from data.index.open import open_manifest
from data.randomness import combine, derive
from data.samples import Samples, crop_numbers
from pretrain.encoder.tokens import Normalise
from pretrain.evaluation.features import PATCHES, View, extract, read_tokens
from pretrain.evaluation.spectrum import Moments, describe_spectrum
from pretrain.evaluation.unlabelled import CropSamples, Pass, read_spectra
from tests.conftest import BAD
from tests.pretrain.evaluation.test_features import SIZE, accelerator, samples, tiny

NUM, AREA = 3, (0.2, 0.8)  # of crops


def crops_of(shards: Path, seed: int = 0) -> CropSamples:
    manifest = open_manifest(f"{shards}/train-*.tar", "images")
    return CropSamples(manifest, SIZE, NUM, seed=seed, crop_area=AREA)


def test_sums_are_those_of_the_features_of_all_usable_images(shards: Path) -> None:
    encoder, train = tiny(), samples(shards, "train-*.tar")
    views = [View(2, "average"), View(2, PATCHES), View(3, "class")]
    found = read_spectra(Pass(accelerator(), 5, 0, "images"), encoder, train, views)
    assert [entry.key for entry in found.unusable.entries] == [f"{BAD:03d}"]
    pooled = [view for view in views if view.pooling != PATCHES]
    features = extract(accelerator(), encoder, train, pooled, 5, 0, "images").features
    expected = {view: features[view].values for view in pooled}
    batch = train[Request(0, 0, 36)]
    with torch.no_grad():
        tokens = read_tokens(encoder, Normalise(encoder)(batch.tensors["image"]), [2])
    expected[views[1]] = tokens[2].patches[batch.tensors["weight"] > 0].flatten(0, 1)  # (35 N, D)
    for view, values in expected.items():
        wanted = describe_spectrum(Moments.of(values, torch.ones(len(values))))
        assert describe_spectrum(found.moments[view]) == pytest.approx(wanted, rel=1e-5), view


# ---------------------------------------------------------------- crops


def test_a_crop_depends_on_the_seed_the_image_and_its_number_alone(shards: Path) -> None:
    crops = crops_of(shards)
    whole, part = crops[Request(0, 0, 36)], crops[Request(0, 7, 9)]
    images = whole.tensors["image"]  # (36 * NUM, C, H, W)
    assert torch.equal(part.tensors["image"], images[7 * NUM : 9 * NUM])
    assert len({crop.numpy().tobytes() for crop in images[7 * NUM : 8 * NUM]}) == NUM
    other = crops_of(shards, seed=1)[Request(0, 7, 9)]
    assert not torch.equal(other.tensors["image"], part.tensors["image"])


def test_crops_are_those_of_training_in_listed_order(shards: Path) -> None:
    crops = crops_of(shards)
    plain = Samples(crops.manifest, SIZE, seed=0, crop_area=AREA)
    content, _ = plain._read(*plain.order.locate(8))
    key = combine(np.array([derive(0, 0)]), 8)
    expected = [plain._crop(content, crop_numbers(combine(key, n))[0]) for n in range(NUM)]
    batch = crops[Request(0, 8, 9)]
    assert torch.equal(batch.tensors["image"], torch.stack(expected))
    assert [(place.position, place.key) for place in batch.places] == [(8, "008")] * NUM


def test_all_crops_of_a_bad_image_count_nothing(shards: Path) -> None:
    batch = crops_of(shards)[Request(0, BAD - 1, BAD + 2)]
    assert batch.tensors["weight"].tolist() == [1] * NUM + [0] * NUM + [1] * NUM
    assert [entry.position for entry in batch.bad] == [BAD] * NUM
