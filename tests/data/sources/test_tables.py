"""Tables of paths and labels as sources."""

import json
from pathlib import Path

import pytest

from data.folder.plan import SourceImages, load_samples
from data.settings import UserError
from data.sources.find import find_source
from data.sources.options import SourceOptions
from tests.conftest import make_png
from tests.data.sources.conftest import FILES, SOURCES, write_folder

IMAGE = make_png(1)
SKIP = SourceOptions(skip_unreadable=True)


def find(source: Path, **options: object) -> SourceImages:
    return find_source(source, SourceOptions(**options))  # type: ignore[arg-type]


def table(folder: Path, text: str, name: str = "list.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.fixture
def images(tmp_path: Path) -> Path:
    names = ("a.png", "b c.png", "deep/\u732b.png", 'q"uo,te\n.png')
    return write_folder(tmp_path, dict.fromkeys(names, IMAGE))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_is_as_the_folder(kind: str, photos: Path, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    found, folder = find(source), find(photos)
    assert sorted(found.images, key=lambda image: image.path) == list(folder.images)
    assert found.classes == folder.classes
    samples = load_samples(source, found, found.images)
    assert {f"{s.key}.png": s.data for s in samples} == FILES


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'File Name,path,Class\nx,a.png,cat\n"x\ny","q""uo,te\n.png",dog\n'),
        ("a.csv", '\ufeffpath;label\r\na.png;cat\r\n"q""uo,te\n.png";dog\r\n'),
        ("a.tsv", 'label\tfilename\ncat\ta.png\ndog\t"q""uo,te\n.png"\n'),
        (
            "a.jsonl",
            '{"img": "a.png", "label": "cat"}\n\n{"img": "q\\"uo,te\\n.png", "label": "dog"}',
        ),
    ],
)
def test_ways_to_write_a_table(images: Path, name: str, text: str) -> None:
    found = find(table(images, text, name))
    own = [(image.path, found.classes[image.label or 0]) for image in found.images]
    assert own == [("a.png", "cat"), ('q"uo,te\n.png', "dog")]


def test_utf16_as_a_spreadsheet_writes_it(images: Path) -> None:
    (images / "a.csv").write_bytes("path,label\ndeep/\u732b.png,\u72ac\n".encode("utf-16"))
    assert find(images / "a.csv").classes == ("\u72ac",)


def test_a_list_of_paths(images: Path) -> None:
    """Its classes are folders, as where it is read without shards."""
    found = find(table(images, "a.png\n\n./b c.png\n", "photos.txt"))
    assert [image.path for image in found.images] == ["a.png", "b c.png"]
    assert found.why_unlabelled == "in no folder of a class: a.png and 1 more"
    assert find(table(images, "deep/\u732b.png\n", "photos.txt")).classes == ("deep",)
    with pytest.raises(UserError, match=r"--root is for a table of images, and SOURCE is a list"):
        find(images / "photos.txt", root=images)


def test_columns_by_name_and_folders_by_root(images: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    source = table(tmp_path / "lists", "id,where,what\n1,a.png,cat\n")
    with pytest.raises(UserError, match=r"no column path, file, .* but id, where, what; its first"):
        find(source)
    with pytest.raises(
        UserError, match=r"--image-column=x is no column of .*, which has id, where"
    ):
        find(source, image_column="x")
    with pytest.raises(UserError, match=r"names 1 image of 1 .*\(a.png \(line 2\): No such file"):
        find(source, image_column="where")
    found = find(source, image_column="where", label_column="what", root=images)
    assert (found.classes, found.images[0].path) == (("cat",), "a.png")
    assert found.origin == "csv table, images by where, labels by what"
    with pytest.raises(UserError, match=r"--root=.*none is not a folder"):
        find(source, root=tmp_path / "none")
    with pytest.raises(UserError, match="--label-column=what takes labels, and --unlabelled none"):
        find(source, image_column="where", label_column="what", root=images, is_unlabelled=True)


def test_what_is_missing_is_refused_and_left_out_when_told(images: Path) -> None:
    (images / "empty.png").touch()
    (images / "notes.md").write_text("x")
    paths = [
        "a.png",
        "gone.png",
        "https://host/x.png",
        "",
        "empty.png",
        "notes.md",
        "deep",
        "a.png",
    ]
    source = table(images, "path,label\n" + "".join(f"{path},cat\n" for path in paths))
    with pytest.raises(
        UserError,
        match=r"names 3 images of 6 that cannot be read below .* \(gone.png \(line 3\): No such "
        r"file or directory, https://host/x.png \(line 4\): an address, not a file, deep .* give "
        "the folder of the images as --root, or leave such rows out by --skip-unreadable",
    ):
        find(source)
    found = find(source, skip_unreadable=True)
    assert [image.path for image in found.images] == ["a.png"]
    text = "; ".join(found.left_out)
    for part in (
        "1 empty file (empty.png)",
        "3 places that cannot be looked at (gone.png (line 3): No such file or directory, ",
        "1 row without a path (line 5)",
        "1 row that repeats an earlier one (line 9: a.png)",
        "1 file that is no image (1 .md: notes.md)",
    ):
        assert part in text
    (images / "a.png").unlink()
    with pytest.raises(UserError, match="holds no image that can be read: 1 empty file"):
        find(source, skip_unreadable=True)


def test_numbers_as_labels_are_in_their_order(images: Path) -> None:
    found = find(table(images, "path,label\na.png,10\nb c.png,9\n"))
    assert found.classes == ("9", "10")
    assert [image.label for image in found.images] == [1, 0]
    rows = [{"path": "a.png", "label": 3}, {"path": "b c.png", "label": 3}]
    assert find(table(images, "\n".join(map(json.dumps, rows)), "a.jsonl")).classes == ("3",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,label\na.png,cat\na.png,dog\n",
            "line 2 and line 3 give a.png the labels cat and dog",
        ),
        ("path,label\na.png,\nb c.png,cat\n", r"gives no label to 1 image of 2 \(line 2: a.png\)"),
        ("path,label\na.png\n", r"line 2 has 1 value for 2 columns; quote what holds a comma"),
        ("path,path\na.png,b\n", "names a column twice"),
        ('path,label\n"a.png,cat\n', "line 2: unexpected end of data; mend the line"),
        ("", "has no column path, file, filename or image, as it is empty; its first line"),
        ("path,label\na.png,caf\u00e9\nb c.png,cafe\u0301\n", "two names are both called"),
        ('path,label\na.png,"new\nline"\n', r"the class name 'new\\nline' has a line break"),
        ("path\n\0.png\n", "cannot be read|null byte|NUL"),
    ],
)
def test_tables_that_are_refused(images: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        find(table(images, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is no JSON"),
        ("[1]", "line 1 is no object; each line is one"),
        ('{"path": 3}', "line 1: path is no path but 3; give the column"),
        ('{"path": "a.png", "label": 1.5}', "the label 1.5 is neither a name nor a whole number"),
        ('{"path": "a.png", "label": ["x"]}', r"the label \[\"x\"\] is neither a name"),
        ("[" * 100_000, "line 1 is no"),
    ],
)
def test_json_lines_that_are_refused(images: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(table(images, line, "a.jsonl"))


def test_a_list_of_classes_numbers_the_labels(images: Path) -> None:
    source = table(images, "path,label\na.png,cat\n")
    found = find(source, classes=["ant", "cat"])
    assert (found.classes, found.images[0].label) == (("ant", "cat"), 1)
    with pytest.raises(UserError, match="--classes lacks cat, 1 class name of SOURCE="):
        find(source, classes=["ant"])
    with pytest.raises(UserError, match="--classes numbers the classes of a SOURCE with labels"):
        find(table(images, "path\na.png\n"), classes=["ant"])


def test_paths_of_any_kind_make_keys(images: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    source = table(
        tmp_path / "lists", f"path\n../a.png\n{tmp_path}/b c.png\n..\\deep\\\u732b.png\n"
    )
    found = find(source)
    samples = list(load_samples(source, found, found.images))
    assert [sample.data for sample in samples] == [IMAGE] * 3
    assert not any(sample.key.startswith("/") for sample in samples)
