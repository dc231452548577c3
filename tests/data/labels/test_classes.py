"""Files of class names, and one numbering for shards whose files differ."""

from pathlib import Path

import pytest

from data.index.manifest import Manifest
from data.index.open import open_manifest
from data.labels.classes import match_classes, parse_classes, read_classes
from data.labels.labelled import label_splits
from data.settings import UserError
from data.shards import ImageFile, write_shard
from tests.servers import flaky_http


@pytest.mark.parametrize(
    "content",
    [
        b"ant\nbee\n",
        b"ant\nbee",
        b"\xef\xbb\xbfant\nbee\n",
        b"ant\r\nbee\r\n",
        b"ant\rbee\r",
        b"ant\nbee\n\n\n",
        b"ant\nbee\n \t\n",
        b"  ant \t\nbee  ",
        "ant\r\nbee\n".encode("utf-16"),
        b"\xfe\xff" + "ant\nbee".encode("utf-16-be"),
        "ant\nbee\n".encode("utf-32"),
    ],
)
def test_what_means_nothing_in_a_list_of_classes_is_trimmed(content: bytes) -> None:
    assert parse_classes(content, "classes.txt") == ["ant", "bee"]


def test_names_are_kept_as_they_are_but_for_the_spelling_of_accents() -> None:
    text = "hot dog\n1,000\nÅland\ncafe\u0301\n\u00a0x\u2028y"
    expected = ["hot dog", "1,000", "Åland", "caf\u00e9", "x\u2028y"]
    assert parse_classes(text.encode(), "c") == expected


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"ant\n\nbee\n", "c.txt, line 2 is blank, but each line is a class and the first is"),
        (b"\nant\n", "c.txt, line 1 is blank"),
        (b"\xef\xbb\xbf\nant\n", "c.txt, line 1 is blank"),
        (b"ant\nbee\nant \n", "c.txt: lines 1 and 3 both say ant; each class has one line and"),
        ("café\ncafe\u0301\n".encode(), "c.txt: lines 1 and 2 both say café"),
        (b"ant\ncaf\xe9\n", "c.txt, line 2 is not utf-8; save the file as UTF-8"),
        ("ant\nbee".encode("utf-16-le"), "c.txt, line 1 holds NUL bytes, as a table or UTF-16"),
        (b"", "c.txt is empty; write a class name a line"),
        (b"\xef\xbb\xbf\n\n", "c.txt is empty"),
    ],
)
def test_what_could_shift_or_merge_classes_is_refused_with_its_line(
    content: bytes, text: str
) -> None:
    with pytest.raises(UserError) as caught:
        parse_classes(content, "c.txt")
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--classes=.*nowhere: no such file"):
        read_classes(tmp_path / "nowhere", f"--classes={tmp_path}/nowhere")
    with pytest.raises(UserError, match=r"cannot be read: Is a directory"):
        read_classes(tmp_path)


# ---------------------------------------------------------------- one numbering


def folder(path: Path, labels: list[int], names: str | None = None) -> Path:
    """Write a shard whose samples have these labels, and a class name a letter beside it."""
    path.mkdir(parents=True)
    samples = [ImageFile(f"{place:03d}", "jpg", b"x", n) for place, n in enumerate(labels)]
    write_shard(path / "a.tar", samples)
    if names is not None:
        (path / "classes.txt").write_text("\n".join(names))
    return path


def opened(*folders: Path) -> Manifest:
    return open_manifest(list(map(str, folders)), "data.train")


def test_a_split_that_lacks_classes_is_renumbered_by_name(tmp_path: Path) -> None:
    train = opened(folder(tmp_path / "train", [0, 1, 2, 3], "abcd"))
    val = opened(folder(tmp_path / "val", [0, 1], "bd"))
    classes = match_classes(train, val, None, "data")
    assert classes.names == list("abcd")
    assert classes.train is None, "the common list is training's"
    assert classes.val is not None
    assert [classes.val(0, number) for number in (0, 1)] == [1, 3]
    labels, values = label_splits(train, val, None)
    assert labels.names == list("abcd")
    assert values.tolist() == [0, 1, 2, 3]


def test_folders_of_one_split_are_brought_together_by_name(tmp_path: Path) -> None:
    first = folder(tmp_path / "first", [0, 1], "bd")
    second = folder(tmp_path / "second", [0, 1, 2], "abd")
    train, val = opened(first, second), opened(folder(tmp_path / "val", [0, 1], "da"))
    labels, values = label_splits(train, val, None)
    assert labels.names == list("bda"), "in the order in which they first occur"
    assert values.tolist() == [0, 1, 2, 0, 1]
    assert labels.val is not None
    assert [labels.val(0, number) for number in (0, 1)] == [1, 2]


def test_equal_lists_change_nothing(tmp_path: Path) -> None:
    train = opened(folder(tmp_path / "train", [0, 1, 2], "abc"))
    val = opened(folder(tmp_path / "val", [2], "abc"))
    labels, _ = label_splits(train, val, None)
    assert labels.train is None
    assert labels.val is None


def test_the_list_that_is_given_is_the_common_one(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("c\nb\na\nz\n")
    train = opened(folder(tmp_path / "train", [0, 1, 2], "abc"))
    val = opened(folder(tmp_path / "val", [0, 0], "b"))
    bare = opened(folder(tmp_path / "bare", [0, 1]))
    labels, values = label_splits(train, val, str(tmp_path / "mine.txt"))
    assert labels.names == list("cbaz")
    assert values.tolist() == [2, 1, 0]
    assert labels.val is not None
    assert labels.val(0, 0) == 1
    labels, _ = label_splits(train, bare, str(tmp_path / "mine.txt"))
    assert labels.val is None, "it holds for shards without a list of their own"


def test_other_names_are_given_line_by_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "german.txt").write_text("Affe\nBär\nKatze\n")
    train = opened(folder(tmp_path / "train", [0, 1, 2], "abc"))
    val = opened(folder(tmp_path / "val", [0, 1], "bc"))
    with caplog.at_level("INFO"):
        labels, values = label_splits(train, val, str(tmp_path / "german.txt"))
    assert labels.names == ["Affe", "Bär", "Katze"]
    assert values.tolist() == [0, 1, 2]
    assert labels.val is not None
    assert [labels.val(0, number) for number in (0, 1)] == [1, 2]
    assert "a is called Affe, and so on, line by line" in caplog.text


@pytest.mark.parametrize(
    ("train_names", "val_names", "val_labels", "text"),
    [
        ("abc", "bx", [0, 1], r"data.val: a.tar/001 is of class \[x\] \(1 in .*val/classes.txt\)"),
        ("abc", "bx", [0, 1], r"which .*train/classes.txt does not name; train on all classes"),
        ("abc", "b", [0, 1], r"data.val: a.tar/001 has class 1, but .*val/classes.txt names 1"),
        ("abcd", "ad", [1], r"data.val has class \[d\], which data.train lacks; train on all"),
        ("ab", "ab", [0], r"data.train has class 2, but .*train/classes.txt names 2; mend"),
        ("abc", None, [0], r"names the classes of data.train, but shards of data.val have no cl"),
        (None, "abc", [0], r"names the classes of data.val, but shards of data.train have no cl"),
    ],
)
def test_what_cannot_be_matched_is_refused(
    tmp_path: Path, train_names: str | None, val_names: str | None, val_labels: list[int], text: str
) -> None:
    train = opened(folder(tmp_path / "train", [0, 1, 2], train_names))
    val = opened(folder(tmp_path / "val", val_labels, val_names))
    with pytest.raises(UserError, match=text) as caught:
        label_splits(train, val, None)
    assert "\n" not in str(caught.value)


def test_a_class_without_a_sample_is_no_matter(tmp_path: Path) -> None:
    train = opened(folder(tmp_path / "train", [0, 1], "ab"))
    labels, _ = label_splits(train, opened(folder(tmp_path / "val", [1], "xb")), None)
    assert labels.val is not None
    assert labels.val(0, 1) == 1


def test_folders_of_one_split_with_and_without_a_list_are_refused(tmp_path: Path) -> None:
    train = opened(folder(tmp_path / "1", [0], "ab"), folder(tmp_path / "2", [0]))
    with pytest.raises(UserError, match=r"of data.train, but other shards have no classes.txt"):
        label_splits(train, train, None)


def test_a_class_that_the_given_list_lacks_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a\nb\n")
    train = opened(folder(tmp_path / "train", [0, 2], "abc"))
    text = r"data.train: a.tar/001 is of class \[c\] \(2 in .*\), which data.classes=.*mine.txt"
    with pytest.raises(UserError, match=text):
        label_splits(train, train, str(tmp_path / "mine.txt"))


def test_lists_beside_remote_shards_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder(tmp_path / "data/train", [0, 1, 2], "abc")
    folder(tmp_path / "data/val", [0], "c")
    folder(tmp_path / "data/bare", [0])
    with flaky_http(tmp_path / "data") as server:
        train, val, bare = (
            open_manifest(f"{server.url}/{name}/a.tar", "data.train")
            for name in ("train", "val", "bare")
        )
        labels, _ = label_splits(train, val, None)
        assert labels.val is not None
        assert labels.val(0, 0) == 2
        with pytest.raises(UserError, match=r"/train/classes.txt names the classes of data.train"):
            label_splits(train, bare, None)
