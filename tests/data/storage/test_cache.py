"""The cache: whole parts or none, one writer, and never more than its size."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from data.storage import cache
from data.storage.cache import CachedFile, CacheWriter, Part, folder_name, part_range, parts_of
from data.storage.locations import Version

URL = "http://host/train/0.tar"
VERSION = Version(250, '"etag"')
CONTENT = bytes(range(250))
FOLDER = folder_name(URL, VERSION)
PARTS = [Part(FOLDER, number) for number in range(3)]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setattr(cache, "PART_BYTES", 100)


def writer_of(folder: Path, max_bytes: int = 1000, **needs: int) -> CacheWriter:
    """Make a writer; `needs` are steps by part number, as in _0=7."""
    return CacheWriter(folder, max_bytes, lambda part: needs.get(f"_{part.number}"))


def put(writer: CacheWriter, part: Part, before: int = 0) -> bool:
    """Write a part of the file's content if there is room."""
    start = 100 * part.number
    content = CONTENT[start : start + 100] or bytes(100)
    if not writer.reserve(part, len(content), before):
        return False
    writer.write(part, iter([content[:30], content[30:]]))
    return True


def sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_parts() -> None:
    assert [part_range(number, 250) for number in range(3)] == [
        range(100),
        range(100, 200),
        range(200, 250),
    ]
    assert list(parts_of(0, 100)) == [0]
    assert list(parts_of(99, 2)) == [0, 1]
    assert list(parts_of(100, 101)) == [1, 2]


@pytest.mark.parametrize(
    ("url", "version"),
    [
        ("http://host/val/0.tar", VERSION),
        ("http://other/train/0.tar", VERSION),
        (URL, Version(250, '"other"')),
        (URL, Version(251, '"etag"')),
        (URL, Version(250, None)),
    ],
)
def test_equal_names_elsewhere_and_other_contents_do_not_collide(
    url: str, version: Version
) -> None:
    assert folder_name(url, version) != FOLDER


def test_a_signature_does_not_change_the_name() -> None:
    assert folder_name(f"{URL}?X-Signature=1", VERSION) == FOLDER


def test_reading_what_is_there(tmp_path: Path) -> None:
    file = CachedFile(tmp_path / "not yet", URL, VERSION)
    assert file.read(0, 10) is None
    file = CachedFile(tmp_path, URL, VERSION)
    with writer_of(tmp_path) as writer:
        for part in (PARTS[0], PARTS[2]):
            assert put(writer, part)
        assert file.read(0, 100) == CONTENT[:100]
        assert file.read(95, 5) == CONTENT[95:100]
        assert file.read(240, 10) == CONTENT[240:]
        assert file.read(95, 6) is None
        assert put(writer, PARTS[1])
        assert file.read(95, 150) == CONTENT[95:245]
        assert writer.num_bytes == 250


@pytest.mark.parametrize("content", [b"", CONTENT[:99], CONTENT[:101]])
def test_a_torn_part_is_a_miss(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "0").write_bytes(content)
    assert CachedFile(tmp_path, URL, VERSION).read(0, 10) is None


def test_a_part_appears_whole(tmp_path: Path) -> None:
    file = CachedFile(tmp_path, URL, VERSION)

    def chunks() -> Iterator[bytes]:
        yield CONTENT[:50]
        assert file.read(0, 10) is None
        yield CONTENT[50:100]

    with writer_of(tmp_path) as writer:
        assert writer.reserve(PARTS[0], 100, 0)
        assert file.read(0, 10) is None
        writer.write(PARTS[0], chunks())
        assert file.read(0, 10) == CONTENT[:10]


def test_a_part_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield CONTENT[:50]
        raise OSError("the server is gone")

    with writer_of(tmp_path, max_bytes=100) as writer:
        for _ in range(2):
            assert writer.reserve(PARTS[0], 100, 0)
            assert PARTS[0] in writer
            with pytest.raises(OSError, match="the server is gone"):
                writer.write(PARTS[0], chunks())
            assert PARTS[0] not in writer
            assert writer.num_bytes == sizes(tmp_path) == 0
        assert put(writer, PARTS[0])


def test_a_dropped_part_is_missed_and_written_again(tmp_path: Path) -> None:
    with writer_of(tmp_path, max_bytes=100) as writer:
        assert put(writer, PARTS[0])
        CachedFile(tmp_path, URL, VERSION).drop(5, 10)
        assert PARTS[0] not in writer
        assert put(writer, PARTS[0])
        assert CachedFile(tmp_path, URL, VERSION).read(0, 100) == CONTENT[:100]


# ---------------------------------------------------------------- its size


def test_the_least_recently_needed_goes_first(tmp_path: Path) -> None:
    with writer_of(tmp_path, 300, _0=5, _1=3, _2=9) as writer:
        for number in range(3):
            assert put(writer, Part(FOLDER, number))
        assert put(writer, Part("b" * 64, 7), before=10)  # 250 bytes are there, 300 is the limit
        assert [part in writer for part in PARTS] == [True, False, True]
        assert put(writer, Part("b" * 64, 8), before=10)
        assert [part in writer for part in PARTS] == [False, False, True]
        assert writer.num_bytes == sizes(tmp_path) == 250


def test_what_is_needed_stays(tmp_path: Path) -> None:
    with writer_of(tmp_path, 200, _0=5, _1=3) as writer:
        assert put(writer, PARTS[0])
        assert put(writer, PARTS[1])
        assert not put(writer, PARTS[2], before=3)
        assert [part in writer for part in PARTS] == [True, True, False]
        assert put(writer, PARTS[2], before=4)
        assert [part in writer for part in PARTS] == [True, False, True]


def test_a_part_being_written_stays(tmp_path: Path) -> None:
    with writer_of(tmp_path, 100) as writer:
        assert writer.reserve(PARTS[0], 100, 0)
        assert not writer.reserve(PARTS[1], 100, before=99)
        writer.write(PARTS[0], [CONTENT[:100]])
        assert writer.reserve(PARTS[1], 100, before=99)
        writer.write(PARTS[1], [CONTENT[100:200]])
        assert sizes(tmp_path) == 100


def test_what_lies_there_at_the_start_counts_and_the_oldest_goes(tmp_path: Path) -> None:
    with writer_of(tmp_path) as writer:
        for part in PARTS:
            assert put(writer, part)
    for number, time in enumerate((3, 1, 2)):
        os.utime(tmp_path / FOLDER / str(number), (time, time))
    (tmp_path / FOLDER / "9.abcd.tmp").write_bytes(bytes(1000))
    with writer_of(tmp_path, max_bytes=200) as writer:
        assert [part in writer for part in PARTS] == [True, False, True]
        assert writer.num_bytes == sizes(tmp_path) == 150
        assert put(writer, Part("b" * 64, 7))
        assert [part in writer for part in PARTS] == [True, False, False]


def test_files_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    for name in ("2024/1", "2024/x.tmp", "3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1000))
    with writer_of(tmp_path, max_bytes=100) as writer:
        assert put(writer, PARTS[0])
        assert put(writer, PARTS[1])
    assert all((tmp_path / name).exists() for name in ("2024/1", "2024/x.tmp", "3"))


def test_the_size_holds_while_threads_write(tmp_path: Path) -> None:
    largest = 0
    with writer_of(tmp_path, max_bytes=450) as writer:

        def work(letter: str) -> None:
            nonlocal largest
            for number in range(50):
                put(writer, Part(letter * 64, number), before=1)
                largest = max(largest, writer.num_bytes)

        threads = [threading.Thread(target=work, args=(letter,)) for letter in "abcdef"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert 400 <= largest <= 450
        assert writer.num_bytes == sizes(tmp_path) <= 450


# ---------------------------------------------------------------- one writer


def _try_to_write(folder: Path, results: Connection) -> None:
    try:
        writer_of(folder).close()
        results.send("writes")
    except BlockingIOError as error:
        results.send(str(error))


def test_one_process_writes(tmp_path: Path) -> None:
    def other() -> str:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.Process(target=_try_to_write, args=(tmp_path, sender))
        child.start()
        assert receiver.poll(30)
        child.join()
        return receiver.recv()

    with writer_of(tmp_path):
        assert other() == f"another run writes to {tmp_path}"
    assert other() == "writes"
