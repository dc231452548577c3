"""A commit that is cut short: by a kill at any moment, a full disk, or a signal to leave."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import BuiltinFunctionType, FrameType
from typing import Any

import pytest
import torch

from pretrain.encoder import load_encoder
from pretrain.records import checkpoint
from pretrain.records.logs import read_records
from pretrain.training.state import Training
from tests.conftest import MountDisk
from tests.faults.test_ranks import figures, stop_after, weights_hash
from tests.launching import SERVER, Ranks, run_ranks
from tests.pretrain.records.test_checkpoint import make, train

pytestmark = pytest.mark.timeout(600)


# ---------------------------------------------------------------- crash_in_commit

_WRITING = {
    *("open", "write", "close", "fsync", "mkdir", "rmdir", "unlink", "symlink", "rename"),
    *("replace", "serialize_file"),
}
_SYSTEM_CALLS = (
    "openat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,symlink,"
    "symlinkat,unlink,unlinkat,rmdir,ftruncate,fallocate,close"
)


def _commit(run: Path, step: int, training: Training, best: int | None = None) -> None:
    state = {"step": step, "best": best and {"step": best}}
    with checkpoint.writing(run, step) as temporary:
        training.save(temporary, state, training.collect())
        checkpoint.commit(temporary, keep=1)


def _kill_at(number: int) -> Callable[[FrameType, str, Any], None]:
    """Make a profiler that kills its process before the call of that number; 0 counts only."""
    count = 0

    def profile(_: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        if event == "c_call" and isinstance(argument, BuiltinFunctionType):
            count += argument.__name__ in _WRITING
            if count == number and argument.__name__ in _WRITING:
                os.kill(os.getpid(), signal.SIGKILL)

    return profile


def _state_of(run: Path, expected: dict[int, Training]) -> int:
    """Check that the newest checkpoint is whole, and return its step."""
    newest = checkpoint.recover_newest(run)
    assert newest is not None
    step = int(newest.name.removeprefix("step-"))
    restored = make()
    train(restored, 50, 51)
    restored.load(newest, checkpoint.read_state(newest))
    for name, value in expected[step].model.state_dict().items():
        assert torch.equal(restored.model.state_dict()[name], value)
    load_encoder(run)  # RUN/encoder is one that timm loads, whichever it is
    assert [p.name for p in (run / "checkpoints").iterdir() if p.name.startswith(".")] == []
    return step


def _best_of(run: Path, step: int, best: int | None) -> None:
    """Check what a run with a newest checkpoint hands on, before and after a resume says it."""
    newest = checkpoint.folder_of(run, step)
    expected = step if best is None or step == 1 else best
    assert checkpoint.handed_on(newest) == checkpoint.folder_of(run, expected)
    assert checkpoint.is_intact(checkpoint.handed_on(newest))
    checkpoint.publish(newest)
    assert (run / "encoder").resolve().parent == checkpoint.folder_of(run, expected).resolve()


def _crash_everywhere(folder: Path, answer: Path, stride: int, best: int | None) -> None:
    """Die before each `stride`-th call of a commit that writes; write down what was then found."""
    torch.set_num_threads(1)
    old, new = make(), make()
    train(old, 0, 1)
    train(new, 0, 2)
    _commit(folder / "first", 1, old, best and 1)
    found: list[int] = []
    while True:
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(folder / "first", run, symlinks=True)
        child = os.fork()
        if child == 0:
            sys.setprofile(_kill_at(len(found) * stride + 1))
            _commit(run, 2, new, best)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found.append(_state_of(run, {1: old, 2: new}))
        _best_of(run, found[-1], best)
        if os.WIFEXITED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    answer.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("stride", "best"),
    [
        *((5, best) for best in (1, 2)),
        *(pytest.param(1, best, marks=pytest.mark.faults) for best in (None, 1, 2)),
    ],
)
def test_crash_in_commit(tmp_path: Path, stride: int, best: int | None) -> None:
    """Whatever call of a commit is the last, the newest whole checkpoint loads.

    So does the best one that it names, be it older or the same.
    """
    answer = tmp_path / "found.json"
    process = SERVER.Process(target=_crash_everywhere, args=(tmp_path, answer, stride, best))
    process.start()
    process.join()
    assert process.exitcode == 0
    found: list[int] = json.loads(answer.read_text())
    print(f"deaths in a commit: {len(found) - 1}")
    switch = found.index(2)
    # there are calls before the rename, and after it
    assert 20 // stride < switch < len(found) - 10 // stride
    assert found == [1] * switch + [2] * (len(found) - switch)


def _wait_for_tracer_then_commit(run: Path) -> None:
    torch.set_num_threads(1)
    new = make()
    train(new, 0, 2)
    os.kill(os.getpid(), signal.SIGSTOP)
    _commit(run, 2, new)


@pytest.mark.faults
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.timeout(1800)
def test_crash_at_each_system_call_of_a_commit(tmp_path: Path) -> None:
    """The kernel kills the process at the n-th call of each kind, also within a file's writing."""
    old, new = make(), make()
    train(old, 0, 1)
    train(new, 0, 2)
    _commit(tmp_path / "first", 1, old)
    deaths = 0
    for call in _SYSTEM_CALLS.split(","):
        for number in range(1, 200):
            run = tmp_path / "run"
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(tmp_path / "first", run, symlinks=True)
            process = SERVER.Process(target=_wait_for_tracer_then_commit, args=(run,))
            process.start()
            assert process.pid is not None
            while _state(process.pid) != "T":
                time.sleep(0.002)
            inject = f"--inject={call}:signal=SIGKILL:when={number}"
            command = ["strace", "-f", "-qq", "-o", "/dev/null", f"--trace={call}", inject]
            tracer = subprocess.Popen([*command, "-p", str(process.pid)])
            while _tracer_of(process.pid) == 0:
                assert tracer.poll() is None
                time.sleep(0.002)
            os.kill(process.pid, signal.SIGCONT)
            process.join()
            tracer.wait()
            assert _state_of(run, {1: old, 2: new}) == 2 or process.exitcode == -signal.SIGKILL
            if process.exitcode == 0:
                break
            deaths += 1
    print(f"deaths at system calls of a commit: {deaths}")
    assert deaths > 100


def _status_line(pid: int, name: str) -> str:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(line for line in text.splitlines() if line.startswith(f"{name}:")).split()[1]


def _state(pid: int) -> str:
    return _status_line(pid, "State").upper()


def _tracer_of(pid: int) -> int:
    return int(_status_line(pid, "TracerPid"))


# ---------------------------------------------------------------- disk_full


def checkpoint_size(run: Path) -> int:
    """Add up what the newest checkpoint takes on a disk, in whole pages."""
    files = [path for path in run.rglob("step-00000020/**/*") if path.is_file()]
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in files)


@pytest.fixture
def small_disk(mount_disk: MountDisk, whole: Path) -> Path:
    """Mount a disk that holds one checkpoint and not two."""
    return mount_disk(str(int(1.7 * checkpoint_size(whole))))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """Run 20 steps on two ranks, without a fault."""
    folder = tmp_path_factory.mktemp("whole")
    run_ranks([*tiny, *FEW, f"run.dir={folder}/run"], 2, folder / "logs")
    return folder / "run"


FEW = ["optim.steps=20", "run.checkpoint_every=4", "run.keep_checkpoints=1", "run.eval_every=0"]


def test_disk_full(tmp_path: Path, tiny: list[str], whole: Path, small_disk: Path) -> None:
    """No room for a second checkpoint: the first is kept, the room given back, all ranks agree."""
    arguments = [*tiny, *FEW, f"run.dir={small_disk}/run"]
    with Ranks(arguments, 2, tmp_path / "logs") as ranks:
        assert ranks.wait() == [1, 1]
        output = ranks.output
    run = small_disk / "run"
    assert output.count("no checkpoint at step 8: ") == 1
    assert "step 8: No space left on device; make room; " in output
    assert f"{run}/checkpoints/step-00000004 is intact; trying again at the next one" in output
    assert output.count("stopped: no checkpoint at step 20: ") == 1
    assert "Traceback" not in output
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]
    assert shutil.disk_usage(small_disk).free > 0.5 * checkpoint_size(whole)
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert "from step 4 of 20" in run_ranks(arguments, 2, tmp_path / "logs")
    assert figures(run) == figures(whole)
    assert weights_hash(run, 20) == weights_hash(whole, 20)


def _limit_files_of_rank_1() -> None:
    if os.environ["RANK"] == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, resource.RLIM_INFINITY))


def test_disk_full_on_one_rank(tmp_path: Path, tiny: list[str], whole: Path) -> None:
    """One rank cannot write its trace: no rank commits, and none waits for another."""
    arguments = [*tiny, *FEW, f"run.dir={tmp_path}/run"]
    with Ranks(arguments, 2, tmp_path / "logs", prepare=_limit_files_of_rank_1) as ranks:
        assert ranks.wait() == [1, 1]
        assert "File too large" in ranks.output
        assert "Traceback" not in ranks.output
    kept = [path.name for path in (tmp_path / "run/checkpoints").iterdir()]
    assert len(kept) == 1
    assert kept[0] < "step-00000020"
    run_ranks(arguments, 2, tmp_path / "logs")
    assert figures(tmp_path / "run") == figures(whole)
    for rank in (0, 1):
        name = f"trace/rank-{rank}.jsonl"
        assert read_records(tmp_path / "run" / name) == read_records(whole / name)


# ---------------------------------------------------------------- sigterm


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_sigterm(tmp_path: Path, tiny: list[str], number: signal.Signals) -> None:
    """All processes of all ranks are told, loaders too, again and again: it commits, and leaves."""
    arguments = [*tiny, "optim.steps=400", "run.checkpoint_every=0", "data.workers=1"]
    arguments += ["run.requeue_status=99", f"run.dir={tmp_path}/run"]
    with Ranks(arguments, 2, tmp_path / "logs") as ranks:

        def tell_all(_: Ranks) -> None:
            while ranks.is_alive:
                for pid in [pid for rank in ranks.members() for pid in rank]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                time.sleep(0.005)

        stop_after(ranks, tmp_path / "run", 7, tell_all)
        assert ranks.wait() == [99, 99], ranks.output
        output = ranks.output
    assert output.count(f"stopped: {number.name} came; step ") == 1
    assert "Traceback" not in output
    newest = checkpoint.recover_newest(tmp_path / "run")
    assert newest is not None
    done = int(newest.name.removeprefix("step-"))
    assert f"step {done} is committed, and the same command resumes from it" in output
    assert 7 <= done < 400
    for rank in (0, 1):  # nothing was done, or written, after it
        assert read_records(tmp_path / f"run/trace/rank-{rank}.jsonl")[-1]["step"] == done
