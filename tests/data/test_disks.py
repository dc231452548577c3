"""Errors of disks: real ones, each told in one line with what helps against it."""

import io
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import ones

from data.disks import explain, one_line
from data.index.open import open_manifest
from data.settings import RunStopped, run_entry_point
from data.shards import ImageFile, atomic_write, write_shard
from tests.conftest import MountDisk, make_png


@contextmanager
def files_of_at_most(num_bytes: int) -> Generator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _too_large(folder: Path) -> None:
    with files_of_at_most(100):
        (folder / "a").write_bytes(b"x" * 200)


def _below_a_file(folder: Path) -> None:
    (folder / "file").touch()
    (folder / "file" / "a").write_bytes(b"")


def _in_a_circle(folder: Path) -> None:
    (folder / "link").symlink_to("link")
    (folder / "link").read_bytes()


def _below_nothing(folder: Path) -> None:
    (folder / "a/b").touch()


def _onto_a_folder(folder: Path) -> None:
    folder.write_bytes(b"")


def _too_long(folder: Path) -> None:
    (folder / ("n" * 300)).touch()


@pytest.mark.parametrize(
    ("work", "text"),
    [
        (_too_large, "File too large; the disk, or ulimit -f, allows no file so large"),
        (_below_a_file, "Not a directory; a part of the path is a file: choose another place"),
        (_in_a_circle, "Too many levels of symbolic links; links there point at each other"),
        (_below_nothing, "No such file or directory; see that the folder"),
        (_onto_a_folder, "Is a directory; there is a folder of that name"),
        (_too_long, "File name too long; give it a shorter"),
    ],
)  # fmt: skip
def test_each_error_has_its_own_remedy(
    tmp_path: Path, work: Callable[[Path], object], text: str
) -> None:
    with pytest.raises(OSError, match="Errno") as caught:
        work(tmp_path)
    assert explain(caught.value).startswith(text)
    assert "make room" not in explain(caught.value)


def test_full_and_read_only_disks(mount_disk: MountDisk) -> None:
    disk = mount_disk("64k")
    with pytest.raises(OSError, match="Errno") as caught:
        (disk / "a").write_bytes(b"x" * 100_000)
    assert explain(caught.value) == "No space left on device; make room"
    (disk / "a").unlink()
    with pytest.raises(Exception, match="os error 28") as wrapped:  # safetensors' own kind
        save_file({"a": ones(100_000)}, disk / "a")
    assert explain(wrapped.value) == "No space left on device; make room"
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OSError, match="Errno") as caught:
        (disk / "b").touch()
    assert explain(caught.value).startswith("Read-only file system; the disk is mounted for")


def test_an_error_without_text_is_its_kind() -> None:
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("a\n  b")) == "a b"
    assert explain(OSError("only text")) == "only text"


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["n" * 251 + ".tar", "ü" * 125 + ".tar"])
def test_a_file_may_have_the_longest_name_that_a_disk_takes(tmp_path: Path, name: str) -> None:
    with atomic_write(tmp_path / name) as file:
        file.write(b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_shards_with_long_names_are_indexed_or_named(tmp_path: Path) -> None:
    sound, long = ("n" * (num_bytes - 4) + ".tar" for num_bytes in (249, 250))
    for name in (sound, long):
        write_shard(tmp_path / name, [ImageFile("0", "png", make_png(0))])
    assert open_manifest(str(tmp_path / sound), "data.shards").num_samples == 1
    with pytest.raises(RunStopped) as caught:
        open_manifest(str(tmp_path / long), "data.shards")
    index = tmp_path / f"{long}.index"
    expected = f"{index} cannot be written: File name too long; give it a shorter name"
    assert str(caught.value) == expected


# ---------------------------------------------------------------- entry points


def run(main: Callable[[list[str]], None]) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        run_entry_point(main)
    return stop.value.code


def test_an_entry_point_tells_of_a_disk_in_one_line(
    mount_disk: MountDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = mount_disk("64k")

    def fill(_: list[str]) -> None:
        (disk / "a").write_bytes(b"x" * 100_000)

    def below(_: list[str]) -> None:
        (disk / "no/folder").touch()

    assert run(fill) == run(below) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "stopped: a file: No space left on device; make room"
    assert (
        second
        == f"stopped: {disk}/no/folder: No such file or directory; see that the folder is there"
    )


def test_an_error_that_is_no_disks_stays_one(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: list[str]) -> None:
        raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(ConnectionResetError):
        run_entry_point(main)


def test_no_character_ends_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    name = os.fsdecode(b"caf\xe9.png")  # Latin-1: no UTF-8

    run_entry_point(lambda _: print(f"12 ± 1 % {name}"))
    sys.stdout.flush()
    assert written.getvalue() == b"12 \\xb1 1 % caf\\udce9.png\n"
