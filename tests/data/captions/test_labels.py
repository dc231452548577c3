"""Classes that are the values of a key of KEY.json."""

from pathlib import Path
from typing import Any

import pytest

from data.captions.labels import KeyedClasses, label_by_key
from data.index.manifest import Manifest
from data.index.open import open_manifest
from data.reading.bad import BadSample
from data.settings import UserError
from data.shards import ImageFile, write_shard
from tests.conftest import make_png


def split(folder: Path, name: str, values: list[Any]) -> Manifest:
    """Write a sample for each value; `...` stands for none."""
    records = [{"other": 1} if value is ... else {"label": value} for value in values]
    samples = (
        ImageFile(f"{number:03d}", "png", make_png(number), captions=("a",), record=record)
        for number, record in enumerate(records)
    )
    write_shard(folder / f"{name}.tar", samples)
    return open_manifest(str(folder / f"{name}.tar"), f"data.{name}")


@pytest.mark.parametrize(
    ("values", "names", "numbers"),
    [
        ([True, False, True], ["false", "true"], [1, 0, 1]),
        ([10, 9, 2.0, 2, 0.5], ["0.5", "2", "9", "10"], [3, 2, 1, 1, 0]),
        (["b", " a", "b", "ä"], ["a", "b", "ä"], [1, 0, 1, 2]),
    ],
)
def test_the_classes_are_the_sorted_values(
    tmp_path: Path, values: list[Any], names: list[str], numbers: list[int]
) -> None:
    train = split(tmp_path, "train", values)
    classes, found = label_by_key(train, train, "label", None)
    assert (classes.names, found.tolist()) == (names, numbers)


def test_the_most_frequent_values_are_classes(tmp_path: Path) -> None:
    train = split(tmp_path, "train", ["d", "b", "c", "b", "c", "a"])
    val = split(tmp_path, "val", ["b", "a", "e"])
    classes, found = label_by_key(train, val, "label", 3)  # of equal ones the first: a
    assert (classes.names, found.tolist()) == (["a", "b", "c"], [1, 2, 1, 2, 0])
    assert classes.number({"json": b'{"label": "e"}'}) == -1
    with pytest.raises(BadSample, match="label is e, which is no class"):
        KeyedClasses("label", classes.numbers, has_others=False).number({"json": b'{"label": "e"}'})


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (["a", ..., "b"], ["a"], r"data\.train: train\.tar/001: \.json has no key label; its keys"),
        (["a", "b"], [None], r"data\.val: val\.tar/000: \.json: the key label is empty; each samp"),
        (["a", " "], ["a"], r"train\.tar/001: \.json: the key label is empty"),
        (["a", ["b"]], ["a"], r"train\.tar/001: \.json: the key label is a list or an object"),
        (["a", "a"], ["a"], r"data\.label_key=label is a in all samples of data\.train"),
        (["a", "b"], ["a", "c"], r"data\.val has the 1 class \[c\] of data\.label_key=label, whi"),
    ],
)
def test_what_is_refused(tmp_path: Path, train: list[Any], val: list[Any], message: str) -> None:
    splits = split(tmp_path, "train", train), split(tmp_path, "val", val)
    with pytest.raises(UserError, match=message):
        label_by_key(*splits, "label", None)
