"""scripts/index_shards.py, as a user starts it."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.index.open import open_manifest
from data.shards import ImageFile, write_shard
from scripts.index_shards import Problem, summary
from tests.conftest import make_png
from tests.servers import flaky_http

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "index_shards.py"
# The same, but each row is written as it comes.
EAGER = f"""
import runpy, sys, data.index.making
data.index.making._WRITE_SECONDS = 0
sys.argv = [{str(SCRIPT)!r}, *sys.argv[1:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--processes", "1", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd="/", check=False, env=os.environ | environment
    )


def image(number: int) -> ImageFile:
    return ImageFile(f"{number:02d}", "png", make_png(number, (8, 8)), number)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows that are whole."""
    path = folder / "manifest.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two sound shards, and one of each kind that is not."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(2):
        write_shard(folder / f"{i}.tar", [image(n) for n in range(4)])
    content = (folder / "0.tar").read_bytes()
    (folder / "compressed.tar").write_bytes(gzip.compress(content))
    # its first sample twice
    (folder / "twice.tar").write_bytes(content[: 4 * 512] * 2 + bytes(1024))
    (folder / "cut.tar").write_bytes(content[: 9 * 512])
    write_shard(folder / "unreadable.tar", [image(0), ImageFile("bad", "jpg", b"no image")])
    return folder


def test_it_goes_on_and_names_everything(shards: Path, tmp_path: Path) -> None:
    done = run(shards, "--check-images", "--json", tmp_path / "report.json")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    text = done.stdout
    assert "shard compressed.tar is compressed (gzip), so samples cannot be read by offset" in text
    assert "shard twice.tar: member 00.cls occurs twice (and 1 more), so samples would be" in text
    assert "shard cut.tar: cut at offset 4608, " in text
    assert "shard unreadable.tar: 1 member cannot be used\n  bad.jpg: no image format" in text
    assert "indexed: 4 shards, 12 samples, " in text
    assert text.endswith("4 shards have problems; 2 of them cannot be used at all\n")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["shards"], report["samples"]) == (4, 12)
    problems = {problem["shard"]: problem for problem in report["problems"]}
    assert set(problems) == {"compressed.tar", "twice.tar", "cut.tar", "unreadable.tar"}
    assert [name for name, problem in problems.items() if problem["is_unusable"]] == [
        "compressed.tar",
        "twice.tar",
    ]
    assert len(problems["twice.tar"]["members"]) == 2
    assert sorted(row["file"] for row in rows(shards)) == [
        "0.tar",
        "1.tar",
        "cut.tar",
        "unreadable.tar",
    ]


def test_status_and_strict(shards: Path) -> None:
    for name in ("compressed.tar", "twice.tar"):
        (shards / name).unlink()
    done = run(shards)
    assert (done.returncode, done.stdout.count("\n")) == (0, 3), done.stderr
    assert run(shards, "--strict").returncode == 1
    assert run(f"{shards}/[01].tar", "--strict").returncode == 0


def test_a_later_loss_is_named_member_by_member(shards: Path) -> None:
    spec = f"{shards}/[01].tar"
    assert run(spec).returncode == 0
    before = open_manifest(spec, "k").fingerprint
    path = shards / "1.tar"
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[3 * 512 + 5] ^= 1  # of the first image
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # as a disk that loses bits
    assert "no problems" in run(spec).stdout
    done = run(spec, "--again", "--strict")
    assert done.returncode == 1
    assert (
        "shard 1.tar: changed since it was indexed: 1 member has other bytes, the first is "
        "00.png; 1 member cannot be used\n"
        "  00.png: checksum differs from the index at offset 1536\n"
    ) in done.stdout
    assert open_manifest(spec, "k").fingerprint == before


def children(process: int) -> list[int]:
    task = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in task.read_text().split()]


def is_running(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_job_goes_on_where_it_was(tmp_path: Path) -> None:
    write_shard(tmp_path / "00.tar", [ImageFile(f"{i}", "png", b"") for i in range(2000)])
    for number in range(1, 40):
        (tmp_path / f"{number:02d}.tar").write_bytes((tmp_path / "00.tar").read_bytes())
    command = [sys.executable, "-c", EAGER, str(tmp_path), "--processes", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=SCRIPT.parents[1]
    ) as process:
        while process.poll() is None and len(rows(tmp_path)) < 3:
            time.sleep(0.005)
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
    kept = {row["file"]: row for row in rows(tmp_path)}
    assert 3 <= len(kept) < 40
    times = {name: (tmp_path / f"{name}.index").stat().st_mtime_ns for name in kept}
    assert workers
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))
    done = run(tmp_path)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)
    assert "indexed: 40 shards, 80,000 samples" in done.stdout
    after = {row["file"]: row for row in rows(tmp_path)}
    assert len(after) == 40
    assert all(after[name] == row for name, row in kept.items())
    now = {name: (tmp_path / f"{name}.index").stat().st_mtime_ns for name in kept}
    assert now == times  # nothing is scanned twice


def test_two_jobs_at_once(tmp_path: Path) -> None:
    for number in range(30):
        write_shard(tmp_path / f"{number:02d}.tar", [image(n) for n in range(3)])
    command = [sys.executable, "-c", EAGER, str(tmp_path), "--processes", "1"]
    jobs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=SCRIPT.parents[1])
        for _ in range(2)
    ]
    for job in jobs:
        assert job.communicate()[0].startswith("indexed: 30 shards, 90 samples")
        assert job.returncode == 0
    assert [row["file"] for row in rows(tmp_path)] == [f"{n:02d}.tar" for n in range(30)]
    assert not list(tmp_path.glob(".*"))


def test_remote_shards(tmp_path: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    for number in range(2):
        write_shard(folder / f"{number}.tar", [image(n) for n in range(3)])
    cache = str(tmp_path / "cache")
    with flaky_http(folder) as server:
        done = run(f"{server.url}/{{0..2}}.tar", XDG_CACHE_HOME=cache)
        assert done.returncode == 1, done.stderr
        assert "/2.tar does not exist (status 404)" in done.stdout
        assert "indexed: 2 shards, 6 samples, " in done.stdout
        write_shard(folder / "1.tar", [image(n) for n in range(5)])
        done = run(f"{server.url}/{{0..1}}.tar", "--check-images", XDG_CACHE_HOME=cache)
        assert done.returncode == 0, done.stderr
        assert "shard 1.tar was replaced since it was indexed (3 samples before, 5" in done.stderr
        assert "indexed: 2 shards, 8 samples, " in done.stdout
    assert not list(folder.glob("*.index"))


def test_the_last_line_says_what_is_meant() -> None:
    cut, twice = Problem("a", "cut", False), Problem("b", "keys", True)
    for problems, text in (
        ([], "no problems"),
        ([cut, cut], "1 shard has problems; it can be used, less what is named above"),
        ([cut, replace(cut, shard="c")], "2 shards have problems; all can be used, less what is "),
        ([twice], "1 shard has problems; it cannot be used at all"),
        ([twice, replace(twice, shard="c")], "2 shards have problems; they cannot be used at all"),
        ([cut, twice], "2 shards have problems; 1 of them cannot be used at all"),
    ):
        assert summary(problems).startswith(text)


def test_a_shard_of_zeros_is_a_problem(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [image(0)])
    (tmp_path / "b.tar").write_bytes(bytes(102_400))  # as a disk leaves it that lost its power
    for _ in range(2):  # the second time its index is there
        done = run("--strict", tmp_path)
        assert done.returncode == 1
        assert "1 shard holds no samples: b.tar; copy again what should\n" in done.stdout
        assert "1 shard has problems; it can be used, less what is named above" in done.stdout


def test_hidden_files_and_shards_without_images_are_said(tmp_path: Path) -> None:
    for name, members in {
        "mac.tar": ("img/._0.png", "img/0.png", "img/._1.png", "img/1.png"),
        "dots.tar": ("2024.05.01.png", "2024.05.02.png"),
    }.items():
        with tarfile.open(tmp_path / name, "w") as tar:
            for number, member in enumerate(members):
                info, content = tarfile.TarInfo(member), make_png(number, (8, 8))
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    done = run(tmp_path)
    assert done.returncode == 1
    assert (
        "shard dots.tar holds 1 sample and no image: the members of 2024 end in .05.01.png, "
        in (done.stdout)
    )
    assert "indexed: 1 shard, 2 samples, " in done.stdout
    assert "passed over 2 hidden files, which are no part of the data (first img/._0.png in" in (
        done.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["/nowhere/a.tar"], "error: SHARDS: /nowhere/a.tar does not exist; correct the path"),
        (
            ["/", "--processes", "0"],
            "error: argument --processes: 0 is no whole number above 0; ",
        ),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments: list[str], text: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(text)
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_of_images_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name, content in (("a.png", make_png(1)), ("b.png", b"none")):
        (tmp_path / "photos" / name).write_bytes(content)
    done = run("--check-images", tmp_path / "photos")
    assert done.stdout.startswith("photos: 1 image cannot be used\n  b.png: no image format that")
