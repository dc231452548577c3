"""Runs in processes of their own, forked from a server that has torch imported; and their deaths.

A rank is a session of its own, with its loader processes and its prefetcher. As a launcher would,
`Ranks.wait` ends all of them when one dies. A `Forked` is a script with its arguments: a process, a
status, two streams and signals as of a new interpreter, without the 6 to 10 s of CPU that its
imports take. What a start itself must show, such as that a script finds the checkout, has a test
with a real one.
"""

import contextlib
import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any

from data.settings import run_entry_point
from tests.servers import free_port

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "torch",
        "accelerate",
        "timm",
        "pretrain.pictures.illustrate",
        "finetune.frozen.measure",
        "finetune.frozen.dense.measure",
        "finetune.load",
    ]
)

ROOT = Path(__file__).resolve().parents[1]
FAIL = signal.SIGUSR2  # makes a forked script raise an error of the program where it is
_GRACE = 5  # seconds that a launcher gives the other ranks to end by themselves
Prepare = Callable[[], None]


def _own_media() -> None:
    """Take an own folder for wandb's pictures: all forks have the server's, and one removes it."""
    wandb: Any = sys.modules.get("wandb.sdk.data_types._private")
    if wandb is not None:
        wandb.MEDIA_TMP.name = tempfile.mkdtemp("wandb-media")


def _be_rank(
    script: str, arguments: list[str], environment: dict[str, str], log: Path, prepare: Prepare
) -> None:
    os.setsid()
    if "WANDB_MODE" in environment:
        _own_media()
    multiprocessing.set_start_method("fork", force=True)  # loader processes as users have them
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    sys.argv = [script, *arguments]
    prepare()
    run_entry_point(importlib.import_module(script).main)


def nothing() -> None:
    """Prepare nothing."""


class Ranks:
    """The ranks of one started run."""

    def __init__(
        self,
        arguments: list[str],
        world: int,
        folder: Path,
        *,
        script: str = "pretrain.run",
        prepare: Prepare = nothing,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = [folder / f"rank-{rank}.log" for rank in range(world)]
        self.processes: list[ForkServerProcess] = []
        port = free_port()
        for rank, log in enumerate(self.logs):
            log.write_bytes(b"")
            names = {"OMP_NUM_THREADS": "1", **(environment or {})}
            if world > 1:
                names |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
                names |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
                names |= {"MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
            process = SERVER.Process(target=_be_rank, args=(script, arguments, names, log, prepare))
            process.start()
            self.processes.append(process)

    @property
    def is_alive(self) -> bool:
        """Whether all ranks live."""
        return all(process.is_alive() for process in self.processes)

    @property
    def output(self) -> str:
        """What all ranks have said."""
        return "".join(log.read_text(errors="replace") for log in self.logs)

    def members(self) -> list[list[int]]:
        """List each rank's processes, the rank itself first."""
        return [[int(process.pid or 0), *descendants(process.pid)] for process in self.processes]

    def kill(self) -> None:
        """Kill all that is left of the run."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(process.pid or 0), signal.SIGKILL)
            process.kill()  # it may not lead a session yet
        for process in self.processes:
            process.join()

    def wait(self, timeout: float = 120.0) -> list[int | None]:
        """Wait until all ranks have ended, or one has died, which ends the others.

        Returns:
            The exit statuses; a signal's number is negative.
        """
        deadline, is_dying = time.monotonic() + timeout, False
        while any(process.is_alive() for process in self.processes):
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"hangs after {timeout} s: {self.output[-4000:]}")
            if any(process.exitcode for process in self.processes) and not is_dying:
                is_dying, deadline = True, time.monotonic() + _GRACE
            if is_dying and time.monotonic() > deadline - 0.1:
                break
            time.sleep(0.005)
        codes = [process.exitcode for process in self.processes]
        self.kill()
        return codes

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def run_ranks(
    arguments: list[str], world: int, folder: Path, timeout: float = 120, **options: Any
) -> str:
    """Run to the end, which must be good; return what all ranks said."""
    with Ranks(arguments, world, folder, **options) as ranks:
        assert ranks.wait(timeout) == [0] * world, ranks.output[-4000:]
        return ranks.output


def descendants(pid: int | None) -> list[int]:
    """List the processes below one, by /proc."""
    children: dict[int, list[int]] = {}
    for number, about in _processes():
        children.setdefault(int(about[1]), []).append(number)
    found = list(children.get(pid or 0, []))
    for number in found:  # grows
        found += children.get(number, [])
    return found


class Family:
    """All that one process ever started, also where a parent died before its child."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._known: dict[int, str] = {}  # with its time of birth: numbers are used again

    def look(self) -> None:
        """Note who is there now."""
        everyone = dict(_processes())
        known = [everyone[n] for n, born in self._known.items() if _is(everyone.get(n), born)]
        sessions = {str(self._pid), *(about[3] for about in known)}
        below = descendants(self._pid)
        for number, about in everyone.items():
            if number in below or about[3] in sessions:
                self._known[number] = about[19]

    def alive(self) -> list[int]:
        """List those that run yet; one that nobody has waited for does not."""
        self.look()
        everyone = dict(_processes())
        return [
            number
            for number, born in self._known.items()
            if _is(everyone.get(number), born) and everyone[number][0] != "Z"
        ]


def _is(about: list[str] | None, born: str) -> bool:
    return about is not None and about[19] == born


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Yield processes and what their `stat` says from the state on: state, parent, group, ..."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(path.name), (path / "stat").read_text().rpartition(")")[2].split()


# ---------------------------------------------------------------- scripts


class _Stream(int):
    """A file descriptor that goes to a process that is being started, as which it is there."""

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return _received, (DupFd(int(self)),)


def _fail(_: int, __: object) -> None:
    raise ZeroDivisionError("as an error of the program would come, anywhere")


def _received(stream: Any) -> int:
    return stream.detach()


def _be_script(
    command: list[str], folder: str, environment: dict[str, str], streams: list[int], alone: bool
) -> None:
    if alone:
        os.setsid()
    multiprocessing.set_start_method("fork", force=True)
    signal.signal(FAIL, _fail)
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
    sys.stdout = os.fdopen(1, "w", closefd=False)  # what it is now, not what it was
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    others = [folder for folder in sys.path if Path(folder).resolve() != ROOT]
    sys.path[:] = [str(Path(command[0]).parent), *others]  # it must find the checkout by itself
    runpy.run_path(command[0], run_name="__main__")


class Forked:
    """`subprocess.Popen` of `[sys.executable, script, ...]`; it begins with its imports done.

    It may be put in place of `subprocess.Popen` where a module of ours starts a script.
    """

    def __init__(
        self,
        command: list[str],
        *,
        stdout: IO[Any],
        stderr: IO[Any] | int,
        stdin: int = subprocess.DEVNULL,
        start_new_session: bool = False,
        cwd: str | Path = ".",
        env: Mapping[str, str] | None = None,
        preexec_fn: Callable[[], None] | None = None,
    ) -> None:
        del preexec_fn  # it would look at the server
        python, *own = command
        assert python == sys.executable
        assert stdin == subprocess.DEVNULL  # as of each process of multiprocessing
        second = stdout if stderr == subprocess.STDOUT else stderr
        assert not isinstance(second, int)
        streams = [_Stream(stdout.fileno()), _Stream(second.fileno())]
        environment = dict(os.environ if env is None else env)
        self._process = SERVER.Process(
            target=_be_script, args=(own, str(cwd), environment, streams, start_new_session)
        )
        self._process.start()
        self.pid = int(self._process.pid or 0)

    @property
    def returncode(self) -> int | None:
        """The exit status once it has ended; a signal's number is negative."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, for so many seconds at most."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a forked script", timeout or 0)
        return self.returncode

    def kill(self) -> None:
        """End it at once unless it has ended."""
        self._process.kill()
        self._process.join()

    def send_signal(self, number: int) -> None:
        """Send it a signal unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)


def run_forked(
    command: list[str], *, cwd: str | Path = "/", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Do what `subprocess.run(command, capture_output=True, text=True, check=False)` does."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        status = Forked(command, stdout=out, stderr=err, cwd=cwd, env=env).wait()
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(command, status, out.read(), err.read())
