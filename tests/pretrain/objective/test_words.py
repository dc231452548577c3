"""Visual words: k-means, the nearest word, and the images that they are learnt from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import pretrain.run
from data.index.open import open_manifest
from data.samples import Samples
from data.settings import RunStopped, UserError
from data.shards import ImageFile, write_shard
from data.stream import Share, TrainingStream
from pretrain.objective.learn import first_images
from pretrain.objective.pixels import to_patches
from pretrain.objective.words import Words, fit
from tests.conftest import BAD


def clustered(num_words: int, num_each: int, noise: int) -> tuple[Tensor, Tensor]:
    """Make patches of 2x2 RGB pixels around as many centres: uint8 (n, 12), and whose they are."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randint(20, 236, (num_words, 12), generator=generator)
    owners = torch.arange(num_words).repeat(num_each)
    jitter = torch.randint(-noise, noise + 1, (len(owners), 12), generator=generator)
    return (centres[owners] + jitter).to(torch.uint8), owners


def fitted(patches: Tensor, num_words: int, seed: int = 0) -> Words:
    target = Words((2, 2), 3, num_words)
    target.load(fit(patches, num_words, target.num_components, seed))
    return target


def as_images(patches: Tensor) -> Tensor:
    """uint8 (n, 12) -> n images of one patch, (n, 3, 2, 2)."""
    return patches.unflatten(1, (3, 2, 2))


def test_words_are_of_one_cluster_each_and_painted_as_its_mean() -> None:
    patches, owners = clustered(num_words=4, num_each=200, noise=6)
    # more words than clusters: k-means may put two into one, but never one over two
    target = fitted(patches, num_words=24)
    words = target.answers(as_images(patches))[:, 0, 0]
    for word in words.unique().tolist():
        assert len(owners[words == word].unique()) == 1
        mean = patches[words == word].float().mean(0)
        torch.testing.assert_close(target.pixels[word], mean, atol=1e-2, rtol=0)
    painted = target.colours(words[:, None, None], as_images(patches), torch.ones(800, 1).bool())
    assert (painted.flatten(1).int() - patches.int()).abs().max() <= 2 * 6 + 1


def test_answers_are_the_nearest_words_in_whitened_components() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(0, 256, (500, 12), generator=generator, dtype=torch.uint8)
    patches[:, 6:] //= 8  # some values vary little
    target = fitted(patches, num_words=20)
    mean, components = target.mean.double(), target.components.double()
    places = (patches.double() - mean) @ components  # (500, 12)
    covariance = places.T @ places / 500
    # the variance v of a component becomes v / (v + 1 % of the largest)
    off = covariance - covariance.diag().diag()
    assert off.abs().max() < 1e-3
    assert 0.3 < covariance.diag().min() < covariance.diag().max() < 1
    distances = torch.cdist(places, target.words.double())
    expected = distances.argmin(1)
    assert torch.equal(target.answers(as_images(patches))[:, 0, 0], expected)
    # rounds end where each word is the mean of its patches, or close to it
    for word in expected.unique().tolist():
        step = places[expected == word].mean(0) - target.words[word].double()
        assert step.norm() < 0.1


def test_words_follow_from_patches_and_seed() -> None:
    patches, _ = clustered(num_words=9, num_each=30, noise=30)
    first, again, other = (fit(patches, 9, 12, seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["words"], other["words"])


def test_images_of_one_colour_give_words() -> None:
    found = fit(torch.full((50, 12), 77, dtype=torch.uint8), 8, 12, seed=0)
    assert all(value.isfinite().all() for value in found.values())
    target = Words((2, 2), 3, 8)
    target.load(found)
    assert target.answers(torch.full((1, 3, 4, 4), 77, dtype=torch.uint8)).eq(0).all()
    assert found["pixels"][0].eq(77).all()


# ---------------------------------------------------------------- the images


def stream_of(shards: Path, share: Share, workers: int = 0) -> TrainingStream:
    manifest = open_manifest(f"{shards}/train-*.tar", "data.shards")
    samples = Samples(manifest, (16, 16), seed=5, crop_area=(0.5, 1.0))
    return TrainingStream(samples, 8, share, workers)


def test_all_ranks_would_learn_from_the_same_images(shards: Path) -> None:
    images, bad = first_images(stream_of(shards, Share(0, 1, 8)), 1_024)
    assert [entry.key for entry in bad] == [f"{BAD:03d}"]
    assert images.shape == (35, 3, 16, 16)  # of 36 images one is bad
    others, _ = first_images(stream_of(shards, Share(1, 2, 2), workers=1), 1_024)
    assert torch.equal(others, images)
    assert torch.equal(first_images(stream_of(shards, Share(0, 1, 8)), 10)[0], images[:10])
    seen = [batch.tensors for [batch] in stream_of(shards, Share(0, 1, 8)).steps(0, 5)]
    trained = torch.cat([each["image"][each["weight"] > 0] for each in seen])
    assert torch.equal(images, trained)  # the crops of the first epoch


def test_a_run_learns_its_words_and_keeps_them(tmp_path: Path, tiny: list[str]) -> None:
    arguments = [*tiny, "target.kind=words", "target.num_words=16", f"run.dir={tmp_path}/run"]
    pretrain.run.main(arguments)
    [checkpoint] = sorted((tmp_path / "run/checkpoints").iterdir())[-1:]
    saved = load_file(checkpoint / "model.safetensors")
    words = saved["target.words"]
    assert len(words.unique(dim=0)) == 16
    assert saved["target.pixels"].min() >= 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["target.num_words=600"], "target.num_words=600 is more than the 560 patches of the"),
        (["data.read=sequential"], "target.kind=words reads the first images twice, which data.r"),
    ],
)
def test_what_cannot_be_learnt(
    tmp_path: Path, tiny: list[str], more: list[str], message: str
) -> None:
    arguments: list[Any] = [*tiny, "target.kind=words", *more, f"run.dir={tmp_path}/run"]
    with pytest.raises(UserError, match=message):
        pretrain.run.main(arguments)


def test_broken_images_are_no_reason_to_ask_for_fewer_words(
    tmp_path: Path, tiny: list[str]
) -> None:
    """The cause is named by its own: the images, with the reason."""
    images = (ImageFile(f"{n:03d}", "png", b"no image", None) for n in range(20))
    write_shard(tmp_path / "broken.tar", images)
    told = [*tiny, "target.kind=words", "target.num_words=16", f"run.dir={tmp_path}/run"]
    with pytest.raises(RunStopped) as caught:
        pretrain.run.main([*told, f"data.shards={tmp_path}/broken.tar"])
    assert str(caught.value).startswith("20 of the first 20 training images cannot be used, such")
    assert "no image format that Pillow knows; so there are too few patches for target.num_" in str(
        caught.value
    )


def test_patches_lie_as_the_target_reads_them() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 6), dtype=torch.uint8)
    patches = to_patches(images, (2, 2))
    assert patches.shape == (2, 6, 3, 2, 2)
    target = fitted(patches.flatten(2).flatten(0, 1), num_words=12)
    answers = target.answers(images)
    assert answers.shape == (2, 6, 1)
    painted = target.colours(answers, images, torch.ones(2, 6).bool())
    assert torch.equal(painted, patches)  # as many words as patches, and all patches differ
