"""What `data.val_ratio` sets aside: the same samples wherever they lie, and whatever is beside."""

import os
import random
from pathlib import Path

import pytest

import scripts.make_shards
from data.index.files import FileTable
from data.index.manifest import Manifest
from data.index.open import load_index, open_manifest, set_aside
from data.index.parts import Part
from data.labels.labelled import label_splits
from data.reading.overlap import check_apart
from data.reading.reader import ShardReader
from data.settings import UserError
from data.shards import ImageFile, write_shard
from tests.data.index.test_tables import HARD_NAMES

NAMES = [f"{kind}/{number}" for number in range(30) for kind in ("cat", "dog.s", "\u00e9t\u00e9")]
PLACES = [7, 10, 21]  # set aside of the keys 000 to 039 by 0.1
TWINS = [f"twins/{number}" for number in range(20)]  # each twice: a png and a jpg


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    ends = [f"{name}.png" for name in NAMES + TWINS] + [f"{name}.jpg" for name in TWINS]
    for name in [*ends, *HARD_NAMES, "odd/1.png", "odd/1.jpg", "odd/1~1.png"]:
        write(tmp_path / "photos" / name)
    return tmp_path / "photos"


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.fsencode(path))


def split(spec: object, ratio: float = 0.2, fraction: float = 1.0) -> tuple[Manifest, Manifest]:
    train = open_manifest(spec, "data.train", fraction=fraction, val_ratio=ratio)
    return train, set_aside(train)


def images(manifest: Manifest) -> list[bytes]:
    """Return the bytes of all images."""
    reader = ShardReader(manifest)
    read = [
        reader.read(number, place, {"png", "jpg", "jpeg"})
        for number, shard in enumerate(manifest.shards)
        for place in range(shard.num_samples)
    ]
    return [content for members in read for content in members.values()]


def test_a_folder_and_its_shards_set_the_same_images_aside(tmp_path: Path, photos: Path) -> None:
    out = [tmp_path / "one", tmp_path / "many"]
    scripts.make_shards.main([str(photos), str(out[0])])
    scripts.make_shards.main([str(photos), str(out[1]), "--shard-mb", "0.01", "--seed", "1"])
    assert len(open_manifest(out[1], "x").shards) > 2
    train, val = split(photos)
    whole = images(open_manifest(photos, "x"))
    assert sorted(images(train) + images(val)) == sorted(whole)
    assert 10 < val.num_samples < 45
    for manifests in map(split, out):
        for one, other in zip((train, val), manifests, strict=True):
            assert sorted(images(other)) == sorted(images(one))
    pairs = [Path(os.fsdecode(content)).with_suffix("") for content in images(val)]
    assert all(pairs.count(path) == 2 for path in pairs if path.parent.name == "twins")


def test_what_comes_and_goes_beside_an_image_does_not_move_it(photos: Path) -> None:
    before = [set(images(part)) for part in split(photos)]
    for number in range(50):
        write(photos / f"more/{number}.png")
    for path in random.Random(0).sample(sorted(photos.glob("cat/*.png")), 5):
        path.unlink()
    after = [set(images(part)) for part in split(photos)]
    assert not before[0] & after[1]
    assert not before[1] & after[0]


def test_the_choice_is_what_it_was_in_older_versions() -> None:
    """Else a new version would train on what an old one has set aside."""
    keys = [f"{number:03d}".encode() for number in range(40)]
    assert Part(0.1, is_val=True).places(keys).tolist() == PLACES
    larger = Part(0.3, is_val=True).places(keys).tolist()
    assert set(PLACES) < set(larger)
    assert Part(0.3).places(keys).tolist() == [n for n in range(40) if n not in larger]


def test_the_ratio_is_part_of_what_a_resume_checks(photos: Path) -> None:
    manifests = [*split(photos, 0.2), *split(photos, 0.2 + 1e-9), open_manifest(photos, "x")]
    assert manifests[0].num_samples == manifests[2].num_samples
    assert len({manifest.content for manifest in manifests}) == 5
    assert len({manifest.fingerprint for manifest in manifests}) == 5


def test_a_fraction_is_taken_of_what_is_left(photos: Path) -> None:
    train, val = split(photos)
    part, same = split(photos, fraction=0.5)
    assert part.num_samples == round(train.num_samples / 2)
    assert set(images(part)) < set(images(train))
    assert images(same) == images(val)
    table = load_index(part.shards[0])
    assert isinstance(table, FileTable)
    assert len(table) == part.num_samples


@pytest.mark.parametrize(("ratio", "left"), [(0.001, 3), (0.999, 0)])
def test_each_part_needs_a_sample(tmp_path: Path, ratio: float, left: int) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.png")
    text = f"data.val_ratio={ratio} leaves {left} samples of data.train to train on and {3 - left} "
    with pytest.raises(UserError, match=text):
        split(tmp_path, ratio)


def test_the_classes_are_those_of_both_parts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rare = PLACES[0]  # alone of its class, and set aside
    labels = [2 if number == rare else number % 2 for number in range(40)]
    samples = [ImageFile(f"{n:03d}", "jpg", b"x", label) for n, label in enumerate(labels)]
    write_shard(tmp_path / "a.tar", samples)
    train, val = split(tmp_path, 0.1)
    found, values = label_splits(train, val, None)
    assert found.names == ["0", "1", "2"]
    assert set(values.tolist()) == {0, 1}
    assert "data.val_ratio leaves no image of class [2] to train on" in caplog.text


def test_equal_images_in_both_parts_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = [ImageFile(f"{number:03d}", "jpg", b"the same") for number in range(40)]
    write_shard(tmp_path / "a.tar", samples)
    train, val = split(tmp_path, 0.1)
    check_apart(train, val, ("data.train", "data.val_ratio"))
    assert f"{len(PLACES)} images of data.val_ratio are in data.train too, byte" in caplog.text
