"""How messages count things and show names."""

import os

import pytest

from data.text import count, name_some, printable


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "shard", "0 shards"),
        (1, "shard", "1 shard"),
        (2, "shard", "2 shards"),
        (1, "class", "1 class"),
        (2, "class", "2 classes"),
        (3, "process", "3 processes"),
        (1000, "image", "1,000 images"),
        (1.0, "hour", "1 hour"),
        (5 / 3, "hour", "1.67 hours"),
        (0.5, "hour", "0.5 hours"),
        (12345.6, "hour", "12,346 hours"),
    ],
)
def test_counts(number: float, noun: str, text: str) -> None:
    assert count(number, noun) == text


def test_a_plural_of_its_own() -> None:
    assert count(2, "index", "indices") == "2 indices"
    assert (
        count(1, "file that is no image", "files that are no images") == "1 file that is no image"
    )


def test_the_first_are_named() -> None:
    assert name_some(["a"]) == "a"
    assert name_some(["a", "b", "c"]) == "a, b, c"
    assert name_some(list("abcdefgh")) == "a, b, c and 5 more"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("café 猫.jpg".encode(), "café 猫.jpg"),
        (b"caf\xe9.jpg", r"caf\xe9.jpg"),
        (b"a\nb\x1b[1m.jpg", r"a\nb\x1b[1m.jpg"),
    ],
)
def test_names_are_shown_on_one_line(name: bytes, text: str) -> None:
    shown = printable(os.fsdecode(name))
    assert shown == text
    shown.encode()
