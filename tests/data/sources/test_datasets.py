"""Parquet and Arrow files of Hugging Face datasets as sources."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import data.sources.arrow
import data.sources.options
from data.folder.plan import PlanOptions, SourceImages, load_samples, plan_shards
from data.settings import UserError
from data.sources.find import find_source
from data.sources.options import SourceOptions
from tests.conftest import make_png
from tests.data.sources.conftest import FILES, write_tar

pa: Any = pytest.importorskip("pyarrow", reason="needs the extra parquet")
pq: Any = pytest.importorskip("pyarrow.parquet")

NAMES = ["dog", "ca\u00f1\u00f3n", "\u732b"]  # in an order of their own
CELLS = [{"bytes": content, "path": name} for name, content in FILES.items()]
LABELS = [NAMES.index(name.split("/")[0]) for name in FILES]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def find(source: Path, **options: object) -> SourceImages:
    return find_source(source, SourceOptions(**options))  # type: ignore[arg-type]


def contents(source: Path, found: SourceImages) -> dict[str, bytes]:
    samples = load_samples(source, found, found.images)
    return {image.path: sample.data for image, sample in zip(found.images, samples, strict=True)}


def features(column: str = "label") -> dict[bytes, bytes]:
    info = {"image": {"_type": "Image"}, column: {"names": NAMES, "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": info}}).encode()}


def make_table(
    cells: list[Any] = CELLS, labels: list[Any] | None = LABELS, *, is_named: bool = True
) -> Any:
    columns = {"image": pa.array(cells, STRUCT)}
    if labels is not None:
        columns["label"] = pa.array(labels)
    table = pa.table(columns)
    return table.replace_schema_metadata(features()) if is_named else table


def write(path: Path, table: Any, rows: int = 5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)
    return path


def write_arrow(path: Path, table: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return path


def classes_of(found: SourceImages) -> dict[str, str]:
    return {image.path: found.classes[image.label or 0] for image in found.images}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_file_holds_images_and_labels_with_names(kind: str, tmp_path: Path) -> None:
    writer = write if kind == "parquet" else write_arrow
    source = writer(tmp_path / f"x.{kind}", make_table())
    found = find(source)
    assert found.classes == tuple(NAMES)
    assert classes_of(found) == {name: name.split("/")[0] for name in FILES}
    assert contents(source, found) == FILES
    backwards = found.images[::-1]
    assert list(found.read(backwards)) == [FILES[image.path] for image in backwards]
    assert found.origin == "1 file of a dataset, images by image, labels by label"
    assert find(source, is_unlabelled=True).why_unlabelled == "--unlabelled"


def test_windows_are_read_from_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table()
    for number in range(3):
        write(
            tmp_path / f"data/train-{number:05d}-of-00003.parquet",
            table.slice(4 * number, 4),
            rows=3,
        )
    found = find(tmp_path)
    monkeypatch.setattr(data.sources.options, "WINDOW_BYTES", 3 * CELLS[0]["bytes"].__len__())
    shuffled = sorted(found.images, key=lambda image: image.path[::-1])
    assert list(found.read(shuffled)) == [FILES[image.path] for image in shuffled]


def test_splits_go_to_train_and_val_and_test_is_left_out(tmp_path: Path) -> None:
    table = make_table()
    write(tmp_path / "data/train-00000-of-00002.parquet", table.slice(0, 4))
    write(tmp_path / "data/train-00001-of-00002.parquet", table.slice(4, 3))
    write(tmp_path / "data/validation-00000-of-00001.parquet", table.slice(7, 3))
    test = write(tmp_path / "data/test-00000-of-00001.parquet", table.slice(10))
    found = find(tmp_path)
    plan = plan_shards(found.images, PlanOptions(10**6, 0, shuffle=True, seed=0))
    names = {shard: {image.path for image in images} for shard, images in plan.items()}
    order = list(FILES)
    assert names == {"train-000000.tar": {*order[:7]}, "val-000000.tar": {*order[7:10]}}
    assert found.left_out == (
        "1 file of the split test (test-00000-of-00001.parquet): a SOURCE of its own, with an OUT "
        "of its own",
    )
    with pytest.raises(UserError, match=r"--val-ratio=0.1 draws images .* SOURCE has its own"):
        plan_shards(found.images, PlanOptions(10**6, 0.1, shuffle=True, seed=0))
    assert len(find(test).images) == 2  # alone, it is all that there is
    (tmp_path / "data/validation-00000-of-00001.parquet").unlink()
    assert {image.is_val for image in find(tmp_path).images} == {None}


def test_configurations_are_not_mixed(tmp_path: Path) -> None:
    for name in ("small", "large"):
        write(tmp_path / name / "train-00000-of-00001.parquet", make_table())
    with pytest.raises(UserError, match=r"several datasets, or configurations of one \(large, sm"):
        find(tmp_path)
    assert len(find(tmp_path / "small").images) == len(FILES)


def test_save_to_disk(tmp_path: Path) -> None:
    table = make_table(is_named=False)
    for split, part in (("train", table.slice(0, 8)), ("validation", table.slice(8))):
        write_arrow(tmp_path / split / "data-00000-of-00001.arrow", part)
        info = {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}
        (tmp_path / split / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "dataset_dict.json").write_text("{}")
    found = find(tmp_path)
    assert found.classes == tuple(NAMES)
    assert [image.is_val for image in found.images] == [False] * 8 + [True] * 4
    assert contents(tmp_path, found) == FILES


README = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': dog
          '1': ca\u00f1\u00f3n
          '2': \u732b
---
# About
"""


def test_names_from_the_readme(tmp_path: Path) -> None:
    source = write(tmp_path / "data/train-00000-of-00001.parquet", make_table(is_named=False))
    assert find(tmp_path).classes == ("0", "1", "2")  # nothing names them
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    assert find(tmp_path).classes == find(source).classes == tuple(NAMES)
    (tmp_path / "README.md").write_text("---\n: [\n---")
    assert find(tmp_path).classes == ("0", "1", "2")


@pytest.mark.parametrize("text", [b"no json", b"[]", b'{"info": {"features": {"label": 3}}}'])
def test_metadata_that_says_nothing(text: bytes, tmp_path: Path) -> None:
    table = make_table().replace_schema_metadata({b"huggingface": text})
    assert find(write(tmp_path / "x.parquet", table)).classes == ("0", "1", "2")


def test_bytes_alone_get_names_by_row_and_endings_by_content(tmp_path: Path) -> None:
    array = np.lib.format.magic(1, 0) + b"x" * 40
    cells = [make_png(1), b"\xff\xd8\xff rest", array, b"no image", b"", None]
    table = pa.table(
        {"img": pa.array(cells, pa.binary()), "fine_label": ["b", "a", "b", "a", "a", "a"]}
    )
    source = write(tmp_path / "x.parquet", table)
    found = find(source)
    assert [image.path for image in found.images] == ["00000000.png", "00000001.jpg"]
    assert classes_of(found) == {"00000000.png": "b", "00000001.jpg": "a"}
    assert found.left_out == (
        "1 row whose bytes are no image (x.parquet row 3)",
        "2 rows without an image (x.parquet row 4, x.parquet row 5)",
        "1 file that is no image (1 .npy: 00000002.npy)",
    )
    assert find(source, label_column="fine_label", image_column="img").images == found.images


def test_paths_alone_are_beside_the_file(tmp_path: Path) -> None:
    cells = [{"bytes": None, "path": f"images/{n}.png"} for n in range(3)]
    source = write(tmp_path / "x.parquet", make_table(cells, [0, 1, 1]))
    (tmp_path / "images").mkdir()
    for number in range(2):
        (tmp_path / f"images/{number}.png").write_bytes(make_png(number))
    with pytest.raises(UserError, match=r"cannot be read \(x.parquet row 2: images/2.png: "):
        find(source)
    found = find(source, skip_unreadable=True)
    assert list(contents(source, found).values()) == [make_png(0), make_png(1)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": ["a"], "label": [1]},
            "has no column image or img, but text, label; give the one",
        ),
        (
            {"image": [[[1, 2], [3, 4]]]},
            "column image holds list<.*>, no images: those are encoded",
        ),
        ({"image": [1.5]}, "the column image holds double, no images"),
        ({"image": [b"x"], "label": [[1, 2]]}, "column label holds list<.*>, no label an image"),
        ({"image": [b"x"], "label": [0.5]}, "the column label holds double, no label"),
        ({"image": [make_png(1)], "label": [7]}, "row 0: the label 7 is none of the 3 classes"),
        ({"image": [make_png(1)] * 2, "label": [0, -1]}, "gives no label to 1 image of 2"),
        ({"image": [b"x"]}, "holds no image that can be read: 1 row whose bytes are no image"),
    ],
)
def test_datasets_that_are_refused(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    table = pa.table(columns).replace_schema_metadata(features())
    with pytest.raises(UserError, match=message) as error:
        find(write(tmp_path / "x.parquet", table))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"version https"]
)
def test_files_that_are_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"SOURCE=.*x.parquet .*fetch it again"):
        find(tmp_path / "x.parquet")


def test_a_damaged_row_group_is_one_line(tmp_path: Path) -> None:
    source = write(tmp_path / "x.parquet", make_table())
    content = bytearray(source.read_bytes())
    content[8:200] = b"\xff" * 192
    source.write_bytes(content)
    with pytest.raises(UserError, match=r"x.parquet cannot be read .*; fetch it again"):
        find(source)


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "x.parquet", make_table())
    monkeypatch.setattr(data.sources.arrow, "find_spec", {}.get)
    with pytest.raises(UserError, match=r"needs pyarrow to be read: pip install -e '.\[parquet\]'"):
        find(source)


def test_a_folder_with_images_is_a_folder_of_images(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", make_table())
    (tmp_path / "a.png").write_bytes(make_png(1))
    found = find(tmp_path)
    assert [image.path for image in found.images] == ["a.png"]
    assert found.left_out == ("1 file that is no image (1 .parquet: x.parquet)",)


def test_zstd(tmp_path: Path) -> None:
    """Where Python itself does not read it, pyarrow does."""
    plain = write_tar(tmp_path / "a.tar", FILES)
    with pa.output_stream(str(tmp_path / "a.tar.zst"), compression="zstd") as sink:
        sink.write(plain.read_bytes())
    found = find(tmp_path / "a.tar.zst")
    assert contents(tmp_path, found) == FILES
