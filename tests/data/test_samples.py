"""The stream: equal batches for any workers, ranks that cover all, padding that weighs nothing."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from data import shared_memory as lending
from data.batch import Batch, Request
from data.index.manifest import Manifest
from data.index.open import open_manifest
from data.labels.parse import NO_LABEL, read_label
from data.reading.bad import BadSample
from data.samples import Samples
from data.shards import ImageFile, write_shard
from data.shared_memory import blank_images
from data.stream import Share, TrainingStream, evaluation_batches
from tests.conftest import make_png

AREA = (0.2, 1.0)
NUM_SAMPLES = 36
BATCH = 8
IO = Path("/proc/self/io")


@pytest.fixture(scope="module")
def manifest(shards: Path) -> Manifest:
    return open_manifest(f"{shards}/train-*.tar", "data.shards")


@pytest.fixture
def samples(manifest: Manifest) -> Samples:
    return Samples(manifest, (16, 24), seed=3, crop_area=AREA)


def names_of(batch: Batch) -> list[str]:
    return [place.name for place in batch.places]


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (names_of(one), one.bad) == (names_of(other), other.bad)
        assert one.tensors.keys() == other.tensors.keys()
        for name, value in one.tensors.items():
            assert torch.equal(value, other.tensors[name]), name


def steps(samples: Samples, share: Share, first: int, last: int, workers: int = 0) -> list[Batch]:
    stream = TrainingStream(samples, BATCH, share, workers)
    return [batch for step in stream.steps(first, last) for batch in step]


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("is_worker", [False, True])
def test_a_worker_makes_its_images_in_shared_memory(
    monkeypatch: pytest.MonkeyPatch, is_worker: bool
) -> None:
    monkeypatch.setattr(lending, "get_worker_info", lambda: object() if is_worker else None)
    images = blank_images((2, 3, 4, 5))
    assert images.is_shared() == is_worker
    assert torch.equal(images, torch.zeros(2, 3, 4, 5, dtype=torch.uint8))


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(samples: Samples, workers: int) -> None:
    share = Share(0, 1, 4)
    assert_same(steps(samples, share, 2, 11, workers), steps(samples, share, 2, 11))


def test_a_stream_may_begin_anywhere(samples: Samples) -> None:
    share = Share(0, 1, BATCH)
    assert_same(steps(samples, share, 7, 12), steps(samples, share, 0, 12)[7:])


@pytest.mark.skipif(not IO.is_file(), reason="counts what is read in /proc")
def test_a_stream_that_begins_late_reads_no_more_than_one_that_begins_early(tmp_path: Path) -> None:
    image = make_png(0)
    write_shard(tmp_path / "a.tar", [ImageFile(f"{n:03d}", "png", image) for n in range(800)])

    def bytes_read() -> int:
        return int(dict(line.split(": ") for line in IO.read_text().splitlines())["rchar"])

    def bytes_to_first_batch(step: int) -> int:
        before = bytes_read()
        manifest = open_manifest(str(tmp_path / "a.tar"), "data.shards")
        steps(
            Samples(manifest, (16, 16), seed=0, crop_area=AREA), Share(0, 1, BATCH), step, step + 1
        )
        return bytes_read() - before

    bytes_to_first_batch(0)  # indexes it
    early, late = bytes_to_first_batch(1), bytes_to_first_batch(99)
    assert late == pytest.approx(early, rel=0.2)
    assert late < (tmp_path / "a.tar").stat().st_size / 5


@pytest.mark.parametrize(("world_size", "micro"), [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2), (8, 1)])
def test_the_ranks_together_take_the_global_batch(
    samples: Samples, world_size: int, micro: int
) -> None:
    whole = steps(samples, Share(0, 1, BATCH), 0, 10)
    shares = [steps(samples, Share(r, world_size, micro), 0, 10) for r in range(world_size)]
    per_step = BATCH // world_size // micro
    for step, expected in enumerate(whole):
        parts = [b for rank in shares for b in rank[step * per_step : (step + 1) * per_step]]
        assert [name for part in parts for name in names_of(part)] == names_of(expected)
        for name, value in expected.tensors.items():
            assert torch.equal(torch.cat([part.tensors[name] for part in parts]), value), name


def test_each_sample_is_taken_once_an_epoch(samples: Samples) -> None:
    for epoch in (0, 1):
        batches = steps(samples, Share(0, 1, BATCH), 5 * epoch, 5 * epoch + 5)
        names = [name for batch in batches for name in names_of(batch)]
        bad = [f"{e.shard}/{e.key}" for batch in batches for e in batch.bad]
        assert bad == ["train-1.tar/022"]
        assert len(set(names)) == len(names) == NUM_SAMPLES - 1
        assert len(set(names) | set(bad)) == NUM_SAMPLES


def test_consumed_counts_samples_not_slots(samples: Samples) -> None:
    stream = TrainingStream(samples, BATCH, Share(0, 1, BATCH), 0)
    assert stream.steps_per_epoch == 5
    assert [stream.consumed(step) for step in (0, 1, 4, 5, 6, 10)] == [0, 8, 32, 36, 44, 72]


def test_padding_is_blank_and_weighs_nothing(samples: Samples) -> None:
    last = samples[Request(0, 32, 40)]
    bad = {entry.position for entry in last.bad}
    expected = [float(p < NUM_SAMPLES and p not in bad) for p in range(32, 40)]
    assert last.tensors["weight"].tolist() == expected
    assert not last.tensors["image"][4:].any()
    assert samples[Request(0, 40, 44)].tensors["weight"].tolist() == [0, 0, 0, 0]


def test_a_bad_sample_is_named_and_keeps_its_slot(samples: Samples) -> None:
    ids = samples.order.samples(1, np.arange(NUM_SAMPLES))
    position = int(np.flatnonzero(ids == 22)[0])
    batch = samples[Request(1, position - 1, position + 1)]
    assert batch.tensors["weight"].tolist() == [1, 0]
    assert not batch.tensors["image"][1].any()
    assert len(names_of(batch)) == 1
    assert batch.bad == [
        (1, position, "train-1.tar", "022", "no image format that Pillow knows"),
    ]


def test_a_sample_has_one_crop_an_epoch(samples: Samples) -> None:
    """It depends on the sample and the epoch, not on the request it comes in."""
    alone = [samples[Request(0, p, p + 1)] for p in range(8)]
    together = samples[Request(0, 0, 8)]
    for name, value in together.tensors.items():
        assert torch.equal(torch.cat([batch.tensors[name] for batch in alone]), value), name
    again = samples[Request(1, 0, NUM_SAMPLES)]
    epoch = samples[Request(0, 0, NUM_SAMPLES)]
    for name in set(names_of(again)) & set(names_of(epoch)[:5]):
        crops = [
            b.tensors["image"][b.tensors["weight"] > 0][names_of(b).index(name)]
            for b in (epoch, again)
        ]
        assert not torch.equal(*crops)
    assert (
        len(set(epoch.tensors["random_key"].tolist()) | set(again.tensors["random_key"].tolist()))
        == 72
    )


def test_shapes_and_types(samples: Samples) -> None:
    tensors = samples[Request(0, 0, 3)].tensors
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {
        "image": ((3, 3, 16, 24), torch.uint8),
        "weight": ((3,), torch.float32),
        "random_key": ((3,), torch.int64),
        "label": ((3,), torch.int64),
    }


def test_the_global_generator_is_left_alone(samples: Samples) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    steps(samples, Share(0, 1, BATCH), 0, 2, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_shard_that_cannot_be_read_stops_the_stream(tmp_path: Path) -> None:
    """What may pass is no finding about the data."""
    write_shard(tmp_path / "a.tar", [ImageFile("0", "png", b"x")])
    samples = Samples(open_manifest(tmp_path, "data.shards"), (8, 8), seed=0, crop_area=AREA)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(FileNotFoundError):
        samples[Request(0, 0, 1)]


# ---------------------------------------------------------------- evaluation and labels


@pytest.mark.parametrize(("world_size", "micro"), [(1, 5), (2, 4), (3, 8), (4, 20)])
def test_evaluation_takes_each_sample_once_in_as_many_batches_a_rank(
    manifest: Manifest, world_size: int, micro: int
) -> None:
    samples = Samples(manifest, (16, 16), seed=0, labelled=True)
    shares = [Share(rank, world_size, micro) for rank in range(world_size)]
    ranks = [list(evaluation_batches(samples, share, workers=0)) for share in shares]
    assert len({len(rank) for rank in ranks}) == 1
    in_turn = [batch for batches in zip(*ranks, strict=True) for batch in batches]
    names = [name for batch in in_turn for name in names_of(batch)]
    listed = [
        f"{shard.name}/{number:03d}"
        for shard, (start, end) in zip(manifest.shards, pairwise(manifest.starts), strict=True)
        for number in range(start, end)
    ]
    assert names == [name for name in listed if not name.endswith("022")]
    labels = torch.cat([b.tensors["label"][b.tensors["weight"] > 0] for b in in_turn])
    assert labels.tolist() == [int(name[-3:]) % 3 for name in names]
    assert all(batch.tensors["image"].shape[0] == micro for batch in in_turn)


def test_a_label_is_only_asked_for_where_it_matters(tmp_path: Path, shards: Path) -> None:
    content = ImageFile("0", "png", make_png(0), None)
    write_shard(tmp_path / "a.tar", [content, ImageFile("1", "png", make_png(0), 4)])
    manifest = open_manifest(tmp_path, "data.shards")
    labelled = Samples(manifest, (8, 8), seed=0, labelled=True)[Request(0, 0, 2)]
    assert labelled.tensors["weight"].tolist() == [0, 1]
    assert labelled.tensors["label"].tolist() == [NO_LABEL, 4]
    assert [entry.reason for entry in labelled.bad] == ["no .cls member"]
    unlabelled = Samples(manifest, (8, 8), seed=0)[Request(0, 0, 2)]
    assert unlabelled.tensors["weight"].tolist() == [1, 1]
    assert unlabelled.tensors["label"].tolist() == [NO_LABEL, NO_LABEL]


@pytest.mark.parametrize(("text", "label"), [(b"7", 7), (b" 12\n", 12), (b"0", 0)])
def test_labels_are_numbers(text: bytes, label: int) -> None:
    assert read_label({"cls": text}) == label


@pytest.mark.parametrize("text", [b"-1", b"cat", b"", b"1.0", b"\xff", b"9" * 30])
def test_what_is_no_label(text: bytes) -> None:
    with pytest.raises(BadSample, match=r"^\.cls holds b'.*', not a class number$"):
        read_label({"cls": text})
