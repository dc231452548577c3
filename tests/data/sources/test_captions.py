"""Captions that lie beside images, or in a table, in shards."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data.captions.read import read_captions
from data.folder.plan import PlanOptions, load_samples, plan_hash, plan_shards
from data.index.open import open_manifest
from data.reading.reader import ShardReader
from data.settings import UserError
from data.shards import write_shard
from data.sources.find import find_source
from data.sources.options import SourceOptions
from tests.conftest import make_png
from tests.data.sources.conftest import write_folder, write_tar, write_zip

CAPTIONS = SourceOptions(captions=True)
PLAN = PlanOptions(1_000_000, 0, True, 0)
TEXTS = {
    "cat/a": ("a black cat",),
    "cat/b": ("a caf\u00e9 cat", "another cat"),
    "dog/c": ("a dog",),
}
IMAGES = {f"{name}.png": make_png(place) for place, name in enumerate(TEXTS)}
BESIDE = {f"{name}.txt": "\r\n".join(texts).encode() for name, texts in TEXTS.items()}
FILES = {**IMAGES, **BESIDE, "notes.txt": b"no caption"}
Make = Callable[[Path], Path]


def write_rows(place: Path, caption: str = "caption") -> Path:
    """Write a table with a row a caption, as those of large collections have it."""
    write_folder(place, IMAGES)
    rows = [
        {"file": f"{name}.png", "class": name.split("/")[0], caption: text}
        for name, texts in TEXTS.items()
        for text in texts
    ]
    (place / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place / "list.jsonl"


def write_csv(place: Path) -> Path:
    write_folder(place, IMAGES)
    rows = [f'{name}.png,{name[:3]},"{text}"' for name, texts in TEXTS.items() for text in texts]
    (place / "list.csv").write_text("\n".join(["path,label,text", *rows]))
    return place / "list.csv"


def write_parquet(place: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {
        "image": [{"bytes": data, "path": name} for name, data in IMAGES.items()],
        "label": [name.split("/")[0] for name in IMAGES],
        "captions": [list(texts) for texts in TEXTS.values()],
    }
    parquet.write_table(pyarrow.table(columns), place / "a.parquet")
    return place / "a.parquet"


SOURCES: dict[str, Make] = {
    "folder": lambda place: write_folder(place / "photos", FILES),
    "zip": lambda place: write_zip(place / "a.zip", FILES),
    "tar": lambda place: write_tar(place / "a.tar", FILES),
    "tar.gz": lambda place: write_tar(place / "a.tar.gz", FILES, "w:gz"),
    "jsonl": write_rows,
    "csv": write_csv,
    "parquet": write_parquet,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_captions_and_labels_go_to_the_shards(tmp_path: Path, kind: str) -> None:
    place = SOURCES[kind](tmp_path)
    source = find_source(place, CAPTIONS)
    assert source.classes == ("cat", "dog")
    [members] = plan_shards(source.images, PLAN).values()
    write_shard(tmp_path / "out.tar", load_samples(place, source, members))
    manifest = open_manifest(str(tmp_path / "out.tar"), "data.shards")
    reader = ShardReader(manifest)
    found = {
        reader.key(0, sample): reader.read(0, sample, {"png", "cls", "txt"})
        for sample in range(len(members))
    }
    assert {key: tuple(read_captions(own, None)) for key, own in found.items()} == TEXTS
    assert {key: own["cls"] for key, own in found.items()} == {
        "cat/a": b"0",
        "cat/b": b"0",
        "dog/c": b"1",
    }


def test_texts_that_are_taken_are_not_among_what_is_left_out(tmp_path: Path) -> None:
    source = find_source(SOURCES["folder"](tmp_path), CAPTIONS)
    assert source.left_out == ("1 file that is no image (1 .txt: notes.txt)",)


def test_nothing_changes_where_captions_are_not_asked_for(tmp_path: Path) -> None:
    place = SOURCES["folder"](tmp_path)
    plain, captioned = find_source(place, SourceOptions()), find_source(place, CAPTIONS)
    assert {image.captions for image in plain.images} == {()}
    bare = replace(
        captioned, images=tuple(replace(image, captions=()) for image in captioned.images)
    )
    assert plan_hash(plain, PLAN) == plan_hash(bare, PLAN) != plan_hash(captioned, PLAN)


def test_a_caption_that_changes_makes_another_plan(tmp_path: Path) -> None:
    place = SOURCES["folder"](tmp_path)
    before = plan_hash(find_source(place, CAPTIONS), PLAN)
    (place / "dog/c.txt").write_text("a cat")
    assert plan_hash(find_source(place, CAPTIONS), PLAN) != before


def test_shards_with_captions_keep_to_their_size(tmp_path: Path) -> None:
    files = {f"{n}.png": make_png(n) for n in range(20)}
    texts = {f"{n}.txt": b"a caption" * 300 for n in range(20)}
    place = write_folder(tmp_path / "photos", {**files, **texts})
    source = find_source(place, CAPTIONS)
    plan = plan_shards(source.images, replace(PLAN, shard_bytes=20_000))
    for name, members in plan.items():
        write_shard(tmp_path / name, load_samples(place, source, members))
        content = (tmp_path / name).read_bytes().rstrip(b"\0")
        assert len(content) <= 20_000


@pytest.mark.parametrize("kind", ["folder", "zip", "jsonl"])
def test_an_image_without_a_caption_is_refused_or_left_out(tmp_path: Path, kind: str) -> None:
    if kind == "jsonl":
        place = write_rows(tmp_path)
        place.write_text(place.read_text() + '\n{"file": "dog/d.png", "class": "dog"}')
        write_folder(tmp_path, {"dog/d.png": make_png(9)})
    else:
        files = {**FILES, "dog/d.png": make_png(9)}
        write = write_zip if kind == "zip" else write_folder
        place = write(tmp_path / "source.zip", files)
    with pytest.raises(UserError, match=r"has no caption for 1 image of 4 \(dog/d\.png\); each "):
        find_source(place, CAPTIONS)
    source = find_source(place, replace(CAPTIONS, skip_unreadable=True))
    assert [image.path for image in source.images] == list(IMAGES)
    assert source.left_out[-1] == "1 image without a caption (dog/d.png)"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"caf\xe9", r"dog/c\.txt: not in UTF-8 \(byte 3\)"),
        (b"a" * (5 << 20), r"dog/c\.txt: too long"),
        (b"\n", r"dog/c\.png"),
    ],
)
def test_texts_that_are_no_captions_are_named(tmp_path: Path, content: bytes, reason: str) -> None:
    place = write_folder(tmp_path / "photos", {**FILES, "dog/c.txt": content})
    with pytest.raises(UserError, match=rf"no caption for 1 image of 3 \({reason}\)"):
        find_source(place, CAPTIONS)


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    place = write_folder(tmp_path / "photos", IMAGES)
    with pytest.raises(UserError, match="has no caption for 3 images of 3"):
        find_source(place, replace(CAPTIONS, skip_unreadable=True))


def test_another_column_of_a_table(tmp_path: Path) -> None:
    place = write_rows(tmp_path, caption="says")
    with pytest.raises(UserError, match="has no column caption or text for --captions, but file, "):
        find_source(place, CAPTIONS)
    source = find_source(place, replace(CAPTIONS, caption_column="says"))
    assert tuple(image.captions for image in source.images) == tuple(TEXTS.values())
    assert source.origin == "jsonl table, images by file, labels by class, captions by says"


@pytest.mark.parametrize(("caption", "is_text"), [(1, False), (["a", 1], False), (["a"], True)])
def test_cells_that_are_no_text(tmp_path: Path, caption: object, is_text: bool) -> None:
    write_folder(tmp_path, {"a.png": make_png(0)})
    row = {"path": "a.png", "caption": caption}
    (tmp_path / "list.jsonl").write_text(json.dumps(row))
    if is_text:
        assert find_source(tmp_path / "list.jsonl", CAPTIONS).images[0].captions == ("a",)
        return
    with pytest.raises(UserError, match=r"line 1: caption is no text, nor a list of texts; give"):
        find_source(tmp_path / "list.jsonl", CAPTIONS)


def test_half_a_character_is_no_text(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.png": make_png(0)})
    (tmp_path / "list.jsonl").write_text(r'{"path": "a.png", "caption": "\ud83d"}')
    with pytest.raises(UserError, match=r"line 1: caption is no text"):
        find_source(tmp_path / "list.jsonl", CAPTIONS)


def test_a_column_that_holds_no_texts(tmp_path: Path) -> None:
    place = write_parquet(tmp_path)
    with pytest.raises(UserError, match="the column image holds no texts, nor lists of them"):
        find_source(place, replace(CAPTIONS, caption_column="image"))


def test_a_column_is_for_tables(tmp_path: Path) -> None:
    place = SOURCES["folder"](tmp_path)
    with pytest.raises(UserError, match="--caption-column is for a table of images"):
        find_source(place, replace(CAPTIONS, caption_column="text"))
