"""Where it runs: Linux; a line on macOS; on Windows a line and not a traceback."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.processes import platform_note
from pretrain.machine import free_memory, malloc
from pretrain.training.config import RunConfig
from pretrain.training.launch import start
from tests.launching import ROOT

WINDOWS = """
import importlib.metadata, runpy, shutil, subprocess, sys  # what Windows has, too
sys.platform = "win32"
for name in ("fcntl", "resource", "select"):
    sys.modules[name] = None
sys.argv = ["program"]
sys.path.insert(0, {folder!r})
runpy.run_path({path!r}, run_name="__main__")
"""


@pytest.mark.parametrize("name", ["pretrain/run.py", "pretrain/mpp.py", "scripts/make_shards.py"])
def test_windows_is_told_in_a_line(name: str) -> None:
    path = ROOT / name
    code = WINDOWS.format(folder=str(path.parent), path=str(path))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: this project runs on Linux, and on Windows within WSL")


def _no_library(_: object) -> object:
    return object()


def test_linux_has_no_note_and_macos_one_at_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """What Linux alone has is left out there: /proc, the cores of a process, glibc's heap."""
    caplog.set_level(logging.INFO)
    assert platform_note() is None
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(free_memory, "_PROC", tmp_path / "no-proc")
    monkeypatch.setattr(malloc.ctypes, "CDLL", _no_library)
    accelerator = start(RunConfig())
    assert [m.split(":")[0] for m in caplog.messages] == ["darwin"]
    assert free_memory.free_bytes(accelerator.device) is None
    assert not malloc.keep_heap()
