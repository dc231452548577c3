"""Processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SLOW = """
import time
from pathlib import Path

Path("importing").touch()
time.sleep(0.5)
"""

ASK = """
import os
from data.processes import begin

begin()  # as entry points do: the server, which imports this too, ends with its parent

from data.settings import run_entry_point
from pretrain.machine.apart import Apart


def main(arguments):
    with Apart("it", os.getpid, preload=["__main__", "slow"]) as process:
        process.wait_until_made()


if __name__ == "__main__":
    run_entry_point(main)
"""


@pytest.mark.slow
def test_ctrl_c_while_the_server_imports_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "ask.py").write_text(ASK)
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[3])])
    process = subprocess.Popen(
        [sys.executable, "ask.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        text=True,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while not (tmp_path / "importing").exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "stopped: Ctrl-C (SIGINT) came\n"
