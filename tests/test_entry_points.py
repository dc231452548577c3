"""Entry points answer a help or a mistake at once, before torch and all that takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.encoder import load_encoder
from tests.launching import ROOT
from tests.test_layout import FILES, name_of

SCRIPTS = [path for path in FILES if "run_entry_point(main)" in path.read_text()]
COMMANDS = [*([str(path)] for path in SCRIPTS), ["-m", "pretrain"], ["-m", "finetune"]]
SLOW = {"torch", "torchvision", "timm", "accelerate", "transformers", "matplotlib", "sklearn"}


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with arguments; stderr has a line for each import, and then what was said."""
    command = [sys.executable, "-X", "importtime", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if not line.startswith("import time:")]


def name(command: list[str]) -> str:
    return " ".join(command) if command[0] == "-m" else name_of(Path(command[0]))


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_help_is_there_at_once(command: list[str]) -> None:
    done = start(*command, "--help")
    assert (done.returncode, told(done)) == (0, [])
    assert done.stdout.startswith("usage: ")
    assert "data" in imported(done)  # so that the lines are what they are taken for
    assert imported(done) & SLOW == set()


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_a_mistake_is_told_at_once(command: list[str]) -> None:
    mistake = "--no-such-option" if "scripts" in command[0] else "optim.no_such_key=1"
    done = start(*command, mistake)
    [line] = told(done)
    assert done.returncode == 2
    assert line.startswith("error: ")
    assert imported(done) & SLOW == set()


@pytest.mark.parametrize("package", ["pretrain", "finetune"])
def test_the_help_of_a_package_names_its_command(package: str) -> None:
    script, module = (
        start(*way, "--help").stdout for way in ([f"{package}/run.py"], ["-m", package])
    )
    assert module.startswith(f"usage: python -m {package} [CONFIG.yaml ...]")
    assert module.splitlines()[1:] == script.splitlines()[1:]


def test_accelerate_launches_a_package(tmp_path: Path, tiny: list[str]) -> None:
    launcher = [str(Path(sys.executable).with_name("accelerate")), "launch", "-q", "-m", "pretrain"]
    short = ["optim.steps=1", "optim.warmup_steps=0", f"run.dir={tmp_path}/run"]
    done = subprocess.run(
        [*launcher, *tiny, *short], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    finished = f"finished: 1 step; the encoder is in {tmp_path}/run/encoder\nnext: "
    assert finished in done.stdout
    assert load_encoder(tmp_path / "run").embed_dim == 32
