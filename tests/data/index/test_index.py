"""The manifest: what is known, what is made, and what a change means."""

import json
import logging
import multiprocessing
import os
import pickle
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import data.index.catalog
import data.index.making
from data.index.manifest import Manifest, Row, append_rows, read_rows, tidy_rows
from data.index.offsets import ShardIndex
from data.index.open import load_index, open_manifest
from data.reading.reader import ShardReader
from data.settings import RunStopped, UserError
from data.shards import ImageFile, write_shard
from data.storage.locations import RangeFile

BLOCK = 512


def samples(number: int = 6, size: int = 700) -> list[ImageFile]:
    """Samples of different bytes; each takes 3 + 2 blocks in the tar."""
    return [ImageFile(f"{i:04d}", "jpg", bytes([i]) * (size + i), i) for i in range(number)]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    write_shard(path, samples())
    return path


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
    scan = data.index.making.scan

    def counted(file: RangeFile, name: str) -> object:
        scanned.append(name)
        return scan(file, name)

    monkeypatch.setattr(data.index.making, "scan", counted)
    return scanned


def test_manifest_of_equal_file_names(two_folders: Path) -> None:
    manifest = open_all(two_folders)
    assert [shard.name for shard in manifest.shards] == ["train/000.tar", "val/000.tar"]
    assert manifest.num_samples == 8
    assert manifest.starts.dtype == np.int64
    assert manifest.starts.tolist() == [0, 5, 8]
    for shard in manifest.shards:
        assert shard.index_path == Path(f"{shard.location}.index")
        assert len(ShardIndex.load(shard.index_path)) == shard.num_samples


def test_what_is_valid_is_not_scanned_again(
    two_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned = count_scans(monkeypatch)
    first = open_all(two_folders)
    assert sorted(scanned) == ["train/000.tar", "val/000.tar"]
    second = open_all(two_folders)
    assert len(scanned) == 2
    assert list(second.shards) == list(first.shards)
    assert second.fingerprint == first.fingerprint


def test_what_is_stale_is_scanned_again(two_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_all(two_folders)
    scanned = count_scans(monkeypatch)
    train, val = two_folders / "train" / "000.tar", two_folders / "val" / "000.tar"
    write_shard(train, samples(4, 900))
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
    monkeypatch.setattr(data.index.catalog, "is_writable", lambda folder: folder.name != "val")  # pyright: ignore
    caplog.set_level(logging.INFO)
    manifest = open_all(two_folders)
    train, val = manifest.shards
    assert train.index_path.parent == two_folders / "train"
    assert val.index_path.parent.parent == tmp_path / "cache/masked-patch-pretraining/index"
    assert [path.name for path in (two_folders / "val").iterdir()] == ["000.tar"]
    assert f"indexing 2 shards; the index goes to {tmp_path}" in caplog.text
    scanned = count_scans(monkeypatch)
    assert list(open_all(two_folders).shards) == list(manifest.shards)
    assert scanned == []


def test_is_writable(tmp_path: Path) -> None:
    assert data.index.catalog.is_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not data.index.catalog.is_writable(tmp_path / "missing")
    assert not data.index.catalog.is_writable(Path("/proc"))


def test_damage_is_warned_of_each_time(shard: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard.write_bytes(shard.read_bytes()[: 15 * BLOCK])
    for _ in range(2):
        caplog.clear()
        manifest = open_manifest(str(shard), "data.shards")
        assert manifest.num_samples == 3
        assert "shard a.tar is damaged: cut at offset 7680, without an end marker; 3" in caplog.text


def test_no_samples_in_all(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [])
    with pytest.raises(UserError, match=r"data.shards: the shards hold no samples; name others"):
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


# ---------------------------------------------------------------- a shard that changed


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_the_same_content_only_renews_the_time(shard: Path) -> None:
    before = open_manifest(str(shard), "data.shards")
    index = Path(f"{shard}.index").stat()
    os.utime(shard, ns=(0, 12345))
    after = open_manifest(str(shard), "data.shards")
    assert list(after.shards) == list(before.shards)
    assert rows(shard.parent)[0]["mtime_ns"] == 12345
    assert Path(f"{shard}.index").stat().st_mtime_ns == index.st_mtime_ns  # not written again


@pytest.mark.parametrize(
    "new",
    [samples(4, 900), samples(9), samples(6, 701), [ImageFile("other", "png", b"x")]],
    ids=["fewer", "more", "larger", "other"],
)
def test_a_shard_that_was_replaced_is_indexed_again(
    shard: Path, caplog: pytest.LogCaptureFixture, new: list[ImageFile]
) -> None:
    caplog.set_level(logging.INFO)
    before = open_manifest(str(shard), "data.shards")
    write_shard(shard, new)
    after = open_manifest(str(shard), "data.shards")
    assert after.shards[0].damage is None
    assert after.fingerprint != before.fingerprint
    assert [load_index(after.shards[0]).key(i) for i in range(len(new))] == [s.key for s in new]
    assert (
        f"shard a.tar was replaced since it was indexed (6 samples before, {len(new)} now); "
        "indexed again"
    ) in caplog.text


def test_other_bytes_in_the_same_places_are_damage_until_the_index_is_deleted(
    shard: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = open_manifest(str(shard), "data.shards")
    write_shard(shard, [replace(s, label=9 - i) for i, s in enumerate(samples())])
    after = open_manifest(str(shard), "data.shards")
    assert after.fingerprint == before.fingerprint
    finding = "changed since it was indexed: 6 members have other bytes, the first is 0000.cls"
    assert after.shards[0].damage == finding
    assert f"shard a.tar is damaged: {finding}" in caplog.text
    Path(f"{shard}.index").unlink()
    anew = open_manifest(str(shard), "data.shards")
    assert anew.shards[0].damage is None
    assert anew.fingerprint != before.fingerprint


def test_what_no_member_holds_is_no_damage(shard: Path) -> None:
    """Owners, times and padding."""
    before = open_manifest(str(shard), "data.shards")
    content = bytearray(shard.read_bytes())
    content[2 * BLOCK - 1] ^= 1  # behind the label of one byte
    shard.write_bytes(content)
    os.utime(shard, ns=(0, 1))
    after = open_manifest(str(shard), "data.shards")
    assert (after.fingerprint, after.shards[0].damage) == (before.fingerprint, None)


def test_zeros_at_the_end_of_a_shard_of_the_same_size_are_damage(shard: Path) -> None:
    open_manifest(str(shard), "data.shards")
    size = shard.stat().st_size
    os.truncate(shard, 10 * BLOCK)
    os.truncate(shard, size)
    after = open_manifest(str(shard), "data.shards")
    assert after.shards[0].damage == "changed since it was indexed: zeros from sample 2 of 6 on"
    assert after.num_samples == 6


def test_a_shard_that_was_damaged_first_and_is_whole_now(shard: Path) -> None:
    whole = shard.read_bytes()
    shard.write_bytes(whole[: 15 * BLOCK])
    assert open_manifest(str(shard), "data.shards").num_samples == 3
    shard.write_bytes(whole)
    manifest = open_manifest(str(shard), "data.shards")
    assert (manifest.num_samples, manifest.shards[0].damage) == (6, None)


def test_a_damaged_index_is_not_the_truth(shard: Path) -> None:
    open_manifest(str(shard), "data.shards")
    Path(f"{shard}.index").write_bytes(b"x")
    shard.write_bytes(shard.read_bytes()[: 15 * BLOCK])
    manifest = open_manifest(str(shard), "data.shards")
    assert manifest.num_samples == 3
    assert "cut at offset" in str(manifest.shards[0].damage)
    assert "changed" not in str(manifest.shards[0].damage)


def test_what_a_read_only_folder_was_indexed_as_stays_the_truth(
    two_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old index lies beside the shards; the row and a copy of the index go to the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = open_all(two_folders)
    monkeypatch.setattr(data.index.catalog, "is_writable", lambda folder: folder.name != "val")  # pyright: ignore
    val = two_folders / "val" / "000.tar"
    val.write_bytes(val.read_bytes()[: 5 * BLOCK])
    for _ in range(2):
        after = open_all(two_folders)
        assert after.fingerprint == before.fingerprint
        assert "changed since it was indexed: cut" in str(after.shards[1].damage)
        assert after.shards[1].index_path.is_relative_to(tmp_path / "cache")
        assert len(load_index(after.shards[1])) == 3
    assert rows(two_folders / "val")[0]["damage"] is None


# ---------------------------------------------------------------- failures, and others at work


def test_a_later_row_counts_also_where_an_earlier_one_would_hold(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index is the later one's."""
    open_manifest(str(shard), "data.shards")
    path = shard.parent / "manifest.jsonl"
    path.write_text(path.read_text() + json.dumps(rows(shard.parent)[0] | {"mtime_ns": 1}) + "\n")
    scanned = count_scans(monkeypatch)
    open_manifest(str(shard), "data.shards")
    assert scanned == ["a.tar"]


def test_a_torn_last_row_does_not_spoil_the_next(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, samples(2))
    open_manifest(str(tmp_path / "a.tar"), "data.shards")
    with (tmp_path / "manifest.jsonl").open("a") as file:
        file.write('{"file": "b.tar", "num')
    row = replace(next(read_rows(tmp_path)), file="b.tar")
    append_rows(tmp_path, [row])
    assert [row.file for row in read_rows(tmp_path)] == ["a.tar", "b.tar"]
    tidy_rows(tmp_path)
    assert [row["file"] for row in rows(tmp_path)] == ["a.tar", "b.tar"]


def _append(folder: Path, worker: int) -> None:
    row = Row("x", 1, 1, 1, "0" * 64, None)
    for i in range(30):
        append_rows(folder, [replace(row, file=f"{worker}-{i}")])
        tidy_rows(folder)


def test_two_index_jobs_at_once_lose_no_row(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as executor:
        list(executor.map(_append, [tmp_path] * 3, range(3)))
    assert len(rows(tmp_path)) == 3 * 30
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.jsonl"]


def test_a_shard_that_changes_while_it_is_indexed(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = data.index.making.scan

    def slow(file: RangeFile, name: str) -> object:
        os.utime(shard, ns=(0, 7))
        return scan(file, name)

    monkeypatch.setattr(data.index.making, "scan", slow)
    with pytest.raises(
        UserError, match=r"^data.shards: shard a.tar changed while it was indexed; s"
    ):
        open_manifest(str(shard), "data.shards")
    assert not Path(f"{shard}.index").exists()


def test_a_disk_that_fails_stops_the_run(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(file: RangeFile, name: str) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(data.index.making, "scan", failing)
    text = r"^shard a.tar cannot be read: Input/output error; the disk"
    with pytest.raises(RunStopped, match=text):
        open_manifest(str(shard), "data.shards")


@pytest.mark.parametrize(
    "written", ["data.index.arrays.atomic_write", "data.index.manifest.atomic_write"]
)
def test_a_full_disk_stops_the_run(
    shard: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    def full(path: Path) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(written, full)
    text = r"cannot be written: No space left on device; make room$"
    with pytest.raises(RunStopped, match=text):
        open_manifest(str(shard), "data.shards")


def test_a_cache_folder_that_cannot_be_made(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    monkeypatch.setattr(data.index.catalog, "is_writable", lambda folder: False)  # pyright: ignore
    with pytest.raises(RunStopped, match=r"cannot be made: .*; XDG_CACHE_HOME can name"):
        open_manifest(str(shard), "data.shards")


def test_an_index_that_is_gone(shard: Path) -> None:
    found = open_manifest(str(shard), "data.shards").shards[0]
    found.index_path.unlink()
    with pytest.raises(RunStopped, match=r"a.tar.index, the index of shard a.tar, is gone; start"):
        load_index(found)


# ---------------------------------------------------------------- in memory


def test_shards_are_a_sequence(tmp_path: Path) -> None:
    for i in range(5):
        write_shard(tmp_path / f"é{i}.tar", samples(i + 1))
    shards = open_manifest(tmp_path, "data.shards").shards
    names = [f"é{i}.tar" for i in range(5)]
    assert [shard.name for shard in shards] == [shards[i].name for i in range(5)] == names
    assert shards[-1] == shards[4]
    assert list(shards[1:3]) == [shards[1], shards[2]]
    assert list(shards.names[3:]) == names[3:]
    assert [shard.num_samples for shard in reversed(shards)] == [5, 4, 3, 2, 1]
    with pytest.raises(IndexError):
        shards[5]
    assert list(pickle.loads(pickle.dumps(shards))) == list(shards)


@pytest.mark.slow
def test_many_shards_cost_little(tmp_path: Path) -> None:
    """2,000 shards; numbers for 1e5 are in docs/results/stream.md."""
    write_shard(tmp_path / "x.tar", samples(1, 1))
    content = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").unlink()
    for i in range(2000):
        (tmp_path / f"{i:06d}.tar").write_bytes(content[: 6 * BLOCK])
    open_manifest(tmp_path, "data.shards")
    tracemalloc.start()
    manifest = open_manifest(tmp_path, "data.shards")
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert now < 400 * 2000  # bytes a shard
    assert peak < 1200 * 2000
    assert len(pickle.dumps(manifest)) < 400 * 2000


# ---------------------------------------------------------------- a fraction of the samples


def names(manifest: Manifest) -> list[str]:
    reader = ShardReader(manifest)
    return [
        f"{shard.name}/{reader.key(number, place)}"
        for number, shard in enumerate(manifest.shards)
        for place in range(shard.num_samples)
    ]


def test_a_fraction_takes_each_shards_share_of_samples_as_they_are(tmp_path: Path) -> None:
    for number, count in enumerate((40, 7, 13)):
        write_shard(tmp_path / f"{number}.tar", samples(count))
    whole, part = (open_manifest(tmp_path, "data.shards", fraction=f) for f in (1.0, 0.3))
    assert [shard.num_samples for shard in part.shards] == [12, 2, 4]
    assert whole.fingerprint != part.fingerprint
    assert set(names(part)) < set(names(whole))
    reader = ShardReader(part)
    for number, shard in enumerate(part.shards):
        for place in range(shard.num_samples):
            key = int(reader.key(number, place))
            members = reader.read(number, place, {"jpg", "cls"})
            assert members == {"jpg": samples(key + 1)[key].data, "cls": str(key).encode()}


def test_a_fraction_is_the_same_in_each_run_and_part_of_a_larger_one(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", samples(200, size=10))
    small, again, large = (
        names(open_manifest(tmp_path, "data.shards", fraction=f)) for f in (0.1, 0.1, 0.5)
    )
    assert small == again
    assert set(small) < set(large)
    places = [int(name.split("/")[-1]) for name in small]
    assert len(places) == 20
    assert max(places) > 150
    assert min(places) < 50


def test_a_fraction_that_leaves_nothing_is_refused(shard: Path) -> None:
    with pytest.raises(UserError, match=r"data.fraction=0.01 leaves none of the 6 samples"):
        open_manifest(str(shard), "data.shards", fraction=0.01)
