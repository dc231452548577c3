"""The sample schema; writing and listing shards."""

import io
import tarfile
from pathlib import Path

import pytest
from webdataset.compat import WebDataset

from data.settings import UserError
from data.shards import ImageFile, list_shards, shard_names, split_name, write_shard

SAMPLES = [
    ImageFile("a/0", "jpg", b"first", 3),
    ImageFile("a/" + "long" * 60, "png", b"second" * 400, 0),
    ImageFile("é", "webp", b"third"),
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0001.jpg", ("0001", "jpg")),
        ("a.b/c.Seg.PNG", ("a.b/c", "seg.png")),
        ("./0001.cls", ("./0001", "cls")),
        ("readme", None),
        ("a/.hidden.", ("a/", "hidden.")),
        ("__meta__/x.json", None),
    ],
)
def test_split_name_follows_webdataset(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == expected


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
def test_webdataset_reads_what_was_written(tmp_path: Path) -> None:
    assert write_shard(tmp_path / "a.tar", SAMPLES) == 3
    read = list(WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [sample.key for sample in SAMPLES]
    assert [sample[s.extension] for sample, s in zip(read, SAMPLES, strict=True)] == [
        sample.data for sample in SAMPLES
    ]
    assert [sample.get("cls") for sample in read] == [b"3", b"0", None]


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, iter(SAMPLES))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        member = tar.getmembers()[0]
    assert (member.mtime, member.uname, member.gname, member.uid) == (0, "", "", 0)


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"old")
    with pytest.raises(UserError, match="twice"):
        write_shard(tmp_path / "a.tar", [SAMPLES[0], SAMPLES[0]])
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
    assert (tmp_path / "a.tar").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        (ImageFile("a.b", "jpg", b""), "would not read the key 'a.b' back; use one without dots"),
        (ImageFile("__m__/a", "jpg", b""), "would not read the key '__m__/a' back"),
        (ImageFile("a", "json", b""), "a.json is not an image; use one of apng,"),
    ],
)
def test_samples_that_could_not_be_read_back(tmp_path: Path, sample: ImageFile, text: str) -> None:
    with pytest.raises(UserError, match=text):
        write_shard(tmp_path / "a.tar", [sample])


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
        (None, "data.shards=None: give a pattern such as"),
        ("", "data.shards='': give a pattern such as"),
        ([], r"data.shards=\[\] names no shards; give a pattern such as"),
        (["a-0.tar", 3], "give a pattern such as"),
        ("c-*.tar", "data.shards=c-.*.tar matches no file; correct the pattern"),
        ("{a,c}-*.tar", "data.shards=c-.*.tar matches no file"),
        ("a-{0..2}.tar", "a-2.tar does not exist; correct the path or the pattern"),
        ("a-{0..2.tar", "balance the braces"),
        ("empty", "data.shards=empty: the folder holds no .*tar file"),
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
        (["https://host/a.tar?k=secret", 3], "data.shards=3: give a pattern such as"),
    ],
)
def test_urls_that_are_refused_show_no_secret(spec: object, text: str) -> None:
    with pytest.raises(UserError, match=text) as caught:
        list_shards(spec, "data.shards")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_shard_ends_with_two_zero_blocks(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", SAMPLES)
    with (tmp_path / "a.tar").open("rb") as file:
        file.seek(-1024, io.SEEK_END)
        assert file.read() == bytes(1024)
