"""`mpp` starts each entry point under its short name, and a process on each of several GPUs."""

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from data.commands import COMMANDS, how_to_type
from pretrain.encoder import load_encoder
from pretrain.machine.gpus import count_gpus, is_one_of_many, launch_command
from tests.launching import ROOT, Forked, run_forked

MPP = [sys.executable, str(ROOT / "pretrain/mpp.py")]


def mpp(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it from another folder, as a user does."""
    return subprocess.run(
        [*MPP, *arguments],
        cwd="/",
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_alone_it_shows_the_way_in_few_lines() -> None:
    done = mpp()
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) <= 14
    assert set(re.findall(r"mpp ([a-z]+)", done.stdout)) <= set(COMMANDS)
    assert f"all commands: {' '.join(COMMANDS)}\n" in done.stdout
    assert mpp("--help").stdout == done.stdout


def test_it_says_which_version_and_checkout_it_is() -> None:
    done = mpp("--version")
    assert re.fullmatch(rf"mpp \S+, Python \S+, torch \S+, {ROOT}\n", done.stdout)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_command_is_called_by_its_short_name(name: str) -> None:
    done = mpp(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: mpp {name} [")


def test_a_slip_names_the_nearest_command() -> None:
    done = mpp("pretran", "run.dir=x")
    assert done.returncode == 2
    assert done.stderr == "error: mpp pretran is no command; did you mean mpp pretrain?\n"
    assert "there are recommend, shards" in mpp("xyz").stderr


def test_the_installed_program_is_this_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"mpp": "pretrain.mpp:main"}
    assert "def main() -> None:" in (ROOT / "pretrain/mpp.py").read_text()


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_run_through_it_commits_and_leaves_as_any_other(tmp_path: Path, tiny: list[str]) -> None:
    command = [*MPP, "pretrain", *tiny, f"run.dir={tmp_path}/run", "optim.steps=100000"]
    path, deadline = tmp_path / "log", time.monotonic() + 40
    with path.open("w+") as log:
        run = Forked(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while not re.search(r"^step +3/100000 ", path.read_text(), re.MULTILINE):
                assert run.returncode is None, path.read_text()
                assert time.monotonic() < deadline, path.read_text()
                time.sleep(0.02)
            run.send_signal(signal.SIGTERM)
            assert run.wait(timeout=15) == 75, path.read_text()
        finally:
            run.kill()
    assert load_encoder(tmp_path / "run").embed_dim == 32
    done = run_forked([*MPP, "pretrain", "optim.stps=3"])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_command_is_named_as_it_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "mpp"
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(ROOT)
    assert how_to_type("probe") == "python finetune/probe.py"  # another program of that name
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert how_to_type("probe") == "mpp probe"
    program.unlink()
    monkeypatch.chdir(tmp_path)
    assert how_to_type("probe") == f"python {ROOT}/finetune/probe.py"
    assert import_module("finetune.probe").main


# ---------------------------------------------------------------- several GPUs


def have_gpus(folder: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an `nvidia-smi` in front of all programs that lists GPUs."""
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f'echo "{line}"\n' for line in lines))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


THREE = [f"GPU {number}: Some name (UUID: GPU-{number}{number})" for number in range(3)]
PARTS = ["GPU 0: Some name (UUID: GPU-0)", "  MIG 1g.5gb Device 0: (UUID: MIG-0)", THREE[1]]


@pytest.mark.parametrize(
    ("visible", "number"),
    [
        (None, 3),
        ("0,2", 2),
        ("0,1,2", 3),
        ("0", 1),
        ("", 0),
        ("-1", 0),
        ("1,-1,2", 1),
        ("0,7,1", 1),
        ("GPU-00,GPU-11", 2),
    ],
)
def test_gpus_are_counted_as_torch_sees_them(
    visible: str | None, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_gpus(tmp_path, THREE, monkeypatch)
    own = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert count_gpus(own) == number
    assert count_gpus(own | {"ACCELERATE_USE_CPU": "true"}) == 0


def test_parts_of_a_gpu_are_no_more_than_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_gpus(tmp_path, PARTS, monkeypatch)
    assert count_gpus({}) == 1


def test_without_the_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert count_gpus({}) == count_gpus({"CUDA_VISIBLE_DEVICES": "0,1"}) == 0


def test_what_a_launcher_started_starts_no_other() -> None:
    assert not is_one_of_many({"PATH": "/bin"})
    for name in ("RANK", "SLURM_PROCID", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        assert is_one_of_many({name: "0"})


def test_accelerate_takes_the_command_for_a_process_each_gpu() -> None:
    config, script = ROOT / "configs/accelerate/ddp.yaml", ROOT / "pretrain/run.py"
    command = launch_command(3, config, script, ["a b=c", "--x"])
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    parsed = _validate_launch_command(launch_command_parser().parse_args(command[3:]))[0]
    assert (parsed.num_processes, parsed.multi_gpu, parsed.quiet) == (3, True, True)
    assert parsed.main_process_port == 0
    assert parsed.training_script == str(script)
    assert parsed.training_script_args == ["a b=c", "--x"]


def test_a_mistake_is_told_before_any_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_gpus(tmp_path, THREE, monkeypatch)
    done = mpp("pretrain", "optim.stps=3")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.faults
def test_two_gpus_get_a_process_each(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes on the CPU: the driver's list is made up, and torch finds no GPU."""
    have_gpus(tmp_path, THREE[:2], monkeypatch)
    done = mpp("pretrain", *tiny, f"run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert "2 GPUs: starting a process on each" in done.stderr
    assert "start: 2 processes, each with CPU" in done.stderr
