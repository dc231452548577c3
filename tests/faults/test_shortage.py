"""What the system does not give is one line that names it, status 1, and no process is left."""

import ctypes
import resource
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from data.processes import shortage
from data.shards import ImageFile, write_shard
from tests.conftest import make_png
from tests.launching import Family, Prepare, Ranks

pytestmark = pytest.mark.timeout(600)
_CLONE_NEWNS = 0x20000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an image a shard."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(48):
        write_shard(folder / f"{number:03d}.tar", [ImageFile("a", "png", make_png(number), 0)])
    return folder


def _allow_files(soft: int, hard: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _little_shared_memory() -> None:
    """Mount what docker gives by default, for this process and its children alone."""
    assert ctypes.CDLL(None).unshare(_CLONE_NEWNS) == 0
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/dev/shm"], check=True)


def run(arguments: list[str], folder: Path, prepare: Prepare) -> tuple[int | None, str]:
    """Run to the end; nothing is left."""
    with Ranks(arguments, 1, folder, prepare=prepare) as ranks:
        [process] = ranks.processes
        family = Family(int(process.pid or 0))
        deadline = time.monotonic() + 120
        while process.is_alive() and time.monotonic() < deadline:
            family.look()
            time.sleep(0.05)
        assert not process.is_alive(), ranks.output
        assert family.alive() == []
        return process.exitcode, ranks.output


@pytest.mark.parametrize(("soft", "hard"), [(20, 4096), (48, 48)])
def test_as_many_shards_are_open_as_the_limit_allows(
    tmp_path: Path, tiny: list[str], many: Path, soft: int, hard: int
) -> None:
    more = [f"data.shards={many}/*.tar", "data.workers=1", "run.eval_every=0", "optim.steps=12"]
    prepare = partial(_allow_files, soft, hard)
    status, output = run([*tiny, *more, f"run.dir={tmp_path}/run"], tmp_path, prepare)
    assert status == 0, output


def test_too_few_files(tmp_path: Path, tiny: list[str], many: Path) -> None:
    more = [f"data.shards={many}/*.tar", "data.workers=1", "optim.steps=12"]
    prepare = partial(_allow_files, 22, 22)
    status, output = run([*tiny, *more, f"run.dir={tmp_path}/run"], tmp_path, prepare)
    assert status == 1, output
    assert output.count("stopped: ") == 1
    assert "`ulimit -n" in output
    assert "data.workers=0" in output


def _may_mount() -> bool:
    return shutil.which("unshare") is not None and not subprocess.call(["unshare", "-m", "true"])


@pytest.mark.skipif(not _may_mount(), reason="it takes the right to mount")
def test_little_shared_memory(tmp_path: Path, tiny: list[str]) -> None:
    write_shard(
        tmp_path / "a.tar", (ImageFile(f"{n:03d}", "png", make_png(n), 0) for n in range(400))
    )
    own = ["data.workers=2", "data.image_size=224", "encoder.patch_size=16", "optim.batch_size=400"]
    arguments = [*tiny, *own, f"data.shards={tmp_path}/a.tar", f"run.dir={tmp_path}/run"]
    status, output = run(arguments, tmp_path, _little_shared_memory)
    assert status == 1, output
    *_, line = output.splitlines()
    assert line.startswith("stopped: the shared memory in /dev/shm is full (64 MiB)")
    assert "--shm-size" in line
    assert "data.workers=0" in line
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "memory is short",
        ),
        (
            RuntimeError(
                "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
                "dataloader's workers are out of shared memory."
            ),
            "--shm-size",
        ),
        (
            RuntimeError(
                "unable to open shared memory object </torch_1>: Too many open files (24)"
            ),
            "ulimit -n",
        ),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (OSError(24, "Too many open files"), "ulimit -n"),
    ],
)
def test_torch_says_it_in_many_words(error: Exception, words: str) -> None:
    assert words in str(shortage(error))


def test_other_errors_are_not_the_systems() -> None:
    assert shortage(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert shortage(FileNotFoundError(2, "No such file or directory", "a.tar")) is None
