"""Which shards are meant."""

import logging
from pathlib import Path

import pytest

from data.listing.shards import list_shards, shard_names
from data.settings import UserError


def make_files(folder: Path, *names: str) -> Path:
    """Write files of a byte each."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def listed(spec: object, folder: Path, key: str = "data.shards") -> list[str]:
    """List shards by their paths below a folder."""
    return [str(Path(path).relative_to(folder)) for path in list_shards(spec, key)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b-1.tar", "b-0.tar", "a-0.tar", "a-1.tar", "a-0.tar.index", "n.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a-0.tar").write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        ("b-{1..0}.tar", ["b-1.tar", "b-0.tar"]),
        ("a-*", ["a-0.tar", "a-1.tar"]),
        ("{b,a}-*.tar", ["b-0.tar", "b-1.tar", "a-0.tar", "a-1.tar"]),
        (["b-0.tar", "sub", "a-[1].tar"], ["b-0.tar", "sub/a-0.tar", "a-1.tar"]),
    ],
)
def test_list_shards(folder: Path, spec: str | list[str], expected: list[str]) -> None:
    given = f"{folder}/{spec}" if isinstance(spec, str) else [f"{folder}/{item}" for item in spec]
    assert list_shards(given, "data.shards") == [f"{folder}/{name}" for name in expected]


def test_list_shards_takes_a_name_with_braces_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a-{0..1}[x].tar"
    path.write_bytes(b"x")
    assert list_shards(str(path), "data.shards") == [str(path)]


def test_list_shards_gives_absolute_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert list_shards("a-0.tar", "data.shards") == [f"{folder}/a-0.tar"]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (None, "data.shards=None: give a folder of images, a pattern such as"),
        ("", "data.shards='': give a folder of images, a pattern such as"),
        ([], r"data.shards=\[\] names no shards; give a folder of images, a pattern such as"),
        (["a-0.tar", 3], "give a folder of images, a pattern such as"),
        ("c-*.tar", "data.shards=c-.*.tar matches no file; correct the pattern"),
        ("{a,c}-*.tar", "data.shards=c-.*.tar matches no file"),
        ("a-{0..2}.tar", "a-2.tar does not exist; correct the path or the pattern"),
        ("a-{0..2.tar", "balance the braces"),
        ("empty", "data.shards=empty: the folder holds no image and no .*tar file"),
        (["a-0.tar", "a-*.tar"], "data.shards names the same file twice: .*a-0.tar; name it once"),
        (["a-0.tar", "link.tar"], "the same file twice: .*a-0.tar and .*link.tar"),
    ],
)
def test_list_shards_refuses(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spec: object, text: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    (folder / "link.tar").symlink_to(folder / "a-0.tar")
    with pytest.raises(UserError, match=text) as caught:
        list_shards(spec, "data.shards")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("locations", "names"),
    [
        ([], []),
        (["/d/0.tar"], ["0.tar"]),
        (["/d/train/0.tar", "/d/val/0.tar"], ["train/0.tar", "val/0.tar"]),
        (["/d/train/0.tar", "/d/train/1.tar"], ["0.tar", "1.tar"]),
        (["/d/0.tar", "/d/x/y/0.tar"], ["0.tar", "x/y/0.tar"]),
        (["/d/train/0.tar", "/d/trail/0.tar"], ["train/0.tar", "trail/0.tar"]),
        (["http://h:80/d/train/0.tar", "http://h:80/d/val/0.tar"], ["train/0.tar", "val/0.tar"]),
        (["https://h/a%20b.tar?sign=secret", "https://h/c d.tar"], ["a b.tar", "c d.tar"]),
        (["s3://b/a%20b.tar", "s3://b/c#1.tar"], ["a%20b.tar", "c#1.tar"]),
        (["s3://b/0.tar", "s3://c/0.tar"], ["b/0.tar", "c/0.tar"]),
        (["s3://b/0.tar", "/d/0.tar"], ["s3://b/0.tar", "/d/0.tar"]),
    ],
)
def test_shard_names(locations: list[str], names: list[str]) -> None:
    assert shard_names(locations) == names


@pytest.mark.parametrize("base", ["https://host:8/data", "s3://bucket", "gs://b", "hf://a/b"])
def test_a_folder_has_the_same_names_behind_a_url(folder: Path, base: str) -> None:
    paths = list_shards([str(folder), f"{folder}/sub"], "data.shards")
    urls = [path.replace(str(folder), base) for path in paths]
    assert list_shards(urls, "data.shards") == urls
    assert shard_names(urls) == shard_names(paths)


def test_braces_may_stand_anywhere_in_a_url() -> None:
    found = list_shards("s3://{a,b}/{0..1}.tar", "data.shards")
    assert found == ["s3://a/0.tar", "s3://a/1.tar", "s3://b/0.tar", "s3://b/1.tar"]


@pytest.mark.slow
def test_braces_of_a_url_expand_and_nothing_is_asked() -> None:
    url = "https://nowhere.invalid/{a,b}/x-{000000..049999}.tar?key=secret"
    found = list_shards(url, "data.shards")
    assert len(found) == 100_000
    assert found[50_000] == "https://nowhere.invalid/b/x-000000.tar?key=secret"


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("-", "data.shards=- only goes forwards, .*; set data.read=sequential"),
        ("pipe:curl -u me:secret x", "data.shards=pipe: only goes forwards, .* data.read=seq"),
        ("https://me:secret@host/a.tar", "holds a user or a password, .*put it into ~/.netrc"),
        ("s3://AB:secret/c@b/a.tar", "holds a user or a password"),
        ("http://secret@host/a.tar", "holds a user or a password"),
        ("file:///etc/passwd", "file:// is not read; give a path, or a URL of http://, https://"),
        ("local:///etc/passwd", "local:// is not read"),
        ("ftp://host/a.tar", "ftp:// is not read"),
        ("memory://a.tar", "memory:// is not read"),
        ("simplecache::http://host/a.tar", "simplecache::http:// is not read"),
        ("http://host/a.tar::file:///etc/passwd", "chains URLs with '::'; give one alone"),
        ("https:///a.tar", "is no URL of a file"),
        ("https://host", "is no URL of a file"),
        ("https://{a,me:secret@}host/a.tar", "holds a user or a password"),
        ("{file,http}:///etc/passwd", "is not read; give a path"),
        ("https://host/a-*.tar?k=secret", "http has no listing of its files; list them with brac"),
        ("https://host/folder/", "http has no listing of its files; list them with braces"),
        ("https://host/a-{0..1.tar?k=secret", r"data.shards=https://host/a-{0..1.tar: .*balance"),
        (["https://host/a.tar?k=secret"] * 2, "the same file twice: https://host/a.tar and https"),
        (["https://host/a.tar?k=secret", "https://host/a.tar?k=secret2"], "the same file twice"),
        (
            ["https://host/a.tar?k=secret", 3],
            "data.shards=3: give a folder of images, a pattern such as",
        ),
    ],
)
def test_urls_that_are_refused_show_no_secret(spec: object, text: str) -> None:
    with pytest.raises(UserError, match=text) as caught:
        list_shards(spec, "data.shards")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


# ---------------------------------------------------------------- names that look like patterns


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("set [v2]/train-*.tar", ["set [v2]/train-0.tar", "set [v2]/train-1.tar"]),
        ("set [v2]/train-{0..1}.tar", ["set [v2]/train-0.tar", "set [v2]/train-1.tar"]),
        ("set [v2]/train-1.tar", ["set [v2]/train-1.tar"]),
        ("set [v2]", ["set [v2]/train-0.tar", "set [v2]/train-1.tar"]),
        ("*/train-1.tar", ["set [v2]/train-1.tar", "set v/train-1.tar", "x{a,b}/train-1.tar"]),
        ("set [v]/train-*.tar", ["set v/train-1.tar"]),  # no such folder, so a pattern
        ("{set [v2],set v}/train-1.tar", ["set [v2]/train-1.tar", "set v/train-1.tar"]),
        ("x{a,b}/train-{1..1}.tar", ["x{a,b}/train-1.tar"]),
        ("{x*,set v}/train-*.tar", ["x{a,b}/train-1.tar", "set v/train-1.tar"]),
    ],
)
def test_a_folder_is_taken_as_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, expected: list[str]
) -> None:
    two = ("set [v2]/train-0.tar", "set [v2]/train-1.tar")
    make_files(tmp_path, *two, "set v/train-1.tar", "x{a,b}/train-1.tar")
    assert listed(f"{tmp_path}/{spec}", tmp_path) == expected
    monkeypatch.chdir(tmp_path)
    assert listed(spec, tmp_path) == expected


def test_braces_may_hold_absolute_paths_and_be_long(tmp_path: Path) -> None:
    make_files(tmp_path, "a/0.tar", "b/0.tar")
    assert listed(f"{{{tmp_path}/a,{tmp_path}/b}}/0.tar", tmp_path) == ["a/0.tar", "b/0.tar"]
    many = [f"{number:03d}.tar" for number in range(100)]
    make_files(tmp_path / "c", *many)
    spec = f"{tmp_path}/c/{{{','.join(many)}}}"  # longer than a name may be
    assert list_shards(spec, "k") == [f"{tmp_path}/c/{name}" for name in many]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (
            "set [v3]/a-*.tar",
            r"=set \[v3\]/a-\*.tar matches no .* \(\[v3\] and \* are read ",
        ),
        ("[v3].tar", r"\[v3\] is read as a pattern; a name that holds a \[ itself .* \[\[\]\)"),
        ("a-0.tar/b.tar", r"a-0.tar/b.tar cannot be read \(Not a directory\)"),
        ("a" * 300, r"cannot be read \(File name too long\)"),
        ("a\0.tar", r"cannot be read \(.*embedded null"),
    ],
)
def test_what_was_read_as_a_pattern_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, text: str
) -> None:
    monkeypatch.chdir(make_files(tmp_path, "a-0.tar"))
    with pytest.raises(UserError, match=text):
        list_shards(spec, "data.shards")


def test_a_glob_leaves_out_what_is_no_tar(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    own = ("a.tar.index", "b.tar.index", "manifest.jsonl", "plan.json", "classes.txt")
    make_files(tmp_path, "a.tar", "b.tar", ".a.tar.x.tmp", ".b.tar", *own)
    assert listed(f"{tmp_path}/*", tmp_path) == ["a.tar", "b.tar"]
    assert caplog.text == ""
    make_files(tmp_path, "notes.md", "sub/c.tar")
    assert listed(f"{tmp_path}/*", tmp_path) == ["a.tar", "b.tar"]
    assert (
        f"data.shards={tmp_path}/*: left out, as no tar by its name: notes.md, sub" in caplog.text
    )
    assert listed(f"{tmp_path}/*/*", tmp_path) == ["sub/c.tar"]
    make_files(tmp_path / "other", "part-0", "part-1", *own)
    assert listed(f"{tmp_path}/other/*", tmp_path) == ["other/part-0", "other/part-1"]
    with pytest.raises(UserError, match="matches sub and no shard; name a folder of shards"):
        list_shards(f"{tmp_path}/su*", "data.shards")
    with pytest.raises(UserError, match=r"matches manifest.jsonl and no shard; name a folder"):
        list_shards(f"{tmp_path}/mani*", "data.shards")


# ---------------------------------------------------------------- no shards at all

NAME = "name the folder of the images, or a text file (.txt) of their paths"
MAKE = "make shards with python scripts/make_shards.py SOURCE OUT"


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("photos/*.jpg", "names 0.jpg, 1.jpg, which are no tar files (the first is an image); "),
        ("photos/0.jpg", "names 0.jpg, which is an image and no tar file; "),
        ("table/a.parquet", "names a.parquet, which is a parquet file and no tar file; "),
        ("table", "no *.tar file but a.parquet (the first is a parquet file); "),
        ("a.zip", "names a.zip, which is an archive of another kind and no tar file; "),
        (["a.h5"], "names a.h5, which is an HDF5 file and no tar file; "),
        ("https://host/photo.jpg?key=secret", "names photo.jpg, which is an image and no tar"),
    ],
)
@pytest.mark.parametrize("key", ["data.shards", "data.val", "probe.train", "SHARDS"])
def test_what_is_no_shard_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: object, text: str, key: str
) -> None:
    files = ("photos/0.jpg", "photos/1.jpg", "table/a.parquet", "a.zip", "a.h5")
    monkeypatch.chdir(make_files(tmp_path, *files))
    with pytest.raises(UserError) as caught:
        list_shards(spec, key)
    assert str(caught.value).startswith(key)
    assert text in str(caught.value)
    is_of_images = "photos" in str(spec)
    assert str(caught.value).endswith(NAME if is_of_images else MAKE)


def test_a_folder_of_other_things_is_described(tmp_path: Path) -> None:
    make_files(tmp_path, "set/train/a.tar", "packed/a.tar.gz", "set/train/a.tar.index")
    (tmp_path / "empty").mkdir()
    for name, text in (
        (
            "set",
            "the folder holds no image and no *.tar file, but train in it holds some; name that",
        ),
        ("packed", "no *.tar file but a.tar.gz; name tar files that are not compressed"),
        ("empty", "holds no image and no *.tar file; name a folder of images or of shards"),
    ):
        with pytest.raises(UserError) as caught:
            list_shards(tmp_path / name, "data.shards")
        assert text in str(caught.value)


# ---------------------------------------------------------------- splits of a folder

TRAIN, VAL = ["train-0.tar", "train-1.tar"], ["val-0.tar"]


@pytest.mark.parametrize(
    ("names", "train", "val"),
    [
        (["train-0.tar", "train-1.tar", "val-0.tar"], TRAIN, VAL),
        ([*TRAIN, *VAL, "test-0.tar"], TRAIN, VAL),
        ([*TRAIN, "test-0.tar"], TRAIN, "1 test shard (test-0.tar) and 2 training shards ("),
        (["im1k-train-0.tar", "im1k-validation-0.tar"], ["im1k-train-0.tar"], ["im1k-valid"]),
        (["0.tar", "1.tar", *VAL], ["0.tar", "1.tar"], VAL),
        (TRAIN, TRAIN, TRAIN),  # of a folder that make_shards made for each split
        (["a.tar", "b.tar"], ["a.tar", "b.tar"], ["a.tar", "b.tar"]),
        (VAL, "the folder holds 1 validation shard (val-0.tar) and no training shard; name", VAL),
        (["test-0.tar"], "holds 1 test shard (test-0.tar) and no training shard", ["test-0.tar"]),
        (["a.tar", *TRAIN], ["a.tar", *TRAIN], "holds 1 other shard (a.tar) and 2 training"),
        (["trainers.tar", "value.tar"], ["trainers.tar", "value.tar"], ["trainers.tar", "value"]),
    ],
)
def test_a_folder_means_the_keys_split(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    names: list[str],
    train: list[str] | str,
    val: list[str] | str,
) -> None:
    caplog.set_level(logging.INFO)
    make_files(tmp_path, *names)
    keys = {"data.shards": train, "data.val_shards": val, "probe.train": train, "data.val": val}
    for key, expected in keys.items():
        if isinstance(expected, str):
            with pytest.raises(UserError) as caught:
                list_shards(tmp_path, key)
            assert expected in str(caught.value)
            continue
        caplog.clear()
        found = listed(tmp_path, tmp_path, key)
        assert len(found) == len(expected)
        assert all(name.startswith(start) for name, start in zip(found, expected, strict=True))
        assert (f"{key}={tmp_path}: its " in caplog.text) == (len(found) < len(names))
    assert listed(tmp_path, tmp_path, "SHARDS") == sorted(names)


def test_what_a_folder_is_taken_for_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    make_files(tmp_path, *TRAIN, "val-0.tar", "val-1.tar", "test-0.tar")
    list_shards(tmp_path, "data.shards")
    assert caplog.messages == [
        f"data.shards={tmp_path}: its 2 training shards are read; left out: 1 test shard "
        "(test-0.tar) and 2 validation shards (val-0.tar and 1 more)"
    ]
