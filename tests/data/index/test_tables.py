"""Folders of images and lists of paths: their tables, what they leave out, and what has changed."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

import data.index.tables
import scripts.make_shards
from data.batch import Request
from data.index.files import FileTable
from data.index.manifest import Manifest
from data.index.open import load_index, open_manifest
from data.labels.labelled import label_splits
from data.reading.bad import BadSample
from data.reading.reader import ShardReader
from data.samples import Samples
from data.settings import RunStopped, UserError
from data.shards import IMAGE_EXTENSIONS
from tests.conftest import make_png

HARD_NAMES = ("ü ñ/日本.png", 'a "b".png', "new\nline.png", os.fsdecode(b"caf\xe9.png"), "'$x;.png")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_images(top: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(make_png(number))
    return top


def paths(manifest: Manifest, shard: int = 0) -> list[str]:
    table = load_index(manifest.shards[shard])
    assert isinstance(table, FileTable)
    return [table.path(sample) for sample in range(len(table))]


def content(manifest: Manifest, sample: int = 0) -> bytes:
    [image] = ShardReader(manifest).read(0, sample, IMAGE_EXTENSIONS).values()
    return image


# ---------------------------------------------------------------- as shards have it


@pytest.mark.parametrize("names", [("a/0.png", "a/1.png", "b/2.png", "b/c/3.png"), HARD_NAMES])
def test_a_folder_is_one_shard_of_make_shards(tmp_path: Path, names: tuple[str, ...]) -> None:
    photos = make_images(tmp_path / "photos", *names)
    scripts.make_shards.main([str(photos), str(tmp_path / "out")])
    both = [open_manifest(place, "data.shards") for place in (photos, tmp_path / "out")]
    batches = [Samples(m, (8, 8), seed=3, crop_area=(0.1, 1))[Request(2, 0, 8)] for m in both]
    for name, values in batches[0].tensors.items():
        assert np.array_equal(values, batches[1].tensors[name])
    assert batches[0].bad == []
    assert sorted(paths(both[0])) == sorted(names)
    assert {place.name for place in batches[0].places} == {
        "photos/" + os.fsencode(name).decode("utf-8", "backslashreplace") for name in names
    }


def test_a_folder_per_class_has_the_labels_of_its_shards(tmp_path: Path) -> None:
    train = make_images(tmp_path / "train", "cat/0.png", "dog/1.png", "owl/2.png", "cat/3.png")
    val = make_images(tmp_path / "val", "owl/5.png", "cat/7.png")  # which numbers owl as 1
    scripts.make_shards.main([str(train), str(tmp_path / "out")])
    out = open_manifest(tmp_path / "out", "data.train")
    expected, _ = label_splits(out, out, None)
    folders = open_manifest(train, "data.train"), open_manifest(val, "data.val")
    labels, values = label_splits(*folders, None)
    assert labels.names == expected.names == ["cat", "dog", "owl"]
    assert sorted(values.tolist()) == [0, 0, 1, 2]
    samples = Samples(folders[1], (8, 8), seed=0, labelled=True, numbering=labels.val)
    batch = samples[Request(0, 0, 2)]
    named = zip(batch.places, batch.tensors["label"].tolist(), strict=True)
    assert {place.key: label for place, label in named} == {"owl/5.png": 2, "cat/7.png": 0}


def test_classes_need_folders(tmp_path: Path) -> None:
    flat = make_images(tmp_path / "flat", "0.png", "1.png")
    manifest = open_manifest(flat, "data.train")
    with pytest.raises(UserError) as error:
        label_splits(manifest, manifest, None)
    assert str(error.value) == (
        f"data.train={flat} has no labels, as images lie in no folder of a class: 0.png and 1 "
        f"more; put each image into a folder of its class, as in {flat}/cat/1.jpg"
    )
    twins = make_images(tmp_path / "twins", "caf\u00e9/0.png", "cafe\u0301/1.png")
    manifest = open_manifest(twins, "data.val")  # to pretrain on, it is as good as any
    with pytest.raises(UserError, match=r"data\.train: two folders are both called café"):
        label_splits(manifest, manifest, None)


def test_images_and_shards_are_one_stream(tmp_path: Path, shards: Path) -> None:
    photos = make_images(tmp_path / "photos", "0.png", "1.png")
    manifest = open_manifest([str(photos), f"{shards}/train-*.tar"], "data.shards")
    assert manifest.num_samples == 38
    assert len(manifest.shards) == 4
    assert manifest.starts.tolist()[:2] == [0, 2]
    half = open_manifest([str(photos), f"{shards}/train-*.tar"], "data.shards", fraction=0.5)
    assert half.num_samples == 19
    assert len(paths(half)) == 1


# ---------------------------------------------------------------- what is taken, and what is not


def test_what_is_left_out_is_counted_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    photos = make_images(tmp_path / "photos", "a.png", "sub/b.png", "._a.png", ".hidden/c.png")
    (photos / "Thumbs.db").write_bytes(b"x")
    (photos / ".DS_Store").write_bytes(b"x")
    (photos / "empty.png").write_bytes(b"")
    (photos / "notes.md").write_text("x")
    (photos / "link.png").symlink_to("a.png")
    (photos / "gone.png").symlink_to("nothing.png")
    (photos / "sub" / "up").symlink_to("..")
    manifest = open_manifest(photos, "data.shards")
    assert sorted(paths(manifest)) == ["a.png", "link.png", "sub/b.png"]
    [line] = [line for line in caplog.messages if "left out" in line]
    assert line == (
        f"{photos}: 3 images (1 link among the files); left out: 1 empty file (empty.png); "
        "1 broken link (gone.png); 1 file that is no image (1 .md: notes.md); 1 folder listed "
        "already (sub/up is above it); 3 files of macOS or Windows (.DS_Store, ._a.png, "
        "Thumbs.db); 1 hidden name (.hidden)"
    )


def test_a_folder_that_cannot_be_written_gets_nothing(tmp_path: Path, cache: Path) -> None:
    photos = make_images(tmp_path / "photos", "a.png", "sub/b.png")
    before = sorted(photos.rglob("*"))
    photos.chmod(0o555)
    try:
        assert open_manifest(photos, "data.shards").num_samples == 2
        assert sorted(photos.rglob("*")) == before
    finally:
        photos.chmod(0o755)
    assert len(list(cache.rglob("*.files"))) == 1


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RunStopped, match=r"which cannot be written: .*XDG_CACHE_HOME can name"):
        open_manifest(make_images(tmp_path / "photos", "a.png"), "data.shards")


def make_nothing(folder: Path) -> str:
    (folder / "a.txt.bak").write_text("x")
    return "the folder holds no image and no *.tar file but a.txt.bak"


def make_empty_image(folder: Path) -> str:
    (folder / "a.png").write_bytes(b"")
    return "holds no image that can be read: 1 empty file (a.png); known endings: apng, avif"


def make_unreadable(folder: Path) -> str:
    make_images(folder, "a.png", "closed/b.png")
    (folder / "closed").chmod(0)
    return "holds what cannot be read (closed: Permission denied); allow it (chmod -R u+rX)"


@pytest.mark.parametrize("make", [make_nothing, make_empty_image, make_unreadable])
def test_a_folder_without_images_is_refused(tmp_path: Path, make: Callable[[Path], str]) -> None:
    if make is make_unreadable and os.geteuid() == 0:
        pytest.skip("root reads everything")
    folder = tmp_path / "photos"
    folder.mkdir()
    text = make(folder)
    with pytest.raises(UserError) as error:
        open_manifest(folder, "data.shards")
    assert text in str(error.value)
    assert str(error.value).startswith(f"data.shards={folder}")


def test_no_image_is_read_twice(tmp_path: Path) -> None:
    photos = make_images(tmp_path / "photos", "a.png", "sub/b.png")
    (tmp_path / "list.txt").write_text("photos/a.png\n")
    for other in (photos / "sub", tmp_path / "list.txt"):
        with pytest.raises(UserError, match=r"data.shards: .*png is in .* would be read twice"):
            open_manifest([str(photos), str(other)], "data.shards")


# ---------------------------------------------------------------- lists


def test_a_list_of_paths_is_read_where_it_lies(tmp_path: Path) -> None:
    photos = make_images(tmp_path / "photos", "cat/0.png", "dog/1.png", "dog/é x.png")
    lines = ["cat/0.png", "./dog/1.png\r", "", "dog/é x.png", "dog/notes.md"]
    (photos / "dog" / "notes.md").write_text("x")
    (photos / "mine.txt").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    manifest = open_manifest(photos / "mine.txt", "data.shards")
    assert sorted(paths(manifest)) == ["cat/0.png", "dog/1.png", "dog/é x.png"]
    whole = open_manifest(photos, "data.shards")
    assert paths(whole) == paths(manifest)
    assert [content(manifest, i) for i in range(3)] == [content(whole, i) for i in range(3)]
    labels, values = label_splits(manifest, manifest, None)
    assert (labels.names, sorted(values.tolist())) == (["cat", "dog"], [0, 1, 1])
    (tmp_path / "all.lst").write_text(f"{photos}/cat/0.png\nphotos/dog/1.png")
    far = open_manifest(tmp_path / "all.lst", "data.shards")
    assert sorted(paths(far)) == [f"{photos}/cat/0.png", "photos/dog/1.png"]
    with pytest.raises(UserError, match="has no labels, as images lie in no folder of a class: /"):
        label_splits(far, far, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", " is empty; write the path of an image a line"),
        (b"\n \n", " is empty; write the path of an image a line"),
        (b"a.png\nb.png\nc.png\n", ": 2 of 3 files are not there (b.png, c.png); mend the paths"),
        (b"a.png,3\n", ": 1 of 1 file is not there (a.png,3); a line holds one path and nothing"),
        (b"a.png\n./a.png\n", " names one file twice: a.png and a.png; name each once"),
        (b"a.png\nlink.png\n", " names one file twice: a.png and link.png; name each once"),
        (b"a.png\nsub\n", " names 1 folder (sub), and a list names files; to read a folder, name"),
        (b"a.png\nhttps://host/b.png\n", ", line 2 is a URL; images are read from this machine"),
        (b"\x89PNG\0\0", ", line 1 is no path; a list is a text file in UTF-8"),
        (b"notes.md\n", " holds no image that can be read: 1 file that is no image (1 .md: notes"),
    ],
)
def test_a_list_that_is_wrong_is_refused(tmp_path: Path, text: bytes, expected: str) -> None:
    make_images(tmp_path, "a.png", "sub/b.png")
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "list.txt").write_bytes(text)
    with pytest.raises(UserError) as error:
        open_manifest(tmp_path / "list.txt", "data.shards")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- splits


def test_a_folder_of_splits_means_the_keys_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    top = make_images(tmp_path / "set", "train/cat/0.png", "val/cat/1.png", "test/cat/2.png")
    for key, split in (("data.shards", "train"), ("data.val", "val"), ("probe.train", "train")):
        manifest = open_manifest(top, key)
        assert manifest.shards.locations[0] == f"{top}/{split}"
        assert paths(manifest)[0].startswith("cat/")
    assert f"data.shards={top}: its 1 training folder is read; left out: 1 test" in caplog.text
    assert open_manifest(top, "SHARDS").num_samples == 3
    shutil.rmtree(top / "val")
    with pytest.raises(UserError, match="by the names of its folders the folder holds 1 test"):
        open_manifest(top, "data.val")
    classes = make_images(tmp_path / "vehicles", "train/0.png", "bus/1.png", "test-tube/2.png")
    assert open_manifest(classes, "data.train").num_samples == 3


def test_a_folder_of_tars_and_images_is_shards(
    tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(shards / "train-1.tar", make_images(tmp_path / "both", "a.png") / "x.tar")
    assert open_manifest(tmp_path / "both", "data.shards").num_samples == 7
    assert "its 1 tar file is read as shards, and its images are not: a.png" in caplog.text


# ---------------------------------------------------------------- what changes


def test_a_table_is_made_once_and_says_what_changed(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    photos = make_images(tmp_path / "photos", "a.png", "b.png", "c.png")
    first = open_manifest(photos, "data.shards")
    moved = photos.rename(tmp_path / "moved")  # the same files elsewhere are the same
    assert open_manifest(moved, "data.shards").content == first.content
    assert "since" not in caplog.text
    (moved / "a.png").write_bytes(make_png(7) + b"x")
    (moved / "b.png").unlink()
    make_images(moved, "d.png")
    assert open_manifest(moved, "data.shards").content != first.content
    assert caplog.messages[-1] == (
        f"{moved}: since it was listed last, 1 file is changed (a.png); 1 file is new (d.png); "
        "1 file is gone (b.png)"
    )
    for number in range(12):
        make_images(moved, f"e{number}.png")
        open_manifest(moved, "data.shards")
    assert len(list(cache.rglob("*.files"))) == data.index.tables._NUM_KEPT + 1


@pytest.mark.parametrize("change", [{"format": "2"}, {"crc32": None}, {"crc32": "1"}])
def test_a_table_of_another_format_or_without_its_checksum_is_refused(
    tmp_path: Path, change: dict[str, str | None]
) -> None:
    make_images(tmp_path / "photos", "a.png", "b.png")
    table = load_index(open_manifest(tmp_path / "photos", "data.shards").shards[0])
    assert isinstance(table, FileTable)
    path = tmp_path / "t.files"
    table.save(path)
    FileTable.load(path)
    with safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        changed = {**file.metadata(), **change}
    path.write_bytes(save(arrays, {k: v for k, v in changed.items() if v is not None}))
    with pytest.raises(UserError, match=r"t.files is not a table of files; delete it"):
        FileTable.load(path)


def test_a_damaged_table_is_made_again(tmp_path: Path, cache: Path) -> None:
    photos = make_images(tmp_path / "photos", "a.png", "b.png")
    expected = paths(open_manifest(photos, "data.shards"))
    [table] = cache.rglob("*.files")
    for damage in (b"", table.read_bytes()[:-3], table.read_bytes().replace(b"a.png", b"x.png")):
        table.write_bytes(damage)
        assert paths(open_manifest(photos, "data.shards")) == expected


def vanish(path: Path) -> str:
    path.unlink()
    return "the file has vanished since it was listed"


def grow(path: Path) -> str:
    path.write_bytes(path.read_bytes() + b"x")
    return r"the file has changed since it was listed: \d+ bytes then, \d+ now"


def touch(path: Path) -> str:
    os.utime(path, ns=(0, 10**9))
    return r"changed since it was listed: of 20\d\d-.* then, 1970-01-01 00:00:01.000\+00:00 now"


def become_a_folder(path: Path) -> str:
    path.unlink()
    path.mkdir()
    return "it is no file any more"


def become_a_pipe(path: Path) -> str:
    path.unlink()
    os.mkfifo(path)
    return "it is no file any more"


def become_a_loop(path: Path) -> str:
    path.unlink()
    path.symlink_to(path.name)
    return "the file has vanished since it was listed"


@pytest.mark.parametrize(
    "change", [vanish, grow, touch, become_a_folder, become_a_pipe, become_a_loop]
)
def test_a_file_that_changed_is_a_bad_sample(tmp_path: Path, change: Callable[[Path], str]) -> None:
    photos = make_images(tmp_path / "photos", "a.png", "b.png")
    manifest = open_manifest(photos, "data.shards")
    place = paths(manifest).index("a.png")
    text = change(photos / "a.png")
    with pytest.raises(BadSample, match=text):
        content(manifest, place)
    batch = Samples(manifest, (8, 8), seed=0)[Request(0, 0, 2)]
    assert [(entry.shard, entry.key) for entry in batch.bad] == [("photos", "a.png")]
    assert batch.tensors["weight"].sum() == 1


@pytest.mark.parametrize("is_mount_point", [False, True])
def test_a_folder_that_is_gone_makes_no_sample_bad(tmp_path: Path, is_mount_point: bool) -> None:
    photos = make_images(tmp_path / "photos", "a.png", "b.png")
    manifest = open_manifest(photos, "data.shards")
    reader = ShardReader(manifest)
    reader.read(0, 0, IMAGE_EXTENSIONS)
    shutil.rmtree(photos)
    if is_mount_point:  # an unmounted disk leaves an empty folder
        photos.mkdir()
    for each in (reader, ShardReader(manifest)):
        with pytest.raises(FileNotFoundError):
            each.read(0, 0, IMAGE_EXTENSIONS)


def test_few_open_files_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = make_images(tmp_path / "photos", "a.png", "b.png")
    reader = ShardReader(open_manifest(photos, "data.shards"))
    real, calls = os.open, list[object]()

    def limited(path: object, *rest: int) -> int:
        calls.append(path)
        if len(calls) == 1:
            raise OSError(24, "Too many open files", str(path))
        return real(path, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(os, "open", limited)
    assert len(reader.read(0, 0, IMAGE_EXTENSIONS)) == 1
    assert len(calls) == 2


# ---------------------------------------------------------------- when shards are worth making


def test_a_network_disk_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    photos = make_images(tmp_path / "photos", "a.png")

    def network_disk(_: Path) -> str:
        return "nfs4"

    monkeypatch.setattr(data.index.tables, "network_disk", network_disk)
    monkeypatch.setattr(data.index.tables, "_MANY", 0)
    for _ in range(2):
        open_manifest(photos, "data.shards")
    assert [line for line in caplog.messages if "lies on" in line] == [
        f"{photos} lies on a network disk (nfs4) and has 1 file: shards are read faster there, and "
        "start at once; see docs/how-to/read-folders.md"
    ]
