"""Processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.machine.apart import Apart, in_fresh_process

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


def _sleep(_: object) -> None:
    time.sleep(600)


def _fail(_: object) -> None:
    raise TimeoutError("a server's own")


def test_what_has_no_answer_in_its_time_is_killed() -> None:
    begin = time.monotonic()
    with Apart("one", int, 3) as one, Apart("other", int, 4) as other:
        number = one.call(_where)
        with pytest.raises(TimeoutError, match="one had no answer in its time, and was ended"):
            one.call(_sleep, end=time.monotonic() + 0.2)
        assert other.call(abs, end=time.monotonic() + 60) == 4
        with pytest.raises(RuntimeError, match="one ended without an answer"):
            one.call(abs)
        while Path(f"/proc/{number}").exists():
            time.sleep(0.02)
    with pytest.raises(TimeoutError, match="_sleep had no answer"):
        in_fresh_process(_sleep, None, end=time.monotonic() + 1.0)
    assert time.monotonic() - begin < 300


def _where(_: object) -> int:
    return os.getpid()


def test_a_timeout_of_the_things_own_kills_nothing() -> None:
    with Apart("one", int, 3) as one:
        with pytest.raises(TimeoutError, match="a server's own"):
            one.call(_fail, end=time.monotonic() + 60)
        assert one.call(abs) == 3
