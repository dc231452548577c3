"""Running one step of an ablation as a user would: a command, its folder, what became of it."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self

from data.processes import ask_to_leave_with_parent
from data.settings import RunStopped, UserError, require
from data.shards import atomic_write
from data.storage.locations import take_lock

RECORD = "ablation.json"  # in the folder of each job
LOG = "output.log"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_UNSAID = {"pretraining": "pretrain"}  # what a definition means that does not have the key
_INTERRUPTED, _ASKED_TO_LEAVE = 130, 75  # statuses; the second is that of `run.requeue_status`

Definition = dict[str, Any]


class JobFailed(Exception):  # noqa: N818 - the job failed, not the program
    """A command that ended badly, or cannot be fitted into the budget; its last line."""


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        title: What is said of it.
        folder: Where its output and its record go.
        command: As a user would type it.
        definition: All that its result depends on.
    """

    title: str
    folder: Path
    command: list[str]
    definition: Definition

    @property
    def is_finished(self) -> bool:
        """Whether it has run to its end."""
        return state_of(self.folder) == "finished"

    def run(self, children: "Children") -> None:
        """Run it, unless it is finished.

        Raises:
            JobFailed: It ended badly.
            RunStopped: This process was asked to leave.
        """
        if self.is_finished:
            return
        check_definition(self.title, self.folder, self.definition)
        self.folder.mkdir(parents=True, exist_ok=True)
        with children.lock(self.folder / ".lock", self.title):
            pass  # a start that was killed leaves its run behind, which goes on and holds this
        write_json(self.folder / RECORD, {"state": "started", "definition": self.definition})
        print(f"{self.title}: {self.folder}", flush=True)
        problem = children.run(self.command, self.folder / LOG)
        state = "finished" if problem is None else f"failed: {problem}"
        write_json(self.folder / RECORD, {"state": state, "definition": self.definition})
        if problem is not None:
            raise JobFailed(problem)


def state_of(folder: Path) -> str:
    """Return missing, started, finished, or `failed: ` and why."""
    return read_json(folder / RECORD).get("state", "missing")


def check_definition(title: str, folder: Path, definition: Definition) -> None:
    """Refuse a folder that holds a job of another definition.

    A key that the record lacks came into being after it, and is none that differs. A job that left
    nothing behind, such as one that failed at its start, may be mended.

    Raises:
        UserError: Keys differ; they are named.
    """
    record = read_json(folder / RECORD)
    is_empty = record.get("state") != "finished" and not (folder / "checkpoints").is_dir()
    saved = {} if is_empty else _UNSAID | record.get("definition", {})
    asked = _UNSAID | json.loads(json.dumps(definition))
    different = [
        f"{key} is {value}, not {saved[key]}"
        for key, value in asked.items()
        if key in saved and saved[key] != value
    ]
    require(
        not different,
        f"{title}: {folder} holds another definition of it: {'; '.join(different)}; give it the "
        f"same keys, or another name, or another --output, or delete {folder}",
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a record; nothing if there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; delete it to run this anew") from error


def write_json(path: Path, content: Any) -> None:
    """Write a record, whole or not at all."""
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")


def _problem(status: int, log: Path) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        hint = ", as a kernel does that is short of memory" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}; {_last_line(log)}"
    return f"status {status}: {_last_line(log)}"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


# ---------------------------------------------------------------- processes


class Children:
    """Runs one command at a time, and hands signals on to it while it is entered.

    A command has a session of its own: Ctrl-C on a terminal reaches it as SIGTERM, upon which a run
    commits a checkpoint and leaves. A second signal kills it.
    """

    def __init__(self) -> None:
        self._asked: signal.Signals | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        is_second = self._asked is not None
        self._asked = signal.Signals(number)
        self._hand_on(signal.SIGKILL if is_second else signal.SIGTERM)

    def _hand_on(self, number: signal.Signals) -> None:
        child = self._child
        if child is None or child.returncode is not None:
            return
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(child.pid, number)  # its loader processes too
            else:
                child.send_signal(number)

    def check(self) -> None:
        """Leave if this process was asked to.

        Raises:
            RunStopped: It was.
        """
        if self._asked is not None:
            status = _INTERRUPTED if self._asked == signal.SIGINT else _ASKED_TO_LEAVE
            text = f"{self._asked.name} came; the same command goes on where this one was"
            raise RunStopped(text, status)

    def run(self, command: Sequence[str], log: Path) -> str | None:
        """Run a command to its end, its output at the end of a file; return what went wrong.

        Raises:
            RunStopped: This process was asked to leave; so was the command.
        """
        with log.open("ab") as file:
            status = self.status_of(command, file)
        return _problem(status, log) if status else None

    def status_of(self, command: Sequence[str], output: IO[bytes] | None = None) -> int:
        """Run a command to its end, its output in a file or where ours goes; return its status.

        Raises:
            RunStopped: This process was asked to leave; so was the command.
        """
        self.check()
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=ask_to_leave_with_parent,
        )
        if self._asked is not None:  # in the meantime
            self._hand_on(signal.SIGTERM)
        status = self._child.wait()
        if status != 0:
            self.check()
        return status

    @contextmanager
    def lock(self, path: Path, what: str) -> Generator[None]:
        """Hold a lock, as soon as no other process does.

        Raises:
            RunStopped: This process was asked to leave before that.
        """
        descriptor = self._wait_for_lock(path, what)
        try:
            yield
        finally:
            os.close(descriptor)

    def _wait_for_lock(self, path: Path, what: str) -> int:
        is_said = False
        while True:
            try:
                return take_lock(path)
            except BlockingIOError as error:
                if not is_said:
                    holder = error.args[0] or "another process"
                    print(f"{what}: {holder} is at it; waiting for its end", flush=True)
                is_said = True
            self.check()
            time.sleep(0.2)
