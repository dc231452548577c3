"""Labels of a split, and k-shot subsets."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data.index.manifest import Manifest
from data.index.open import open_manifest
from data.labels.labelled import check_names, k_shot, label_splits, read_label_sets, read_labels
from data.settings import UserError
from data.shards import ImageFile, write_shard


def test_labels_come_in_listed_order(tmp_path: Path) -> None:
    for shard, labels in enumerate(([3, 0], [1])):
        images = [ImageFile(f"s{shard}i{i}", "jpg", b"x", label) for i, label in enumerate(labels)]
        write_shard(tmp_path / f"{shard}.tar", images)
    manifest = open_manifest(tmp_path, "data.train")
    assert read_labels(manifest, "data.train").tolist() == [3, 0, 1]


def test_class_names_come_from_the_file_beside_the_shards_or_the_one_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [ImageFile(f"{n}", "jpg", b"x", n) for n in (1, 0)])
    manifest = open_manifest(tmp_path / "a.tar", "data.train")

    def names(path: str | None = None) -> list[str]:
        return label_splits(manifest, manifest, path)[0].names

    assert names() == ["0", "1"]
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    assert names() == ["cat", "dog", "owl"]
    (tmp_path / "mine.txt").write_text("Katze\nHund")
    assert names(f"{tmp_path}/mine.txt") == ["Katze", "Hund"]
    (tmp_path / "few.txt").write_text("Katze")
    with pytest.raises(UserError, match=r"data.train has class 1, but data.classes=.*few.txt name"):
        names(f"{tmp_path}/few.txt")
    with pytest.raises(UserError, match=r"data.classes=nowhere.txt: no such file"):
        names("nowhere.txt")


def test_sets_of_labels_are_read_one_after_the_other(tmp_path: Path) -> None:
    texts = [b"3 0", b"", b"1,2\n", b" 2 "]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, text in enumerate(texts):
            for extension, content in (("jpg", b"x"), ("cls", text)):
                member = tarfile.TarInfo(f"{number}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    manifest = open_manifest(tmp_path, "data.train")
    assert read_label_sets(manifest, "data.train").tolist() == [3, 0, 1, 2, 2]


def test_a_sample_without_a_label_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [ImageFile("lonely", "jpg", b"x")])
    manifest = open_manifest(tmp_path, "data.train")
    with pytest.raises(UserError, match=r"data.train: a.tar/lonely: no .cls member; each sample"):
        read_labels(manifest, "data.train")


def split(path: Path, labels: Sequence[int], fraction: float = 1.0) -> Manifest:
    """Write a shard whose samples have these labels, and open it."""
    samples = [ImageFile(f"{place:05d}", "jpg", b"x", n) for place, n in enumerate(labels)]
    write_shard(path, samples)
    return open_manifest(path, "data.train", fraction=fraction)


def test_images_of_one_class_are_refused(tmp_path: Path) -> None:
    """What is learnt of them is right on each: 100 %, which says nothing."""
    train = split(tmp_path / "a.tar", [1, 1])
    with pytest.raises(UserError, match=r"all images of data.train are of one class, 1, and a"):
        label_splits(train, train, None)
    for name in ("cat/1", "dog/2"):
        (tmp_path / f"photos/{name}.jpg").parent.mkdir(parents=True)
        (tmp_path / f"photos/{name}.jpg").write_bytes(b"x")
    (tmp_path / "all.txt").write_text("photos/cat/1.jpg\nphotos/dog/2.jpg\n")  # as `find` has it
    listed = open_manifest(tmp_path / "all.txt", "data.train")
    text = r"of one class, photos \(the first folder of each path in the list\), and a classifier"
    with pytest.raises(UserError, match=text):
        label_splits(listed, listed, None)


def test_classes_that_differ_in_capitals_alone_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "classes.txt").write_text("Cat\ndog\ncat\n")
    train = split(tmp_path / "a.tar", [0, 1, 2])
    assert label_splits(train, train, None)[0].names == ["Cat", "dog", "cat"]
    assert caplog.text.count("data.train has the classes Cat and cat, which differ in capital") == 1


def test_a_class_that_training_lacks_is_refused(tmp_path: Path) -> None:
    train, val = split(tmp_path / "a.tar", [0, 4, 1]), split(tmp_path / "b.tar", [4])
    assert label_splits(train, val, None)[0].names == ["0", "1", "2", "3", "4"]
    val = split(tmp_path / "c.tar", [1, 2, 3, 7])
    text = r"data.val has classes \[2, 3, 7\], which data.train lacks"
    with pytest.raises(UserError, match=text):
        label_splits(train, val, None)


def test_a_class_that_the_fraction_loses_is_blamed_on_the_fraction(tmp_path: Path) -> None:
    labels = [2] + [0] * 30 + [1] * 30
    train = split(tmp_path / "a.tar", labels, fraction=0.1)
    assert 2 not in read_labels(train, "data.train")
    val = split(tmp_path / "b.tar", [0, 2])
    text = r"data.fraction=0.1 leaves no sample of class \[2\] in data.train, and data.val has some"
    with pytest.raises(UserError, match=text):
        label_splits(train, val, None, fraction=0.1)
    with pytest.raises(UserError, match=r"data.val has class \[3\], which data.train lacks"):
        label_splits(train, split(tmp_path / "c.tar", [3]), None, fraction=0.1)


@pytest.mark.parametrize("first", [5_000, 300_000, 9_000_000_000])
@pytest.mark.parametrize("is_multi_label", [False, True])
def test_numbers_that_are_ids_are_refused(tmp_path: Path, first: int, is_multi_label: bool) -> None:
    train = split(tmp_path / "a.tar", [first + n % 10 for n in range(20)])
    text = rf"the labels of data.train go to {first + 9:,}, and 10 classes occur, so they are IDs"
    with pytest.raises(UserError, match=text):
        label_splits(train, train, None, is_multi_label=is_multi_label)


def test_few_of_many_numbered_classes_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = split(tmp_path / "a.tar", [0, 999])  # two of ImageNet's
    assert len(label_splits(train, train, None)[0].names) == 1_000
    assert "the labels of data.train go to 999, and 2 classes occur" in caplog.text
    # where all are named, nothing is odd about it
    (tmp_path / "classes.txt").write_text("".join(f"c{n}\n" for n in range(21_000)))
    train = split(tmp_path / "b.tar", [0, 20_999])
    caplog.clear()
    assert len(label_splits(train, train, None)[0].names) == 21_000
    assert caplog.text == ""


def test_a_fraction_that_leaves_few_classes_makes_no_ids(tmp_path: Path) -> None:
    train = split(tmp_path / "a.tar", list(range(3_000)), fraction=0.001)
    val = split(tmp_path / "b.tar", read_labels(train, "data.train").tolist())
    assert len(label_splits(train, val, None, fraction=0.001)[0].names) > 1_000


def test_a_model_keeps_its_classes() -> None:
    check_names(["ant", "bee"], ["ant", "bee"], "run.dir=r")
    check_names(["ant", "bee"], ["0", "1"], "run.dir=r")  # they may be named later
    with pytest.raises(UserError, match=r"run.dir=r holds a model whose class 1 is \[bee\], and"):
        check_names(["ant", "cat"], ["ant", "bee"], "run.dir=r")
    with pytest.raises(UserError, match=r"run.dir=r holds a model of 1 class, and now there are 2"):
        check_names(["0", "1"], ["0"], "run.dir=r")


def test_k_shot_takes_k_of_each_class_by_seed() -> None:
    labels = np.arange(60) % 3
    places = k_shot(labels, 5, seed=0)
    assert np.unique(places).size == 15
    assert np.bincount(labels[places]).tolist() == [5, 5, 5]
    assert np.array_equal(places, k_shot(labels, 5, seed=0))
    assert not np.array_equal(places, k_shot(labels, 5, seed=1))


def test_too_few_images_of_a_class_are_refused() -> None:
    with pytest.raises(UserError, match=r"class 1 of data.train has only 1 image; lower it"):
        k_shot(np.array([0, 0, 1]), 2, seed=0)
