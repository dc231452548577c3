"""What is known of remote shards: uploaded with them, or made here once."""

import gzip
import json
import logging
import shutil
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import pytest

from data.index.catalog import Catalog, cache_folder
from data.index.making import index_shard
from data.index.manifest import Manifest, split_location
from data.index.open import load_index, open_manifest
from data.reading.reader import ShardReader
from data.settings import RunStopped, UserError
from data.shards import ImageFile, write_shard
from data.storage.locations import Storage
from tests.conftest import make_png
from tests.servers import FlakyServer, at_random, flaky_http

STORAGE = Storage(timeout_seconds=5, retry_seconds=5)
SHARDS = "{a,b}.tar"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, first in (("a", 0), ("b", 10)):
        images = [ImageFile(f"{i:02d}", "png", make_png(i), i % 3) for i in range(first, first + 6)]
        write_shard(folder / f"{name}.tar", images)
    return folder


@pytest.fixture
def server(folder: Path) -> Generator[FlakyServer]:
    with flaky_http(folder) as server:
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "masked-patch-pretraining" / "index"


def open_remote(server: FlakyServer) -> Manifest:
    return open_manifest(f"{server.url}/{SHARDS}", "data.shards", STORAGE)


def asked(server: FlakyServer) -> list[str]:
    """Return what was asked of the server since the last call."""
    paths = [seen.path for seen in server.seen]
    server.seen.clear()
    return paths


def read_all(manifest: Manifest) -> dict[str, dict[str, bytes]]:
    with closing(ShardReader(manifest)) as reader:
        return {
            f"{shard.name}/{reader.key(place, i)}": reader.read(place, i, {"png", "cls"})
            for place, shard in enumerate(manifest.shards)
            for i in range(shard.num_samples)
        }


# ---------------------------------------------------------------- uploaded with the shards


def test_an_uploaded_folder_needs_no_scan(folder: Path, server: FlakyServer) -> None:
    local = open_manifest(folder, "data.shards")
    remote = open_remote(server)
    assert asked(server) == ["/manifest.jsonl"] * 2 + ["/a.tar.index"] * 2  # size, then content
    assert remote.fingerprint == local.fingerprint  # so a run may move and resume
    assert [shard.name for shard in remote.shards] == ["a.tar", "b.tar"]
    assert [shard.location for shard in remote.shards] == [
        f"{server.url}/a.tar",
        f"{server.url}/b.tar",
    ]
    assert read_all(remote) == read_all(local)
    assert asked(server).count("/b.tar.index") == 2
    open_remote(server)
    assert set(asked(server)) == {"/manifest.jsonl"}


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"", b"\xff\x00[[[[", b"[" * 5000])
def test_a_page_instead_of_a_manifest_is_none(
    folder: Path, server: FlakyServer, content: bytes
) -> None:
    (folder / "manifest.jsonl").write_bytes(content)
    assert open_remote(server).num_samples == 12


def test_a_manifest_without_its_indexes_is_not_used(
    folder: Path, server: FlakyServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    local = open_manifest(folder, "data.shards")
    for index in folder.glob("*.index"):
        index.unlink()
    assert open_remote(server).fingerprint == local.fingerprint
    assert "the server's manifest.jsonl lacks its indexes and is not used" in caplog.text


def test_rows_of_a_server_that_cannot_be_true(folder: Path, server: FlakyServer) -> None:
    open_manifest(folder, "data.shards")
    path = folder / "manifest.jsonl"
    good = [json.loads(line) for line in path.read_text().splitlines()]
    for change in (
        {"num_samples": -1},
        {"num_samples": 10**30},
        {"num_samples": True},
        {"num_bytes": "1"},
        {"sha256": "../" * 21 + "x"},
        {"sha256": 5},
        {"damage": ["x"]},
        {"damage": "x\nshard a.tar is sound"},
        {"file": "../../a.tar"},
        {"more": 1},
    ):
        path.write_text("".join(json.dumps(row | change) + "\n" for row in good))
        assert open_remote(server).num_samples == 12
    path.write_text("".join(json.dumps(row | {"num_samples": 5}) + "\n" for row in good))
    assert open_remote(server).num_samples == 12  # the index is of 6, so it is not this one's
    path.write_text(json.dumps(good[0]) + "\n" + json.dumps(good[1] | {"num_samples": 5}) + "\n")
    manifest = open_remote(server)
    with pytest.raises(UserError, match=r"b.tar.index is the index of another tar than shard b.t"):
        load_index(manifest.shards[1], STORAGE)


def test_a_served_index_that_went_missing(folder: Path, server: FlakyServer) -> None:
    open_manifest(folder, "data.shards")
    (folder / "b.tar.index").unlink()
    manifest = open_remote(server)
    with pytest.raises(RunStopped, match=r"/b.tar.index does not exist \(status 404\)"):
        load_index(manifest.shards[1], STORAGE)


def test_a_shard_that_is_not_the_one_of_the_served_manifest(
    folder: Path, server: FlakyServer
) -> None:
    open_manifest(folder, "data.shards")
    write_shard(folder / "b.tar", [ImageFile("x", "png", make_png(i)) for i in range(1)])
    catalog = Catalog(f"{server.url}/{SHARDS}", "SHARDS", STORAGE)
    assert catalog.missing() == []
    done = [index_shard(catalog.job(place)) for place in range(2)]
    assert done[0].error is None
    assert not done[0].is_new
    assert "b.tar is not the one in the server's manifest.jsonl (20480 bytes" in str(done[1].error)


def test_again_compares_the_content_with_the_served_manifest(
    folder: Path, server: FlakyServer
) -> None:
    open_manifest(folder, "data.shards")
    content = bytearray((folder / "b.tar").read_bytes())
    content[1600] ^= 1
    (folder / "b.tar").write_bytes(content)
    catalog = Catalog(f"{server.url}/{SHARDS}", "SHARDS", STORAGE)
    done = [index_shard(catalog.job(place, again=True)) for place in range(2)]
    assert done[0].error is None
    assert "(its sha256 differs); upload it again with its manifest" in str(done[1].error)


# ---------------------------------------------------------------- indexed here


def test_a_remote_folder_is_indexed_once(
    folder: Path, server: FlakyServer, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    remote = open_remote(server)
    target = cache_folder(server.url)
    assert target.parent == cache
    assert f"indexing 2 shards; the index goes to {target}" in caplog.text
    assert "2 of them are remote, and each is read once from start to end before the" in caplog.text
    assert "scripts/index_shards.py does this as a job of its own" in caplog.text
    asked(server)
    again = open_remote(server)
    assert asked(server) == ["/manifest.jsonl"]
    assert list(again.shards) == list(remote.shards)
    assert all(shard.etag for shard in remote.shards)
    assert remote.fingerprint == open_manifest(folder, "data.shards").fingerprint
    assert read_all(remote) == read_all(open_manifest(folder, "data.shards"))


def test_faults_while_it_is_indexed_change_nothing(folder: Path, server: FlakyServer) -> None:
    server.pick = at_random(1, 0.5)
    storage = Storage(timeout_seconds=0.3, retry_seconds=60)
    remote = open_manifest(f"{server.url}/{SHARDS}", "data.shards", storage)
    server.pick = lambda: None
    assert server.seen
    assert remote.fingerprint == open_manifest(folder, "data.shards").fingerprint


def test_a_shard_that_changed_on_the_server(folder: Path, server: FlakyServer) -> None:
    before = open_remote(server)
    write_shard(folder / "a.tar", [ImageFile("x", "png", make_png(1), 1)])
    manifest = open_remote(server)  # trusted, without a request
    assert manifest.fingerprint == before.fingerprint
    with pytest.raises(RunStopped, match=r"changed on the server since it was indexed"):
        read_all(manifest)
    catalog = Catalog(f"{server.url}/{SHARDS}", "SHARDS", STORAGE)
    done = index_shard(catalog.job(0))
    assert done.row is not None
    assert done.row.num_samples == 1
    assert "shard a.tar was replaced" in str(done.note)
    assert not index_shard(catalog.job(1)).is_new


def test_a_truncated_remote_shard_without_an_index(
    folder: Path, server: FlakyServer, caplog: pytest.LogCaptureFixture
) -> None:
    content = (folder / "a.tar").read_bytes()
    (folder / "a.tar").write_bytes(content[: 10 * 512])
    manifest = open_remote(server)
    assert "shard a.tar is damaged: cut at offset 5120, " in caplog.text
    num = manifest.shards[0].num_samples
    assert 0 < num < 6
    assert f"a.tar/{num - 1:02d}" in read_all(manifest)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "shard a.tar has 0 bytes; write or copy it again"),
        (gzip.compress(b"x" * 9000, mtime=0), r"shard a.tar is compressed \(gzip\)"),
        (
            b"<html>" * 300,
            "shard a.tar is not a tar file but a web page, perhaps a server's er",
        ),
    ],
)
def test_what_is_refused_here_is_refused_there(
    folder: Path, server: FlakyServer, content: bytes, text: str
) -> None:
    (folder / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=text):
        open_remote(server)


def test_a_missing_shard_is_named(folder: Path, server: FlakyServer) -> None:
    (folder / "b.tar").unlink()
    with pytest.raises(RunStopped, match=r"/b.tar does not exist \(status 404\)"):
        open_remote(server)


# ---------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("location", "folder", "file", "index", "manifest"),
    [
        ("/d/a.tar", "/d", "a.tar", "/d/a.tar.index", "/d/manifest.jsonl"),
        ("/d?/a#1.tar", "/d?", "a#1.tar", "/d?/a#1.tar.index", "/d?/manifest.jsonl"),
        ("/a.tar", "/", "a.tar", "/a.tar.index", "//manifest.jsonl"),
        ("s3://b/k/a.tar", "s3://b/k", "a.tar", "s3://b/k/a.tar.index", "s3://b/k/manifest.jsonl"),
        (
            "https://h/d/a%20b.tar?sig=1/2",
            "https://h/d",
            "a b.tar",
            "https://h/d/a%20b.tar.index?sig=1/2",
            "https://h/d/manifest.jsonl?sig=1/2",
        ),
    ],
)
def test_split_location(location: str, folder: str, file: str, index: str, manifest: str) -> None:
    place = split_location(location)
    assert (place.folder, place.file) == (folder, file)
    assert (place.index_location, place.manifest_location) == (index, manifest)


@pytest.mark.parametrize(
    "location",
    ["http://h/..%2f..%2fa.tar", "http://h/get?f=a.tar", "http://h/" + "a" * 300 + ".tar"],
)
def test_a_url_names_no_path_of_this_machine(location: str) -> None:
    file = split_location(location).file
    assert len(file) == 32
    assert file.isalnum()


def test_two_urls_of_one_name_are_refused(server: FlakyServer) -> None:
    names = [f"{server.url}/a%20.tar", f"{server.url}/a .tar"]
    with pytest.raises(UserError, match="twice"):
        open_manifest(names, "data.shards", STORAGE)


def test_the_cache_of_a_folder_is_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cache_folder("x") == cache_folder(tmp_path / "x") != cache_folder(tmp_path / "y")
    assert cache_folder("http://h/x") != cache_folder("http://h/y")


def test_a_folder_that_was_downloaded_is_read_once_and_stays_the_same(
    folder: Path, tmp_path: Path
) -> None:
    """A copy has other times: the content is compared, and the index stands."""
    before = open_manifest(folder, "data.shards")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        shutil.copyfile(path, copy / path.name)
    (copy / "b.tar").write_bytes((copy / "b.tar").read_bytes()[:3000])  # not all of it arrived
    after = open_manifest(copy, "data.shards")
    assert after.fingerprint == before.fingerprint
    assert [bool(shard.damage) for shard in after.shards] == [False, True]
