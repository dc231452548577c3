"""Reading samples by their place."""

import multiprocessing
import os
import pickle
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from data.index import Manifest, open_manifest
from data.reader import BadSample, ShardReader
from data.shards import ImageFile, write_shard

EVERYTHING = frozenset({"jpg", "cls"})


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    for shard in range(3):
        write_shard(tmp_path / f"{shard}.tar", [image(shard, i) for i in range(4)])
    return open_manifest(tmp_path, "data.shards")


def image(shard: int, sample: int) -> ImageFile:
    return ImageFile(f"k{shard}{sample}", "jpg", bytes([shard, sample]) * 300, sample)


def expected(shard: int, sample: int) -> tuple[str, dict[str, bytes]]:
    file = image(shard, sample)
    return file.key, {"cls": str(sample).encode(), "jpg": file.data}


def overwrite(path: Path, content: bytes) -> None:
    """Change a file in place, as a bad disk would."""
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


def test_read_gives_each_sample(manifest: Manifest) -> None:
    reader = ShardReader(manifest)
    places = [(shard, sample) for sample in range(4) for shard in (2, 0, 1)]
    assert [reader.read(*place, EVERYTHING) for place in places] == [
        expected(*place) for place in places
    ]


def test_read_gives_only_what_is_wanted(manifest: Manifest) -> None:
    assert ShardReader(manifest).read(1, 2, {"cls", "txt"}) == ("k12", {"cls": b"2"})


def test_a_handle_names_the_sample_before_reading_it(manifest: Manifest) -> None:
    sample = ShardReader(manifest).sample(6)
    assert (sample.shard, sample.key, sample.name) == ("1.tar", "k12", "1.tar/k12")
    assert sample.extensions == ("cls", "jpg")
    assert sample.read("jpg") == image(1, 2).data


def test_numbers_pass_over_empty_shards(tmp_path: Path) -> None:
    for shard, number in enumerate((0, 2, 0, 0, 1)):
        write_shard(tmp_path / f"{shard}.tar", [image(shard, i) for i in range(number)])
    reader = ShardReader(open_manifest(tmp_path, "data.shards"))
    assert [reader.sample(i).name for i in range(3)] == ["1.tar/k10", "1.tar/k11", "4.tar/k40"]


def test_files_are_opened_lazily_and_not_too_many(manifest: Manifest) -> None:
    def num_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = num_open()
    reader = ShardReader(manifest, max_open=2)
    assert num_open() == before
    handle = reader.sample(0)
    for shard in (0, 1, 2, 0, 2):
        assert reader.read(shard, 1, EVERYTHING) == expected(shard, 1)
        assert num_open() <= before + 2 * 2  # the tar and its mapped index
    assert handle.read("cls") == b"0"  # whose shard was closed in between
    reader.close()
    assert num_open() == before


def test_a_changed_byte_is_a_bad_sample(manifest: Manifest) -> None:
    path = manifest.shards[0].path
    content = bytearray(path.read_bytes())
    content[content.index(image(0, 1).data) + 5] ^= 1
    overwrite(path, bytes(content))
    reader = ShardReader(manifest)
    with pytest.raises(BadSample, match=r"^jpg: checksum differs from the index at offset 4096$"):
        reader.read(0, 1, EVERYTHING)
    assert reader.read(0, 1, {"cls"}) == ("k01", {"cls": b"1"})
    assert reader.read(0, 2, EVERYTHING) == expected(0, 2)


def test_a_shard_cut_later_gives_bad_samples(manifest: Manifest) -> None:
    path = manifest.shards[0].path
    overwrite(path, path.read_bytes()[: 4096 + 100])
    reader = ShardReader(manifest)
    with pytest.raises(BadSample, match=r"^jpg: 100 of 600 bytes at 4096$"):
        reader.read(0, 1, EVERYTHING)
    assert reader.read(0, 0, EVERYTHING) == expected(0, 0)


def test_a_missing_shard_is_no_bad_sample(manifest: Manifest) -> None:
    manifest.shards[0].path.unlink()
    with pytest.raises(FileNotFoundError):
        ShardReader(manifest).read(0, 0, EVERYTHING)


def test_a_damaged_header_harms_nothing_once_indexed(manifest: Manifest) -> None:
    path = manifest.shards[0].path
    overwrite(path, bytes(512) + path.read_bytes()[512:])
    assert ShardReader(manifest).read(0, 3, EVERYTHING) == expected(0, 3)


def test_a_pickle_carries_no_open_files(manifest: Manifest) -> None:
    reader = ShardReader(manifest)
    reader.read(0, 0, EVERYTHING)
    copy = pickle.loads(pickle.dumps(reader))
    assert reader.read(0, 1, EVERYTHING) == copy.read(0, 1, EVERYTHING) == expected(0, 1)


def _read_in_child(reader: ShardReader, results: Connection) -> None:
    with os.scandir("/proc/self/fd") as entries:
        inherited = {entry.name for entry in entries}
    first = reader.read(0, 2, EVERYTHING)
    results.send((first, len(inherited) > 0, reader.read(1, 0, EVERYTHING)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_opens_its_own_files(manifest: Manifest) -> None:
    reader = ShardReader(manifest, max_open=1)
    reader.read(0, 0, EVERYTHING)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=_read_in_child, args=(reader, sender)
    )
    child.start()
    assert receiver.recv() == (expected(0, 2), True, expected(1, 0))
    child.join()
    assert reader.read(0, 1, EVERYTHING) == expected(0, 1)
