"""Ctrl-C, a launcher that is gone, an output that nobody reads: how a process leaves."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import pretrain.run
from data.settings import UserError
from pretrain.records import checkpoint
from pretrain.records.logs import read_records
from tests.faults.test_ranks import figures, stop_after
from tests.launching import ROOT, Forked, Ranks, run_ranks
from tests.test_layout import FILES, name_of

pytestmark = pytest.mark.timeout(600)
ENTRY_POINTS = [path for path in FILES if "run_entry_point(main)" in path.read_text()]


def press(ranks: Ranks) -> None:
    """Send SIGINT to all processes of the group, as a terminal does."""
    os.killpg(int(ranks.processes[0].pid or 0), signal.SIGINT)


# ---------------------------------------------------------------- Ctrl-C


def test_ctrl_c_commits_and_the_same_command_resumes(tmp_path: Path, tiny: list[str]) -> None:
    more = [*tiny, "run.checkpoint_every=0", "run.checkpoint_minutes=0", "data.workers=2"]
    run_ranks([*more, f"run.dir={tmp_path}/whole"], 1, tmp_path / "logs")
    run = tmp_path / "cut"
    with Ranks([*more, f"run.dir={run}"], 1, tmp_path / "logs") as ranks:
        stop_after(ranks, run, 7, press)
        assert ranks.wait() == [130], ranks.output
        output = ranks.output
    newest = checkpoint.recover_newest(run)
    assert newest is not None
    done = int(newest.name.removeprefix("step-"))
    assert "SIGINT came: the run finishes its step, commits and leaves; a second Ctrl-C" in output
    text = f"stopped: SIGINT came; step {done} is committed, and the same command resumes from it"
    assert text in output
    assert "Traceback" not in output
    run_ranks([*more, f"run.dir={run}"], 1, tmp_path / "logs")
    assert figures(run) == figures(tmp_path / "whole")


def _pause_in_a_step() -> None:
    from pretrain.training.trainer import Trainer

    step = Trainer._step

    def slow(self: Trainer, *arguments: object) -> object:
        taken = step(self, *arguments)  # pyright: ignore[reportArgumentType]
        time.sleep(60)
        return taken

    Trainer._step = slow  # pyright: ignore[reportAttributeAccessIssue]


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path, tiny: list[str]) -> None:
    arguments = [*tiny, "data.workers=1", f"run.dir={tmp_path}/run"]
    with Ranks(arguments, 1, tmp_path / "logs", prepare=_pause_in_a_step) as ranks:
        wait_until(lambda: (tmp_path / "run/metrics.jsonl").exists())
        time.sleep(1)
        press(ranks)
        wait_until(lambda: "a second Ctrl-C" in ranks.output)
        begin = time.monotonic()
        press(ranks)
        assert ranks.wait() == [130]
        assert time.monotonic() - begin < 5
    assert "Traceback" not in ranks.output


def test_ctrl_c_before_the_first_step_is_a_line(tmp_path: Path, tiny: list[str]) -> None:
    """The interpreter is new: most of a start are imports."""
    command = [sys.executable, str(ROOT / "pretrain/run.py"), *tiny, f"run.dir={tmp_path}/run"]
    process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True)
    time.sleep(1.5)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "stopped: Ctrl-C (SIGINT) came\n")
    assert process.returncode == 130


def wait_until(is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---------------------------------------------------------------- a start after an end


def test_a_log_without_a_checkpoint_is_told(
    tmp_path: Path, tiny: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    arguments = [*tiny, "optim.steps=4", f"run.dir={folder}"]
    pretrain.run.main(arguments)
    assert "begins again" not in caplog.text
    shutil.rmtree(folder / "checkpoints")
    (folder / "encoder").unlink()
    with caplog.at_level("WARNING"):
        pretrain.run.main(arguments)
    text = f"{folder} has a log up to step 4, but no whole checkpoint: the run begins again from"
    assert text in caplog.text
    assert [record["step"] for record in read_records(folder / "metrics.jsonl")] == [1, 2, 3, 4]


def test_more_steps_are_refused_with_what_can_be_done(tmp_path: Path, tiny: list[str]) -> None:
    run = tmp_path / "run"
    pretrain.run.main([*tiny, "optim.steps=4", f"run.dir={run}"])
    with pytest.raises(UserError, match=r"optim\.steps was 4, now 8") as caught:
        pretrain.run.main([*tiny, "optim.steps=8", f"run.dir={run}"])
    text = f"cannot be made longer: encoder.init={run} run.dir=NEW begins another from its weights"
    assert text in str(caught.value)


# ---------------------------------------------------------------- launchers

LAUNCHER = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", sys.argv[2]]).pid, flush=True)
input()
"""
STARTED = """
import time
from data.processes import watch_launcher
watch_launcher()
print("watches", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(("name", "is_launcher"), [("accelerate", True), ("my_job.py", False)])
@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_a_launcher_is_noticed(
    tmp_path: Path, name: str, is_launcher: bool, way: signal.Signals
) -> None:
    """Of a shell's or a script's it is not: a run goes on behind `nohup`."""
    (tmp_path / name).write_text(LAUNCHER)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / name), "launch", STARTED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert process.stdout.readline() == "watches\n"
        process.send_signal(way)
        process.wait()
        deadline = time.monotonic() + (10 if is_launcher else 2)
        while is_running(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert is_running(child) != is_launcher
        if not is_launcher:
            os.kill(child, signal.SIGKILL)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# ---------------------------------------------------------------- an output that nobody reads


@pytest.mark.parametrize("path", ENTRY_POINTS, ids=name_of)
def test_help_that_nobody_reads_ends_quietly(tmp_path: Path, path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as out, (tmp_path / "err").open("w+") as err:  # noqa: PTH123
        process = Forked([sys.executable, str(path), "--help"], stdout=out, stderr=err)
        assert process.wait() in (0, 141)  # argparse itself may have met it, and passes over it
        err.seek(0)
        assert err.read() == ""
