"""The commands: their names, how a user types one, and running one to its end."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

from data.processes import INTERRUPTED, ask_to_leave_with_parent, heard_requests
from data.settings import RunStopped

_ASKED_TO_LEAVE = 75  # a run's status then, `run.requeue_status`
_WITHIN = "MPP_WITHIN"  # set for what `run_command` starts

CHECKOUT = Path(__file__).resolve().parents[1]
COMMANDS = {  # of `mpp`: the entry point that each starts
    "recommend": "scripts/recommend.py",
    "shards": "scripts/make_shards.py",
    "index": "scripts/index_shards.py",
    "vocabulary": "scripts/make_vocabulary.py",
    "pretrain": "pretrain/run.py",
    "vilt": "pretrain/vilt/run.py",
    "status": "scripts/status.py",
    "report": "scripts/report.py",
    "probe": "finetune/probe.py",
    "fewshot": "finetune/fewshot.py",
    "dense": "finetune/dense.py",
    "measure": "scripts/measure.py",
    "finetune": "finetune/run.py",
    "vilt-classify": "finetune/vilt/classify.py",
    "vilt-retrieve": "finetune/vilt/retrieve.py",
    "predict": "scripts/predict.py",
    "embed": "scripts/embed.py",
    "duplicates": "scripts/duplicates.py",
    "export": "scripts/export.py",
    "verify": "scripts/verify_run.py",
}


def how_to_type(name: str) -> str:
    """Return how a command of `COMMANDS` is typed here: `mpp NAME`, or `python FILE`.

    The latter where this interpreter's `mpp` is not among the programs that a shell finds.
    """
    found = shutil.which("mpp")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return f"mpp {name}"
    return f"python {file_from_here(COMMANDS[name])}"


def file_from_here(name: str) -> str:
    """Return how a file of the checkout is typed here."""
    file, here = CHECKOUT / name, Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def name_next(*commands: tuple[str, str]) -> str:
    """Return lines that name the commands to go on with: names of `COMMANDS` and what follows.

    Of what `run_command` started there are none: whoever started it goes on, or says how.
    """
    if _WITHIN in os.environ:
        return ""
    lines = [f"{how_to_type(name)} {arguments}\n" for name, arguments in commands]
    return "".join(f"{'      ' if number else 'next: '}{line}" for number, line in enumerate(lines))


class CommandFailed(RunStopped):
    """A command that ended badly: its status or signal, and the last line that it printed."""


def run_command(command: Sequence[str], output: IO[bytes] | None = None) -> int:
    """Run a command to its end, its output in a file or where ours goes; return its status.

    It has a session of its own. The first signal reaches it as SIGTERM, upon which a run commits a
    checkpoint, even before its first step; a second one kills it and its loader processes. A signal
    that is ignored here, as SIGHUP is behind `nohup`, the command ignores too.

    Raises:
        RunStopped: A signal came.
    """
    signals: list[signal.Signals] = []
    children: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, _: FrameType | None) -> None:
        signals.append(signal.Signals(number))
        for child in children:
            with suppress(ProcessLookupError):
                if len(signals) > 1:
                    os.killpg(child.pid, signal.SIGKILL)
                else:
                    child.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, hand_on) for number in heard_requests()}
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env=os.environ | {_WITHIN: "1"},
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=ask_to_leave_with_parent,
        )
        children.append(child)
        if signals:  # it came before there was a child
            child.send_signal(signal.SIGTERM)
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signals:
        text = f"{signals[0].name} came; the same command goes on where this one was"
        raise RunStopped(text, INTERRUPTED if signals[0] == signal.SIGINT else _ASKED_TO_LEAVE)
    return status


def run_logged(command: Sequence[str], log: Path) -> None:
    """Run a command to its end, its output at the end of a file.

    Raises:
        CommandFailed: It ended badly.
        RunStopped: A signal came.
    """
    with log.open("ab") as file:
        status = run_command(command, file)
    if status == 0:
        return
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    last = next(filter(None, reversed(lines)), "it printed nothing")
    if status > 0:
        raise CommandFailed(f"status {status}: {last}")
    name = signal.Signals(-status).name
    hint = ", as a kernel does that is short of memory" if name == "SIGKILL" else ""
    raise CommandFailed(f"killed by {name}{hint}; {last}")
