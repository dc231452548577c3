"""Scanning shards, their index files, the manifest."""

import gzip
import hashlib
import io
import logging
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import data.index
from data.index import Manifest, ShardIndex, open_manifest, scan
from data.settings import UserError
from data.shards import ImageFile, write_shard

BLOCK = 512


def samples(number: int = 6, size: int = 700) -> list[ImageFile]:
    """Samples of different bytes; each takes 3 + 2 blocks in the tar."""
    return [ImageFile(f"{i:04d}", "jpg", bytes([i]) * (size + i), i) for i in range(number)]


def make_tar(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    return path


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    write_shard(path, samples())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        scan(path, "in/" + path.name)
    text = str(caught.value)
    assert f"in/{path.name}" in text
    assert "\n" not in text
    return text


# ---------------------------------------------------------------- one shard


def test_offsets_and_checksums_are_those_of_tarfile(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    long = ImageFile("folder/" + "k" * 150, "png", b"p" * 3_000_000, 7)  # with an extended header
    write_shard(path, [*samples(), long, ImageFile("last", "gif", b"")])
    result = scan(path, "a.tar")
    content = path.read_bytes()
    found = {
        f"{result.index.key(i)}.{extension}": (member, content[member.offset :][: member.size])
        for i in range(len(result.index))
        for extension, member in result.index.members(i).items()
    }
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.isfile()]
        expected = {m.name: tar.extractfile(m).read() for m in members}  # pyright: ignore[reportOptionalMemberAccess]
    assert {name: data for name, (_, data) in found.items()} == expected
    assert all(member.crc32 == zlib.crc32(data) for member, data in found.values())
    assert result.sha256 == hashlib.sha256(content).hexdigest()
    assert (result.num_bytes, result.damage) == (len(content), None)


def test_save_and_load_round_trip(tmp_path: Path, shard: Path) -> None:
    index = scan(shard, "a.tar").index
    index.save(tmp_path / "a.tar.index")
    loaded = ShardIndex.load(tmp_path / "a.tar.index")
    assert len(loaded) == len(index) == 6
    assert [loaded.key(i) for i in range(6)] == [sample.key for sample in samples()]
    assert [loaded.members(i) for i in range(6)] == [index.members(i) for i in range(6)]


def test_an_index_that_is_cut_is_refused(tmp_path: Path, shard: Path) -> None:
    path = tmp_path / "a.tar.index"
    scan(shard, "a.tar").index.save(path)
    for size in (0, 5, 100, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(UserError, match=r"a.tar.index is not an index; delete it"):
            ShardIndex.load(path)


def test_an_empty_tar_has_no_samples(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [])
    result = scan(tmp_path / "a.tar", "a.tar")
    assert (len(result.index), result.damage) == (0, None)
    result.index.save(tmp_path / "a.index")
    assert len(ShardIndex.load(tmp_path / "a.index")) == 0


def test_members_that_webdataset_skips_are_passed_over(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", ["__m__/a.x", "0.jpg", "README", "0.cls", "1.JPG"])
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("folder.d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    index = scan(path, "a.tar").index
    assert [(index.key(i), list(index.members(i))) for i in range(len(index))] == [
        ("0", ["jpg", "cls"]),
        ("1", ["jpg"]),
    ]


Change = Callable[[bytes], bytes]


def cut(blocks: int, more: int = 0) -> Change:
    return lambda content: content[: blocks * BLOCK + more]


def flip(offset: int) -> Change:
    return lambda content: content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :]


def zero(block: int) -> Change:
    return lambda content: content[: block * BLOCK] + bytes(BLOCK) + content[(block + 1) * BLOCK :]


def add_a_byte(content: bytes) -> bytes:
    return content + b"x"


# Each sample of `samples` takes 5 blocks: cls header, cls, jpg header, 2 of jpg.
@pytest.mark.parametrize(
    ("change", "text", "num_samples"),
    [
        (cut(15), "cut at offset 7680, without an end marker; 3 samples", 3),
        (cut(17), "cut at offset 8704, without an end marker; 3 samples", 3),
        (cut(17, 99), "cut at offset 8803, without an end marker; 3 samples", 3),
        (cut(18, 9), "cut at offset 9225, inside 0003.jpg; 3 samples", 3),
        (cut(3, 9), "cut at offset 1545, inside 0000.jpg; 0 samples", 0),
        (flip(10 * BLOCK + 3), "unreadable header at offset 5120; 2 samples", 2),
        (flip(12 * BLOCK + 3), "unreadable header at offset 6144; 2 samples", 2),
        (flip(3), "unreadable header at offset 0; 0 samples", 0),
        (zero(10), "data after the end marker, at offset 5632; 2 samples", 2),
        (add_a_byte, "data after the end marker, at offset 20480; 6", 6),
    ],
)
def test_damage_is_named(shard: Path, change: Change, text: str, num_samples: int) -> None:
    damaged = change(shard.read_bytes())
    shard.write_bytes(damaged)
    result = scan(shard, "a.tar")
    assert result.damage is not None
    assert text in result.damage
    assert len(result.index) == num_samples
    assert [len(result.index.members(i)) for i in range(num_samples)] == [2] * num_samples
    assert result.sha256 == hashlib.sha256(damaged).hexdigest()


def test_a_damaged_extended_header_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_shard(path, [*samples(1), ImageFile("k" * 150, "png", b"p")])
    path.write_bytes(flip(7 * BLOCK + 3)(path.read_bytes()))  # the header after the extended one
    assert scan(path, "a").damage == "unreadable header at offset 2560; 1 samples before it"


def test_files_that_are_no_plain_tar(tmp_path: Path, shard: Path) -> None:
    for content, text in (
        (b"", "has 0 bytes; write or copy it again"),
        (b"hello " * 300, "is not a tar file; name only tar files"),
        (gzip.compress(shard.read_bytes()), r"is compressed (gzip), so samples cannot be read by"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "is compressed (zstd)"),
        (b"BZh9" + bytes(600), "is compressed (bzip2)"),
        (b"\xfd7zXZ\0" + bytes(600), "is compressed (xz)"),
    ):
        path = tmp_path / "b.tar"
        path.write_bytes(content)
        assert text in refusal(path)
    named = shard.rename(tmp_path / "a.tar.gz")
    assert "unpack it to a plain .tar" in refusal(named)


@pytest.mark.parametrize(
    ("names", "duplicate"),
    [
        (["0.jpg", "1.jpg", "0.cls"], "0"),
        (["0.jpg", "0.cls", "0.jpg"], "0.jpg"),
        (["0.jpg", "0.JPG"], "0.JPG"),
    ],
)
def test_duplicate_keys_are_refused(tmp_path: Path, names: list[str], duplicate: str) -> None:
    assert f": {duplicate} occurs twice" in refusal(make_tar(tmp_path / "a.tar", names))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (tarfile.SYMTYPE, "member 1.jpg is a link"),
        (tarfile.LNKTYPE, "member 1.jpg is a link"),
        (tarfile.FIFOTYPE, "member 1.jpg is neither a file nor a folder"),
        (tarfile.GNUTYPE_SPARSE, "member 1.jpg is sparse"),
    ],
)
def test_members_without_own_bytes_are_refused(tmp_path: Path, kind: bytes, text: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("0.jpg"))
        member = tarfile.TarInfo("1.jpg")
        member.type, member.linkname = kind, "0.jpg"
        tar.addfile(member)
    assert text in refusal(tmp_path / "a.tar")


# ---------------------------------------------------------------- the manifest


@pytest.fixture
def two_folders(tmp_path: Path) -> Path:
    for name, number in (("train", 5), ("val", 3)):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "000.tar", samples(number))
    return tmp_path


def open_all(folder: Path) -> Manifest:
    return open_manifest(f"{folder}/*/000.tar", "data.shards")


def count_scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the shards that are scanned from now on."""
    scanned: list[str] = []

    def counted(path: Path, name: str) -> object:
        scanned.append(name)
        return scan(path, name)

    monkeypatch.setattr(data.index, "scan", counted)
    return scanned


def test_manifest_of_equal_file_names(two_folders: Path) -> None:
    manifest = open_all(two_folders)
    assert [shard.name for shard in manifest.shards] == ["train/000.tar", "val/000.tar"]
    assert manifest.num_samples == 8
    assert manifest.starts.dtype == np.int64
    assert manifest.starts.tolist() == [0, 5, 8]
    for shard in manifest.shards:
        assert shard.index_path == Path(f"{shard.path}.index")
        assert len(ShardIndex.load(shard.index_path)) == shard.num_samples


def test_what_is_valid_is_not_scanned_again(
    two_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned = count_scans(monkeypatch)
    first = open_all(two_folders)
    assert sorted(scanned) == ["train/000.tar", "val/000.tar"]
    second = open_all(two_folders)
    assert len(scanned) == 2
    assert (second.shards, second.fingerprint) == (first.shards, first.fingerprint)


def test_what_is_stale_is_scanned_again(two_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_all(two_folders)
    scanned = count_scans(monkeypatch)
    train, val = two_folders / "train" / "000.tar", two_folders / "val" / "000.tar"
    write_shard(train, samples(4))
    after = open_all(two_folders)
    assert (scanned, after.num_samples) == (["train/000.tar"], 7)
    assert after.fingerprint != before.fingerprint
    os.utime(val, ns=(0, 12345))
    open_all(two_folders)
    Path(f"{val}.index").unlink()
    open_all(two_folders)
    (two_folders / "val" / "manifest.jsonl").write_text('{"file": "000.tar"}\n{"fi')
    assert open_all(two_folders).fingerprint == after.fingerprint
    assert scanned[1:] == ["val/000.tar"] * 3


def test_rows_of_other_shards_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, samples(2))
        open_manifest(str(tmp_path / name), "data.shards")
    scanned = count_scans(monkeypatch)
    assert open_manifest(tmp_path, "data.shards").num_samples == 4
    assert scanned == []


def test_fingerprint_depends_on_order_and_content(tmp_path: Path) -> None:
    for name, number in (("a.tar", 2), ("b.tar", 3)):
        write_shard(tmp_path / name, samples(number))
    paths = [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    prints = {open_manifest(spec, "k").fingerprint for spec in (paths, paths[::-1], paths[:1])}
    assert len(prints) == 3


def test_a_folder_that_cannot_be_written_is_indexed_in_the_cache(
    two_folders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data.index, "is_writable", lambda folder: folder.name != "val")  # pyright: ignore
    caplog.set_level(logging.INFO)
    manifest = open_all(two_folders)
    train, val = manifest.shards
    assert train.index_path.parent == two_folders / "train"
    assert val.index_path.parent.parent == tmp_path / "cache/masked-patch-pretraining/index"
    assert [path.name for path in (two_folders / "val").iterdir()] == ["000.tar"]
    assert f"indexing 2 shards; the index goes to {tmp_path}" in caplog.text
    scanned = count_scans(monkeypatch)
    assert open_all(two_folders).shards == manifest.shards
    assert scanned == []


def test_is_writable(tmp_path: Path) -> None:
    assert data.index.is_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not data.index.is_writable(tmp_path / "missing")
    assert not data.index.is_writable(Path("/proc"))


def test_damage_is_warned_of_each_time(shard: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard.write_bytes(shard.read_bytes()[: 15 * BLOCK])
    for _ in range(2):
        caplog.clear()
        manifest = open_manifest(str(shard), "data.shards")
        assert manifest.num_samples == 3
        assert "shard a.tar is damaged: cut at offset 7680, without an end marker; 3" in caplog.text


def test_no_samples_in_all(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [])
    with pytest.raises(UserError, match=r"data.shards=.*: the shards hold no samples; name others"):
        open_manifest(tmp_path, "data.shards")


def test_a_refused_shard_does_not_lose_the_work_on_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    write_shard(tmp_path / "a.tar", samples())
    (tmp_path / "b.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"shard b.tar has 0 bytes"):
        open_manifest(tmp_path, "data.shards")
    scanned = count_scans(monkeypatch)
    open_manifest(str(tmp_path / "a.tar"), "data.shards")
    assert scanned == []
