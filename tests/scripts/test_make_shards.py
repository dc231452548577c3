"""scripts/make_shards.py, as a user starts it."""

import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scripts.make_shards
from data.index.offsets import ShardIndex
from data.index.open import open_manifest
from data.listing.shards import list_shards
from data.reading.reader import ShardReader
from data.settings import RunStopped, UserError
from pretrain.config import PretrainConfig
from pretrain.configuration.load import load
from tests.conftest import MountDisk, make_png, no_root_rights
from tests.launching import Forked

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "make_shards.py"
FORMATS = {"tar.gz": "gztar", "zip": "zip"}  # by the names of shutil
OPTIONS = ("--shard-mb", 0.01, "--val-ratio", 0.2)  # each image is larger: a shard an image


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


Printed = pytest.CaptureFixture[str]


def make(*arguments: object) -> None:
    """Do what a start does, in this process."""
    scripts.make_shards.main([*map(str, arguments)])


def put(folder: Path, *names: str) -> Path:
    """Write small images."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(make_png(number))
    return folder


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
    manifest = open_manifest(f"{out}/*.tar", "data.shards")
    reader = ShardReader(manifest)
    names = (out / "classes.txt").read_text().splitlines()
    for shard in range(60):
        key, members = reader.key(shard, 0), reader.read(shard, 0, {"jpg", "cls"})
        assert (source / f"{key}.jpg").read_bytes() == members["jpg"]
        assert key.startswith(names[int(members["cls"])] + "/")
    num_val = sum(s.num_samples for s in manifest.shards if s.name.startswith("val-"))
    assert 0 < num_val < 30
    for line in (
        f"train: {60 - num_val} images in {60 - num_val} shards (cat ",
        f"val: {num_val} images in {num_val} shards (cat ",
        f"labels: 2 classes, listed in {out}/classes.txt",
        "left out: 1 empty file (cat/empty.png); 1 file that is no image (1 .txt: cat/notes.txt)\n",
        f"python {ROOT}/pretrain/run.py {ROOT}/configs/pretrain/small.yaml "
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


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_killed_start_from_an_archive_is_continued(
    source: Path, made: tuple[Path, str], tmp_path: Path, kind: str
) -> None:
    """And its shards are the folder's, byte for byte."""
    archive = shutil.make_archive(str(tmp_path / "a"), FORMATS[kind], source)
    whole, out = contents(made[0]), tmp_path / "out"
    with (tmp_path / "said").open("w") as said:
        process = Forked(command(archive, out, *OPTIONS), stdout=said, stderr=said)
        while process.returncode is None and not (out / "train-000002.tar").exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert set(contents(out)) < set(whole)
    make(archive, out, *OPTIONS)
    assert contents(out) == whole
    assert list(out.glob(".*")) == []


def test_equal_images_make_equal_shards_whatever_they_are_kept_in(
    source: Path, made: tuple[Path, str], tmp_path: Path, capsys: Printed
) -> None:
    """A table and a dataset; archives are in the test before."""
    whole, classes = contents(made[0]), (made[0] / "classes.txt").read_bytes()
    images = {str(p.relative_to(source)): p for p in sorted(source.rglob("*.jpg"))}
    rows = "".join(f"{name},{name.split('/')[0]}\n" for name in images)
    (tmp_path / "list.csv").write_text("path,label\n" + rows)
    make(tmp_path / "list.csv", tmp_path / "table", *OPTIONS, "--root", source)
    assert contents(tmp_path / "table") == whole
    assert (tmp_path / "table/classes.txt").read_bytes() == classes
    assert "list.csv (csv table, images by path, labels by label) to" in capsys.readouterr().out
    pa: Any = pytest.importorskip("pyarrow", reason="needs the extra parquet")
    pq: Any = pytest.importorskip("pyarrow.parquet")
    cells = [{"bytes": path.read_bytes(), "path": name} for name, path in images.items()]
    labels = [name.split("/")[0] for name in images]
    pq.write_table(pa.table({"image": cells, "label": labels}), tmp_path / "x.parquet")
    make(tmp_path / "x.parquet", tmp_path / "dataset", *OPTIONS)
    assert contents(tmp_path / "dataset") == whole
    assert (tmp_path / "dataset/classes.txt").read_bytes() == classes


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


@pytest.mark.parametrize("value", ["inf", "nan", "-1", "0", "1e-9", "1e300", "x"])
def test_sizes_that_are_none(source: Path, tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match=r"--shard-mb[=:]"):
        make(source, tmp_path / "out", f"--shard-mb={value}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [math.nan, -0.1, 1, math.inf])
def test_ratios_that_are_none(source: Path, tmp_path: Path, value: float) -> None:
    with pytest.raises(UserError, match=r"--val-ratio=.* is not in \[0, 1\); try 0.05"):
        make(source, tmp_path / "out", f"--val-ratio={value}")
    assert not (tmp_path / "out").exists()


def test_places_that_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    for out in (source, source / "shards", source / "cat", tmp_path / "link" / "x"):
        with pytest.raises(UserError, match=r"OUT=.* lies in SOURCE=.*; give a folder beside it"):
            make(source, out)
    for place in ("", "s3://bucket/x"):
        with pytest.raises(
            UserError, match=rf"OUT: '{place}' is no file or folder of this machine"
        ):
            make(source, place)
    assert not (source / "shards").exists()


def test_a_plan_json_of_somebody_else(source: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("[1, 2")
    with pytest.raises(UserError, match="holds other files; give an empty folder"):
        make(source, tmp_path)


def test_ctrl_c_says_how_to_go_on(source: Path, made: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        command(source, out, *OPTIONS), stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not (out / "train-000002.tar").exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert said.endswith(
        "stopped: Ctrl-C; the same command goes on, and keeps the shards that are complete\n"
    )
    assert "Traceback" not in said
    assert list(out.glob(".*")) == []
    make(source, out, *OPTIONS)
    assert contents(out) == contents(made[0])


def test_a_full_disk_and_going_on(
    source: Path, made: tuple[Path, str], mount_disk: MountDisk
) -> None:
    disk = mount_disk("400k")
    with pytest.raises(RunStopped) as stopped:
        make(source, disk / "out", *OPTIONS)
    assert "No space left on device; make room; then the same command goes on" in str(stopped.value)
    assert 0 < len(contents(disk / "out")) < 60
    assert list((disk / "out").glob(".*.tmp")) == []
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
    make(source, disk / "out", *OPTIONS)
    assert contents(disk / "out") == contents(made[0])


@pytest.mark.parametrize(
    ("closed", "out", "text"),
    [
        (
            "source/dog/deep",
            "out",
            r"holds what cannot be read \(dog/deep: Permission denied\); all",
        ),
        ("source/cat/b.png", "out", r"holds what cannot be read \(cat/b.png: Permission denied\);"),
        ("closed", "closed/out", "OUT=closed/out: closed cannot be written; allow it, or give an"),
    ],
)
def test_what_may_not_be_read_or_written(
    tmp_path: Path, closed: str, out: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written."""
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o777)
    put(
        tmp_path,
        "source/cat/a.png",
        "source/cat/b.png",
        "source/dog/c.png",
        "source/dog/deep/d.png",
    )
    (tmp_path / "closed").mkdir()
    (tmp_path / closed).chmod(0)
    with no_root_rights(), pytest.raises(UserError, match=text):
        make("source", out)
    (tmp_path / closed).chmod(0o755)
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.csv", "a.parquet", "a"])
def test_a_file_that_may_not_be_read(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o777)
    Path(name).write_bytes(b"x")
    Path(name).chmod(0)
    with no_root_rights(), pytest.raises(RunStopped, match=rf"{name}: Permission denied; change"):
        make(name, "out")
    assert not Path("out").exists()


def test_a_list_of_classes(tmp_path: Path, capsys: Printed) -> None:
    """Test images that lack classes have the labels of the training images."""
    train = put(tmp_path / "train", "ant/a.png", "bee/b.png", "cat/c.png", "#dog/d.png")
    test = put(tmp_path / "test", "cat/x.png", "#dog/y.png")
    make(train, tmp_path / "out")
    classes = tmp_path / "out/classes.txt"
    assert classes.read_text() == "#dog\nant\nbee\ncat\n"
    make(test, tmp_path / "held", "--classes", classes, "--no-shuffle")
    assert (tmp_path / "held/classes.txt").read_bytes() == classes.read_bytes()
    assert (
        f"labels: 4 classes, listed in {tmp_path}/held/classes.txt\n"
        "without an image: 2 classes of the list (ant, bee)\n"
    ) in capsys.readouterr().out
    reader = ShardReader(open_manifest(tmp_path / "held", "x"))
    labels = {reader.key(0, i): reader.read(0, i, {"cls"})["cls"] for i in range(2)}
    assert labels == {"#dog/y": b"0", "cat/x": b"3"}
    put(test, "cow/z.png")
    with pytest.raises(UserError, match=r"--classes lacks cow, 1 class folder of SOURCE="):
        make(test, tmp_path / "more", "--classes", classes)
    with pytest.raises(UserError, match=r"--classes=.*none.txt"):
        make(test, tmp_path / "more", "--classes", tmp_path / "none.txt")
    (tmp_path / "none.txt").write_text("cat\n\ncow\n")
    with pytest.raises(UserError, match=r"--classes=.*none.txt, line 2 is blank"):
        make(test, tmp_path / "more", "--classes", tmp_path / "none.txt")
    assert not (tmp_path / "more").exists()


def test_what_validation_lacks_is_said(tmp_path: Path, capsys: Printed) -> None:
    names = [f"{name}/{i}.png" for name in ("ant", "bee") for i in range(8)]
    source = put(tmp_path / "source", *names, "cat/1.png")
    make(source, tmp_path / "out", "--val-ratio", 0.5)
    printed = capsys.readouterr().out
    assert "val lacks 1 class (cat): " in printed
    manifest = open_manifest(sorted(map(str, (tmp_path / "out").glob("train-*.tar"))), "x")
    reader = ShardReader(manifest)
    keys = {reader.key(0, i).split("/")[0] for i in range(manifest.num_samples)}
    assert keys == {"ant", "bee", "cat"}
    make(source, tmp_path / "none", "--val-ratio", 0.001)
    printed = capsys.readouterr().out
    assert "val: 0 images in 0 shards\nval is empty: the draw took no image; give" in printed
    assert "data.val_shards=null" in printed


ODD_NAMES = (
    "it's #1",
    "set [v2]",
    "a {b,c} {1..3}",
    "[list]",
    "{map: x}",
    "~home",
    "'quoted' \"twice\"",
    "$HOME `id` \\ *?!",
    "null",
    "1e3",
    "a: b, c=d & e | f; g",
    "- -- -x",
    "caf\u00e9 \u732b",
    "new\nline",
    "back\\slash \\t",
    "${x} %20",
    "a=b",
)


@pytest.mark.parametrize(
    ("shape", "keys"),
    [
        ((8, 9, 3), []),
        ((8, 9), ["data.channels=1"]),
        ((8, 9, 5), ["data.channels=5"]),
        ((8, 9, 7), ["data.channels=7"]),
        ((8, 9, 20), ["data.channels=20"]),
    ],
)
def test_the_printed_command_says_the_channels_of_arrays(
    tmp_path: Path, shape: tuple[int, ...], keys: list[str], capsys: Printed
) -> None:
    (tmp_path / "scans").mkdir()
    np.save(tmp_path / "scans/a.npy", np.zeros(shape, np.uint8))
    make(tmp_path / "scans", tmp_path / "out")
    words = shlex.split(next_command(capsys.readouterr().out))
    assert words[5:-1] == keys
    config = load(PretrainConfig, words[2:])
    assert (config.data.channels or 3) == (shape[2] if len(shape) == 3 else 1)


def next_command(printed: str) -> str:
    start = printed.index("python ")
    return printed[start : printed.index("\n(on GPUs")]


def test_captions_go_with_the_images(tmp_path: Path, capsys: Printed) -> None:
    source = put(tmp_path / "source", *(f"{n}.png" for n in range(5)))
    for number in range(5):
        (source / f"{number}.txt").write_text(f"number {number}\nanother\n")
    make(source, tmp_path / "out", "--captions")
    said = capsys.readouterr().out
    assert "captions: 10 of 5 images\n" in said
    assert "left out: nothing\n" in said
    for name in ("vilt/run.py", "vilt-small.yaml", "vilt.yaml"):
        [path] = [word.rstrip(")") for word in said.split() if word.rstrip(")").endswith(name)]
        assert (ROOT / path).is_file()
    reader = ShardReader(open_manifest(f"{tmp_path}/out", "data.shards"))
    texts = {reader.key(0, n): reader.read(0, n, {"txt"})["txt"] for n in range(5)}
    assert texts == {f"{n}": f"number {n}\nanother\n".encode() for n in range(5)}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_the_printed_command_names_the_shards(
    tmp_path: Path, name: str, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shell and then our command line take it; relative and absolute."""
    source = put(tmp_path / "source", *(f"c/{i}.png" for i in range(8)))
    monkeypatch.chdir(tmp_path)
    for out in (Path(name), tmp_path / name):
        make(source, f"./{out}" if not out.is_absolute() else out, "--val-ratio", 0.4)
        line = next_command(capsys.readouterr().out)
        listed = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True
        )
        words = listed.stdout.decode().split("\0")[:-1]
        assert words[:2] == ["python", str(ROOT / "pretrain/run.py")]
        config = load(PretrainConfig, words[2:])
        shards = list_shards(config.data.shards, "data.shards")
        val_shards = list_shards(config.data.val_shards, "data.val_shards")
        assert shards == [str(tmp_path / name / "train-000000.tar")]
        assert val_shards == [str(tmp_path / name / "val-000000.tar")]


def test_the_printed_command_runs(
    tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch, encoder: list[str]
) -> None:
    source = put(tmp_path / "source", *(f"c/{i}.png" for i in range(8)))
    monkeypatch.chdir(ROOT)
    make(source, tmp_path / "it's #1 [v2]", "--val-ratio", 0.4)
    line = next_command(capsys.readouterr().out)
    small = [
        *encoder,
        "data.workers=0",
        "optim.steps=2",
        "optim.warmup_steps=1",
        "optim.batch_size=4",
        "target.num_words=16",
        "run.threads=1",
    ]
    line += " " + shlex.join([*small, f"run.dir={tmp_path}/run"])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/encoder").exists()
