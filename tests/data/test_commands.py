"""Commands that are run as a user would type them: how they end, and the signals that come."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from data.commands import CommandFailed, name_next, run_command, run_logged
from data.settings import RunStopped
from tests.conftest import signal_does

_WAITING = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: {on_signal})
open(sys.argv[1], "w").close()
time.sleep(60)
"""


def python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", program, *arguments]


def test_the_status_is_returned_and_the_output_kept(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        assert run_command(python("print('here'); raise SystemExit(3)"), file) == 3
    assert (tmp_path / "log").read_text() == "here\n"


def test_what_comes_next_is_said_by_who_was_started_first(tmp_path: Path) -> None:
    program = (
        "from data.commands import name_next; print('done', name_next(('report', 'RUN')), sep='')"
    )
    with (tmp_path / "log").open("wb") as file:
        run_command(python(program), file)
    assert (tmp_path / "log").read_text() == "done\n"
    first, second = name_next(("report", "RUN"), ("export", "RUN BACKBONE")).splitlines()
    assert first.startswith("next: ")
    assert first.endswith(("report.py RUN", "mpp report RUN"))
    assert second.startswith("      ")
    assert second.endswith(" RUN BACKBONE")


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("print('no room'); print(); raise SystemExit(3)", "status 3: no room"),
        ("raise SystemExit(1)", "status 1: it printed nothing"),
        (
            "import os; print('step 7', flush=True); os.kill(os.getpid(), 9)",
            "killed by SIGKILL, as a kernel does that is short of memory; step 7",
        ),
    ],
)
def test_a_failure_is_told_with_the_last_line(tmp_path: Path, program: str, text: str) -> None:
    with pytest.raises(CommandFailed) as failure:
        run_logged(python(program), tmp_path / "log")
    assert str(failure.value) == text


def test_output_is_added_to_the_log(tmp_path: Path) -> None:
    for number in (1, 2):
        run_logged(python(f"print({number})"), tmp_path / "log")
    assert (tmp_path / "log").read_text() == "1\n2\n"


def send(number: int, started: Path, times: int = 1) -> None:
    """Send this process a signal once a command has started, and again."""
    while not started.exists():
        time.sleep(0.01)
    for _ in range(times):
        os.kill(os.getpid(), number)
        time.sleep(0.3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGUSR1, 75)],
)
def test_a_signal_reaches_the_command_as_sigterm(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    def before(*_: object) -> None:
        raise AssertionError("the command's signals are not its starter's")

    program = _WAITING.format(on_signal="[print('committed'), sys.exit()]")
    started = tmp_path / "started"
    threading.Thread(target=send, args=(number, started)).start()
    with signal_does(number, before), (tmp_path / "log").open("wb") as file:
        with pytest.raises(RunStopped) as stopped:
            run_command(python(program, str(started)), file)
        assert signal.getsignal(number) is before
    assert stopped.value.status == status
    text = f"{number.name} came; the same command goes on where this one was"
    assert str(stopped.value) == text
    assert (tmp_path / "log").read_text() == "committed\n"


def test_a_closed_terminal_ends_no_command_behind_nohup() -> None:
    program = "import os; [os.kill(number, 1) for number in (os.getppid(), os.getpid())]"
    with signal_does(signal.SIGHUP, signal.SIG_IGN):
        assert run_command(python(program)) == 0


@pytest.mark.slow
def test_a_second_signal_kills_a_command_that_goes_on(tmp_path: Path) -> None:
    program, started = _WAITING.format(on_signal="None"), tmp_path / "started"
    threading.Thread(target=send, args=(signal.SIGTERM, started, 2)).start()
    begin = time.monotonic()
    with (tmp_path / "log").open("wb") as file, pytest.raises(RunStopped, match="SIGTERM came"):
        run_command(python(program, str(started)), file)
    assert time.monotonic() - begin < 30
