"""Images and captions: equal for any workers and ranks, swapped by the order, or named as bad."""

import dataclasses
import io
import tarfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from data.batch import Batch, Request
from data.captions.config import CaptionConfig, CaptionedDataConfig
from data.captions.learn import learn_vocabulary
from data.captions.samples import CaptionedSamples
from data.captions.vocabulary import Vocabulary
from data.images.decoding import decode
from data.index.manifest import Manifest
from data.index.open import open_manifest
from data.samples import Samples
from data.shards import ImageFile, write_shard
from data.storage.locations import Storage
from data.stream import Share, TrainingStream, evaluation_batches
from tests.conftest import make_png
from tests.data.captions.conftest import NUM_SAMPLES, caption_of
from tests.servers import flaky_http

SIZE = (16, 24)
BATCH = 12
WHOLE = Share(0, 1, BATCH)
CONFIG = CaptionConfig(max_tokens=20)


@pytest.fixture(scope="module")
def samples(manifest: Manifest, vocabulary: Vocabulary) -> CaptionedSamples:
    return make_samples(manifest, vocabulary)


def make_samples(
    manifest: Manifest,
    vocabulary: Vocabulary,
    config: CaptionConfig = CONFIG,
    *,
    is_training: bool = True,
    seed: int = 3,
) -> CaptionedSamples:
    return CaptionedSamples(
        manifest, SIZE, seed=seed, vocabulary=vocabulary, config=config, is_training=is_training
    )


def steps(samples: Samples, share: Share, first: int, last: int, workers: int = 0) -> list[Batch]:
    stream = TrainingStream(samples, BATCH, share, workers)
    return [batch for step in stream.steps(first, last) for batch in step]


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.places, one.bad) == (other.places, other.bad)
        assert one.tensors.keys() == other.tensors.keys()
        for name, value in one.tensors.items():
            assert torch.equal(value, other.tensors[name]), name


def joined(batches: list[Batch]) -> dict[str, torch.Tensor]:
    names = batches[0].tensors
    return {name: torch.cat([batch.tensors[name] for batch in batches]) for name in names}


def text_of(tokens: torch.Tensor, vocabulary: Vocabulary) -> str:
    pieces = [vocabulary.piece(int(n)) for n in tokens if int(n) not in vocabulary.special]
    return " ".join(pieces).replace(" ##", "")


def words(text: str) -> str:
    return text.lower().replace(".", " .")


# ---------------------------------------------------------------- the stream


def test_two_workers_give_the_same_batches(samples: CaptionedSamples) -> None:
    share = Share(0, 1, 3)
    assert_same(steps(samples, share, 2, 7, workers=2), steps(samples, share, 2, 7))


def test_a_stream_may_begin_anywhere(samples: CaptionedSamples) -> None:
    assert_same(steps(samples, WHOLE, 5, 9), steps(samples, WHOLE, 0, 9)[5:])


@pytest.mark.parametrize(("world_size", "micro"), [(1, 1), (2, 3), (3, 4)])
def test_any_ranks_get_the_same_captions_and_swaps(
    samples: CaptionedSamples, world_size: int, micro: int
) -> None:
    whole = steps(samples, WHOLE, 0, 5)  # the fourth step is padded, the fifth of the next epoch
    ranks = [steps(samples, Share(r, world_size, micro), 0, 5) for r in range(world_size)]
    per_step = BATCH // world_size // micro
    for step, expected in enumerate(whole):
        parts = [b for rank in ranks for b in rank[step * per_step : (step + 1) * per_step]]
        found = joined(parts)
        assert found.keys() == expected.tensors.keys()
        for name, value in expected.tensors.items():
            assert torch.equal(found[name], value), name


def test_ranks_in_evaluation_give_the_listed_order(
    manifest: Manifest, vocabulary: Vocabulary
) -> None:
    samples = make_samples(manifest, vocabulary, is_training=False)
    whole = joined(list(evaluation_batches(samples, Share(0, 1, 40), 0)))
    ranks = [list(evaluation_batches(samples, Share(rank, 3, 5), 0)) for rank in range(3)]
    parts = joined([batch for step in zip(*ranks, strict=True) for batch in step])
    for name, value in whole.items():
        assert torch.equal(parts[name][:NUM_SAMPLES], value[:NUM_SAMPLES]), name
    texts = [text_of(tokens, vocabulary) for tokens in whole["tokens"][:NUM_SAMPLES]]
    assert texts == [words(caption_of(number)) for number in range(NUM_SAMPLES)]


def test_shards_on_a_server_give_what_local_ones_do(
    captioned: Path, samples: CaptionedSamples, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    storage = Storage(cache_dir=tmp_path / "cache")
    with flaky_http(captioned) as server:
        urls = [f"{server.url}/{name}.tar" for name in ("a", "b")]
        remote = open_manifest(urls, "data.shards", storage)
        share = Share(0, 1, 3)  # odd: every third neighbour is in another request
        assert_same(
            steps(make_samples(remote, vocabulary), share, 0, 2), steps(samples, share, 0, 2)
        )
        config = CaptionedDataConfig(vocabulary_size=200)
        assert learn_vocabulary(remote, config).sha256 == vocabulary.sha256


def test_images_are_those_of_an_uncaptioned_set(
    manifest: Manifest, samples: CaptionedSamples, vocabulary: Vocabulary
) -> None:
    request = Request(0, 0, NUM_SAMPLES)
    plain = Samples(manifest, SIZE, seed=3)[request]
    listed = make_samples(manifest, vocabulary, is_training=False)[request]
    for name, value in plain.tensors.items():
        assert torch.equal(listed.tensors[name], value), name
    # while training, too: no crop, no flip
    images = dict(zip([p.key for p in plain.places], plain.tensors["image"], strict=True))
    batch = samples[request]
    for place, image in zip(batch.places, batch.tensors["image"], strict=True):
        assert torch.equal(image, images[place.key])


def test_training_crops_are_never_flipped(manifest: Manifest, vocabulary: Vocabulary) -> None:
    config = dataclasses.replace(CONFIG, crop_area=(1.0, 1.0))
    crops = make_samples(manifest, vocabulary, config)
    batch = crops[Request(0, 0, NUM_SAMPLES)]
    for place, image in zip(batch.places, batch.tensors["image"], strict=True):
        members = crops.reader.read(*crops.order.locate(int(place.key)), {"png"})
        whole, crop = thumbnail(decode(members["png"])), thumbnail(image)
        assert (crop - whole).abs().sum() < (crop - whole.flip(2)).abs().sum()


def thumbnail(image: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(image[None].float(), (3, 4), mode="area")[0]


# ---------------------------------------------------------------- captions


def test_each_caption_is_its_own_images(samples: CaptionedSamples, vocabulary: Vocabulary) -> None:
    batch = samples[Request(0, 0, NUM_SAMPLES)]
    for place, tokens in zip(batch.places, batch.tensors["tokens"], strict=True):
        number = int(place.key)
        own = [words(caption_of(number))] + ([f"number {number}"] if number % 2 else [])
        assert text_of(tokens, vocabulary) in own


def test_one_of_several_captions_is_drawn_anew_in_each_epoch(
    samples: CaptionedSamples, vocabulary: Vocabulary
) -> None:
    is_second: dict[str, list[bool]] = {}
    for epoch in range(8):
        batch = samples[Request(epoch, 0, NUM_SAMPLES)]
        for place, tokens in zip(batch.places, batch.tensors["tokens"], strict=True):
            text = text_of(tokens, vocabulary)
            is_second.setdefault(place.key, []).append(text.startswith("number"))
    drawn = [sum(times) for key, times in is_second.items() if int(key) % 2]
    assert 0.35 < sum(drawn) / 8 / len(drawn) < 0.65
    assert len(set(drawn)) > 3


def test_cut_captions_are_counted_or_refused(manifest: Manifest, vocabulary: Vocabulary) -> None:
    short = dataclasses.replace(CONFIG, max_tokens=5)
    request = Request(0, 0, 5)
    batch = make_samples(manifest, vocabulary, short, is_training=False)[request]
    full = vocabulary.encode(caption_of(0), 40)
    assert batch.tensors["num_cut"].tolist() == [int((full.words >= 0).sum()) - 3] * 5
    assert batch.tensors["tokens"].shape == batch.tensors["pair_tokens"].shape == (5, 5)
    refused = dataclasses.replace(short, long_captions="refuse")
    batch = make_samples(manifest, vocabulary, refused, is_training=False)[request]
    assert batch.tensors["weight"].tolist() == [0] * 5
    assert batch.bad[0].reason == "the caption has 11 tokens, data.max_tokens=5"


def test_padding_has_an_empty_text(samples: CaptionedSamples, vocabulary: Vocabulary) -> None:
    batch = samples[Request(0, NUM_SAMPLES - 1, NUM_SAMPLES + 2)]
    empty = vocabulary.encode("", 20).tokens.tolist()
    assert batch.tensors["weight"].tolist() == [1, 0, 0]
    for name in ("tokens", "pair_tokens"):
        assert batch.tensors[name][1:].tolist() == [empty] * 2
    assert batch.tensors["is_match"][1:].tolist() == [1, 1]


# ---------------------------------------------------------------- swaps


def test_half_of_the_texts_are_the_neighbours(samples: CaptionedSamples) -> None:
    matches: list[int] = []
    for epoch in range(12):
        batch = samples[Request(epoch, 0, NUM_SAMPLES)].tensors
        for position in range(NUM_SAMPLES):
            neighbour = position ^ 1 if position < NUM_SAMPLES - 1 else position - 1
            is_match = int(batch["is_match"][position])
            whose = position if is_match else neighbour
            assert torch.equal(batch["pair_tokens"][position], batch["tokens"][whose])
            assert is_match == torch.equal(
                batch["pair_tokens"][position], batch["tokens"][position]
            )
            matches.append(is_match)
    assert 0.45 < sum(matches) / len(matches) < 0.55
    assert 0 in matches[NUM_SAMPLES - 1 :: NUM_SAMPLES]  # the last one of an odd number, too


def test_swaps_differ_from_epoch_to_epoch(samples: CaptionedSamples) -> None:
    swaps = [samples[Request(e, 0, NUM_SAMPLES)].tensors["is_match"].tolist() for e in range(4)]
    assert all(one != other for one, other in pairwise(swaps))


def test_equal_captions_are_never_swapped(tmp_path: Path, vocabulary: Vocabulary) -> None:
    alike = ("A red  square", "a RED square")  # to the vocabulary one text
    write_shard(
        tmp_path / "a.tar",
        [ImageFile(f"{n}", "png", make_png(n), captions=(alike[n % 2],)) for n in range(30)],
    )
    manifest = open_manifest(str(tmp_path / "a.tar"), "data.shards")
    batch = make_samples(manifest, vocabulary)[Request(0, 0, 30)]
    assert batch.tensors["is_match"].tolist() == [1] * 30


def test_a_single_sample_is_never_swapped(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write_shard(tmp_path / "a.tar", [ImageFile("0", "png", make_png(0), captions=("a",))])
    manifest = open_manifest(str(tmp_path / "a.tar"), "data.shards")
    samples = make_samples(manifest, vocabulary)
    assert [int(samples[Request(e, 0, 1)].tensors["is_match"]) for e in range(8)] == [1] * 8


# ---------------------------------------------------------------- bad samples


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


BAD = {
    "c": ([("png", None)], "no caption: it has no .txt member"),
    "e": ([("png", None), ("txt", b"\n")], ".txt: the caption is empty"),
    "f": ([("png", None), ("txt", b"caf\xe9")], ".txt: not in UTF-8"),
    "g": ([("txt", b"a cat")], "no image among its members (.txt)"),
    "h": ([("png", b"none"), ("txt", b"a dog")], "no image format that Pillow knows"),
    "i": ([("png", None), ("jpg", None), ("txt", b"a")], "2 images (.png, .jpg), and a caption"),
    "j": ([("png", None), ("txt", "\u200b".encode())], "the caption holds no word"),
}


@pytest.fixture
def bad(tmp_path: Path) -> Manifest:
    """Write 5 good samples among 7 bad ones."""
    members: list[tuple[str, bytes]] = []
    for number, key in enumerate("abcdefghijkl"):
        own = BAD[key][0] if key in BAD else [("png", None), ("txt", f"text {key}".encode())]
        members += [
            (f"{key}.{ending}", make_png(number) if content is None else content)
            for ending, content in own
        ]
    write_tar(tmp_path / "a.tar", members)
    return open_manifest(str(tmp_path / "a.tar"), "data.shards")


@pytest.mark.parametrize("is_training", [False, True])
def test_bad_captions_are_named_and_weigh_nothing(
    bad: Manifest, vocabulary: Vocabulary, is_training: bool
) -> None:
    batch = make_samples(bad, vocabulary, is_training=is_training)[Request(0, 0, 12)]
    positions = [entry.position or 0 for entry in batch.bad]
    assert positions == sorted(set(positions))
    assert len(positions) == len(BAD)
    for entry in batch.bad:
        assert entry.reason.startswith(BAD[str(entry.key)][1])
        assert batch.tensors["weight"][entry.position] == 0
        assert not batch.tensors["image"][entry.position].any()
    assert [place.key for place in batch.places if place.key in BAD] == []
    assert float(batch.tensors["weight"].sum()) == len(batch.places) == 5


def test_a_neighbour_is_the_same_however_requests_are_cut(
    bad: Manifest, vocabulary: Vocabulary
) -> None:
    samples = make_samples(bad, vocabulary)
    for epoch in range(6):
        whole = samples[Request(epoch, 0, 12)]
        parts = joined([samples[Request(epoch, p, p + 1)] for p in range(12)])
        for name, value in whole.tensors.items():
            assert torch.equal(parts[name], value), name


def test_the_text_of_a_sample_whose_image_is_bad_may_stand_beside_another(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    write_tar(
        tmp_path / "a.tar",
        [("a.png", make_png(0)), ("a.txt", b"one"), ("b.png", b"none"), ("b.txt", b"two")],
    )
    manifest = open_manifest(str(tmp_path / "a.tar"), "data.shards")
    samples = make_samples(manifest, vocabulary)
    weights = [samples[Request(epoch, 0, 2)].tensors for epoch in range(8)]
    own = [int(t["is_match"][t["weight"].argmax()]) for t in weights]
    assert set(own) == {0, 1}


def test_captions_of_json(tmp_path: Path, vocabulary: Vocabulary) -> None:
    json = b'{"caption": ["a red square", "no"], "url": "x"}'
    write_tar(tmp_path / "a.tar", [("a.png", make_png(0)), ("a.json", json)])
    manifest = open_manifest(str(tmp_path / "a.tar"), "data.shards")
    config = dataclasses.replace(CONFIG, caption_key="caption")
    [tokens] = make_samples(manifest, vocabulary, config, is_training=False)[
        Request(0, 0, 1)
    ].tensors["tokens"]
    assert text_of(tokens, vocabulary) == "a red square"


# ---------------------------------------------------------------- constants


def test_a_checkpoint_of_another_vocabulary_is_told_apart(
    manifest: Manifest, samples: CaptionedSamples, vocabulary: Vocabulary
) -> None:
    other = make_samples(manifest, Vocabulary.learn(["another one"], 100))
    constants = [TrainingStream(each, BATCH, WHOLE, 0).constants(1) for each in (samples, other)]
    assert {k for k, v in constants[0].items() if v != constants[1][k]} == {
        "data.vocabulary (sha256)"
    }
    plain = Samples(manifest, SIZE, seed=3, crop_area=(0.5, 1.0))
    image_only = TrainingStream(plain, BATCH, WHOLE, 0).constants(1)
    assert list(image_only) == [name for name in constants[0] if "vocabulary" not in name]
