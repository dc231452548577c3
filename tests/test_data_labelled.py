"""Labels of a split, and k-shot subsets."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data.index.opening import open_manifest
from data.labelled import class_names, count_classes, k_shot, read_label_sets, read_labels
from data.settings import UserError
from data.shards import ImageFile, write_shard


def test_labels_come_in_listed_order(tmp_path: Path) -> None:
    for shard, labels in enumerate(([3, 0], [1])):
        images = [ImageFile(f"s{shard}i{i}", "jpg", b"x", label) for i, label in enumerate(labels)]
        write_shard(tmp_path / f"{shard}.tar", images)
    manifest = open_manifest(tmp_path, "data.train")
    assert read_labels(manifest, "data.train").tolist() == [3, 0, 1]


def test_class_names_come_from_the_file_beside_the_shards_or_the_one_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [ImageFile("one", "jpg", b"x", 1)])
    manifest = open_manifest(tmp_path / "a.tar", "data.train")
    assert class_names(manifest, None, 2) == ["0", "1"]
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    assert class_names(manifest, None, 2) == ["cat", "dog", "owl"]
    (tmp_path / "mine.txt").write_text("Katze\nHund")
    assert class_names(manifest, f"{tmp_path}/mine.txt", 2) == ["Katze", "Hund"]
    with pytest.raises(UserError, match=r"data.train has class 3, but .*classes.txt names 3; mend"):
        class_names(manifest, None, 4)
    with pytest.raises(UserError, match=r"data.classes=nowhere.txt: no such file"):
        class_names(manifest, "nowhere.txt", 2)


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


def test_a_class_that_training_lacks_is_refused() -> None:
    assert count_classes(np.array([0, 4, 1]), np.array([4])) == 5
    with pytest.raises(UserError, match=r"data.val has class \[2\], which data.train lacks"):
        count_classes(np.array([0, 1]), np.array([1, 2]))


def test_k_shot_takes_k_of_each_class_by_seed() -> None:
    labels = np.arange(60) % 3
    places = k_shot(labels, 5, seed=0)
    assert np.unique(places).size == 15
    assert np.bincount(labels[places]).tolist() == [5, 5, 5]
    assert np.array_equal(places, k_shot(labels, 5, seed=0))
    assert not np.array_equal(places, k_shot(labels, 5, seed=1))


def test_too_few_images_of_a_class_are_refused() -> None:
    with pytest.raises(UserError, match=r"class 1 of data.train has only 1 images"):
        k_shot(np.array([0, 0, 1]), 2, seed=0)
