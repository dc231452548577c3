"""Reading samples by their place."""

import multiprocessing
import pickle
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from data.index.manifest import Manifest
from data.index.offsets import Member
from data.index.open import open_manifest
from data.reading.bad import BadSample
from data.reading.reader import ShardReader, _runs
from data.shards import ImageFile, write_shard

EVERYTHING = frozenset({"jpg", "cls"})


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    for shard in range(3):
        write_shard(tmp_path / f"{shard}.tar", [image(shard, i) for i in range(4)])
    return open_manifest(tmp_path, "data.shards")


def image(shard: int, sample: int) -> ImageFile:
    return ImageFile(f"k{shard}{sample}", "jpg", bytes([shard, sample]) * 300, sample)


def expected(shard: int, sample: int) -> dict[str, bytes]:
    return {"cls": str(sample).encode(), "jpg": image(shard, sample).data}


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
    assert ShardReader(manifest).read(1, 2, {"cls", "txt"}) == {"cls": b"2"}


def test_key_reads_no_data(manifest: Manifest) -> None:
    overwrite(Path(manifest.shards[1].location), b"")
    assert ShardReader(manifest).key(1, 2) == "k12"


def test_files_are_opened_lazily_and_not_too_many(manifest: Manifest) -> None:
    def num_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = num_open()
    reader = ShardReader(manifest, max_open=2)
    assert num_open() == before
    for shard in (0, 1, 2, 0, 2):
        assert reader.read(shard, 1, EVERYTHING) == expected(shard, 1)
        assert num_open() <= before + 2 * 2  # the tar and its mapped index
    reader.close()
    assert num_open() == before


def test_a_changed_byte_is_a_bad_sample(manifest: Manifest) -> None:
    path = Path(manifest.shards[0].location)
    content = bytearray(path.read_bytes())
    content[content.index(image(0, 1).data) + 5] ^= 1
    overwrite(path, bytes(content))
    reader = ShardReader(manifest)
    with pytest.raises(BadSample, match=r"^jpg: checksum differs from the index at offset 4096$"):
        reader.read(0, 1, EVERYTHING)
    assert reader.read(0, 1, {"cls"}) == {"cls": b"1"}
    assert reader.read(0, 2, EVERYTHING) == expected(0, 2)


def test_a_shard_cut_later_gives_bad_samples(manifest: Manifest) -> None:
    path = Path(manifest.shards[0].location)
    overwrite(path, path.read_bytes()[: 4096 + 100])
    reader = ShardReader(manifest)
    with pytest.raises(BadSample, match=r"^jpg: 100 of 600 bytes at 4096$"):
        reader.read(0, 1, EVERYTHING)
    assert reader.read(0, 0, EVERYTHING) == expected(0, 0)


def test_a_missing_shard_is_no_bad_sample(manifest: Manifest) -> None:
    Path(manifest.shards[0].location).unlink()
    with pytest.raises(FileNotFoundError):
        ShardReader(manifest).read(0, 0, EVERYTHING)


def test_a_damaged_header_harms_nothing_once_indexed(manifest: Manifest) -> None:
    path = Path(manifest.shards[0].location)
    overwrite(path, bytes(512) + path.read_bytes()[512:])
    assert ShardReader(manifest).read(0, 3, EVERYTHING) == expected(0, 3)


def test_a_pickle_carries_no_open_files(manifest: Manifest) -> None:
    reader = ShardReader(manifest)
    reader.read(0, 0, EVERYTHING)
    copy = pickle.loads(pickle.dumps(reader))
    assert reader.read(0, 1, EVERYTHING) == copy.read(0, 1, EVERYTHING) == expected(0, 1)


def test_a_member_of_absurd_size_is_not_read(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.reading.bad.MAX_MEMBER_BYTES", 599)
    monkeypatch.setattr("data.storage.files.LocalFile.read", None)
    with pytest.raises(BadSample, match=r"^jpg: 600 bytes, more than the 599 that are read$"):
        ShardReader(manifest).read(0, 1, EVERYTHING)


@pytest.mark.parametrize(
    ("places", "runs"),
    [
        ([], []),
        ([(512, 100)], [(512, 612)]),
        ([(2048, 3), (512, 100)], [(512, 2051)]),  # the tar's order, whatever the index's
        ([(0, 100), (100 + (64 << 10), 5)], [(0, 105 + (64 << 10))]),
        ([(0, 100), (101 + (64 << 10), 5)], [(0, 100), (101 + (64 << 10), 106 + (64 << 10))]),
        ([(0, 200 << 20), (200 << 20, 100 << 20)], [(0, 200 << 20), (200 << 20, 300 << 20)]),
    ],
)
def test_near_members_are_read_together(
    places: list[tuple[int, int]], runs: list[tuple[int, int]]
) -> None:
    members = {f"x{i}": Member(*place, 0) for i, place in enumerate(places)}
    assert _runs(members) == [range(*run) for run in runs]


def _read_in_child(reader: ShardReader, results: Connection) -> None:
    try:
        results.send(reader.read(0, 1, EVERYTHING))
    except BadSample as error:
        results.send(str(error))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_opens_its_own_files(manifest: Manifest) -> None:
    """Replace a file that the parent holds open: only who opens it anew sees the other."""
    reader = ShardReader(manifest)
    reader.read(0, 0, EVERYTHING)
    (Path(manifest.shards[0].location).parent / "other").write_bytes(b"")
    (Path(manifest.shards[0].location).parent / "other").replace(Path(manifest.shards[0].location))
    receiver, sender = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_read_in_child, args=(reader, sender))
    child.start()
    assert receiver.recv() == "cls: 0 of 1 bytes at 3072"
    child.join()
    assert reader.read(0, 1, EVERYTHING) == expected(0, 1)
