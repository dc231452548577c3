"""scripts/make_shards.py, as a user starts it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.index.offsets import ShardIndex
from data.index.opening import open_manifest
from data.reader import ShardReader

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "make_shards.py"
OPTIONS = ("--shard-mb", 0.01, "--val-ratio", 0.2)  # each image is larger: a shard an image


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd="/", check=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 files of 20 kB in 2 classes, and 2 that are left out."""
    folder = tmp_path_factory.mktemp("data") / "source"
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(30):
            (folder / name / f"{i:02d}.jpg").write_bytes(bytes([label, i]) * 10_000)
    (folder / "cat" / "empty.png").touch()
    (folder / "cat" / "notes.txt").write_text("x")
    return folder


@pytest.fixture(scope="module")
def made(source: Path) -> tuple[Path, str]:
    """What one start made, and what it printed. Do not change it."""
    out = source.parent / "out"
    done = run(source, out, *OPTIONS)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture
def out(made: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of what one start made."""
    return shutil.copytree(made[0], tmp_path / "out")


def contents(out: Path) -> dict[str, bytes]:
    """The shards' bytes by name."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def test_labelled_shards_from_a_folder_a_class(source: Path, made: tuple[Path, str]) -> None:
    out, printed = made
    manifest = open_manifest(out, "data.shards")
    reader = ShardReader(manifest)
    names = (out / "classes.txt").read_text().splitlines()
    for shard in range(60):
        key, members = reader.key(shard, 0), reader.read(shard, 0, {"jpg", "cls"})
        assert (source / f"{key}.jpg").read_bytes() == members["jpg"]
        assert key.startswith(names[int(members["cls"])] + "/")
    num_val = sum(s.num_samples for s in manifest.shards if s.name.startswith("val-"))
    assert 0 < num_val < 30
    for line in (
        f"train: {60 - num_val} images in {60 - num_val} shards\n",
        f"val: {num_val} images in {num_val} shards\n",
        f"labels: 2 classes, listed in {out}/classes.txt",
        "left out: 1 empty file (cat/empty.png); 1 file that is no image (1 .txt: cat/notes.txt)\n",
        f"python {ROOT}/pretrain/run.py {ROOT}/configs/pretrain/demo.yaml "
        f"'data.shards={out}/train-*.tar' 'data.val_shards={out}/val-*.tar' run.dir=runs/mine\n",
    ):
        assert line in printed
    for shard in manifest.shards:
        assert len(ShardIndex.load(out / f"{shard.name}.index")) == shard.num_samples


def test_what_is_complete_is_kept(source: Path, out: Path) -> None:
    before = contents(out)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    (out / "train-000001.tar").unlink()
    done = run(source, out, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "keeping 59 complete shards" in done.stdout
    assert contents(out) == before
    now = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert {name for name in now if now[name] != times[name]} == {"train-000001.tar"}


def test_a_killed_start_is_continued(source: Path, made: tuple[Path, str], tmp_path: Path) -> None:
    whole, out = contents(made[0]), tmp_path / "out"
    with subprocess.Popen(command(source, out, *OPTIONS)) as process:
        while process.poll() is None and not (out / "train-000002.tar").exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert set(contents(out)) < set(whole)
    (out / ".train-000009.tar.00000000.tmp").touch()  # what a kill in mid-shard leaves
    done = run(source, out, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert contents(out) == whole
    assert list(out.glob(".*")) == []


def test_another_plan_is_refused_or_overwrites(source: Path, out: Path) -> None:
    before = contents(out)
    refused = run(source, out)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"error: OUT={out} holds shards of another source or other options; "
        "give an empty folder or --overwrite\n"
    )
    assert contents(out) == before
    (out / "mine.txt").write_text("kept")
    done = run(source, out, "--overwrite", "--unlabelled", "--no-shuffle")
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(out)) == [  # noqa: PTH208
        "manifest.jsonl", "mine.txt", "plan.json", "train-000000.tar", "train-000000.tar.index",
    ]  # fmt: skip
    assert "labels: none (--unlabelled)" in done.stdout
    reader = ShardReader(open_manifest(out, "data.shards"))
    assert [reader.key(0, i) for i in (0, 59)] == ["cat/00", "dog/29"]
    assert set(reader.read(0, 0, {"jpg", "cls"})) == {"jpg"}


def test_mistakes_are_one_line_and_status_2(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "x").touch()
    for arguments, text in (
        ((tmp_path / "none", tmp_path / "out"), "SOURCE="),
        ((source, other), f"OUT={other} holds other files; give an empty folder or --overwrite"),
        ((source, other / "x"), "x is a file; give another folder"),
    ):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert text in done.stderr
        assert len(done.stderr.splitlines()) == 1
