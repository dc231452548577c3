"""Processes: what ends with the one that started it, and what signals, files and memory do to it.

Whatever this project starts ends with its starter, also where that was killed: loader processes by
`end_with_parent`, scripts by `ask_to_leave_with_parent`, an entry point by `watch_launcher`.
"""

import sys

if sys.platform == "win32":
    sys.exit(
        "error: this project runs on Linux, and on Windows within WSL (wsl --install); Windows "
        "itself lacks the locks (fcntl) and signals that keep a run's folder whole"
    )

import ctypes
import errno
import multiprocessing
import os
import re
import resource
import select
import signal
import threading
import time
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess, current_process, parent_process
from pathlib import Path
from types import FrameType

INTERRUPTED = 130  # the status after Ctrl-C, as shells have it
REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # to leave
_LAUNCHERS = {
    "accelerate",
    "accelerate-launch",
    "accelerate.commands.launch",
    "torchrun",
    "torch.distributed.launch",
    "torch.distributed.run",
}
_STARTED_BY = "MASKED_PATCH_STARTED_BY"  # a script's number, for its pool
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL = 0.5  # seconds between looks at the parent
_UNWIND = 2.0  # seconds that Ctrl-C leaves for tidying up
_ENOUGH_FILES = 1 << 16
_FILES = "Too many open files|items of ancdata"
_SHARED_MEMORY = r"shared memory|/dev/shm.*No space left|killed by signal: Bus error"
_watched = [0]  # the process that watches its launcher
_main = [0]  # the process of the entry point


# ---------------------------------------------------------------- the end of who started it


def platform_note() -> str | None:
    """Say what is missing on a system other than Linux; None on Linux."""
    if sys.platform == "linux":
        return None
    return (
        f"{sys.platform}: tested on Linux alone; here memory is not checked before the start, "
        "freed memory goes back to the system after each step, and the end of a launcher such as "
        "accelerate is not noticed"
    )


class Parent:
    """The process that started this one, as `multiprocessing` or a shell does.

    Args:
        pid: Its number; None if it has not ended yet.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._pid = pid or os.getppid()
        self._process = parent_process()  # it may be another where a server forks

    @property
    def is_gone(self) -> bool:
        """Whether it has ended."""
        if os.getppid() != self._pid:
            return True
        # a pipe's end, which forked loader processes may keep open for a while
        return self._process is not None and not self._process.is_alive()


def end_with_parent(pid: int | None = None) -> None:
    """Let this process be killed as soon as the one that started it is gone, whatever it does then.

    On Linux the system does it, and it looks at the thread: start loaders in one that stays. Where
    a server forked this process, and elsewhere, it looks for itself.

    Args:
        pid: As for `Parent`.
    """
    parent = Parent(pid)
    _signal_at_parents_end(signal.SIGKILL)
    threading.Thread(target=_kill_after, args=(parent,), daemon=True).start()


def _kill_after(parent: Parent) -> None:
    while not parent.is_gone:
        time.sleep(_POLL)
    os.kill(os.getpid(), signal.SIGKILL)


def ask_to_leave_with_parent() -> None:
    """Let a command get SIGTERM once its starter is gone, on Linux; for `Popen(preexec_fn=...)`."""
    _signal_at_parents_end(signal.SIGTERM)


def _signal_at_parents_end(number: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def watch_launcher() -> None:
    """Send this process SIGTERM once the launcher that started it is gone, if one did.

    `accelerate launch` dies of SIGTERM without a word to what it started, torchrun of SIGKILL. A
    shell's end means nothing: a run may well go on after that.
    """
    if _watched[0] == os.getpid():
        return
    _watched[0] = os.getpid()
    launcher = os.getppid()
    if _is_launcher(launcher):
        threading.Thread(target=_leave_after, args=(launcher,), daemon=True).start()


def has_launcher() -> bool:
    """Tell whether a launcher started this process, which hands signals on."""
    return _is_launcher(os.getppid())


def _is_launcher(pid: int) -> bool:
    """Tell it by the first words of the command: the environment is handed down to anything."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        words = []
    return any(Path(word).name in _LAUNCHERS for word in words[:4])


def _leave_after(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(_POLL)
    os.kill(os.getpid(), signal.SIGTERM)


# ---------------------------------------------------------------- signals


def heard_requests() -> list[signal.Signals]:
    """List what may ask this process to leave: all but those that `nohup` or `&` has it ignore."""
    return [number for number in REQUESTS if signal.getsignal(number) is not signal.SIG_IGN]


def leave_signals_to_parent() -> None:
    """Ignore what asks a run to leave, in a process of the training process, which handles it."""
    for number in REQUESTS:
        signal.signal(number, signal.SIG_IGN)


def begin() -> None:
    """Let Ctrl-C end a script that is importing what it needs in one line; watch its launcher."""
    if getattr(current_process(), "_inheriting", False):  # one of its pool, which imports it too
        starter, parent = int(os.environ[_STARTED_BY]), os.getppid()
        # a server that forks may stand between the two
        end_with_parent(parent if starter in (parent, _parent_of(parent, starter)) else starter)
        return
    os.environ[_STARTED_BY] = str(os.getpid())
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave_at_once)
    watch_launcher()


def _parent_of(pid: int, default: int) -> int:
    """Return who started a process; the default where nobody can tell, such as on macOS."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return default


@contextmanager
def interruptible() -> Generator[None]:
    """Let the first Ctrl-C unwind what runs, for two seconds at most; a second ends it at once."""
    before = signal.getsignal(signal.SIGINT)
    if before not in (signal.default_int_handler, _leave_at_once):  # ignored, as behind `nohup`
        yield
        return
    _main[0] = os.getpid()
    signal.signal(signal.SIGINT, _unwind)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _unwind:  # else it came, and is dealt with
            signal.signal(signal.SIGINT, before)


@contextmanager
def importing() -> Generator[None]:
    """Let Ctrl-C end an entry point at once while it imports what takes seconds.

    Unwound like other code, an import that is half done says more than one line.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not _unwind:  # not started by `run_entry_point`, or Ctrl-C is ignored
        yield
        return
    signal.signal(signal.SIGINT, _leave_at_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave_at_once(_: int, __: FrameType | None) -> None:
    _say_interrupted()
    os._exit(INTERRUPTED)


def _unwind(_: int, __: FrameType | None) -> None:
    if os.getpid() != _main[0]:  # one that was forked, and does not ignore it yet
        os._exit(INTERRUPTED)
    _say_interrupted()
    signal.signal(signal.SIGINT, _end)
    timer = threading.Timer(_UNWIND, os._exit, (INTERRUPTED,))
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def _end(_: int, __: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def _say_interrupted() -> None:
    """Say in the first rank that Ctrl-C came; safe in a handler."""
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):
            os.write(2, b"stopped: Ctrl-C (SIGINT) came\n")


# ---------------------------------------------------------------- the way out


def end_children(others: Collection[BaseProcess] = ()) -> None:
    """Kill the processes that this one has started by `multiprocessing`, which it will leave now.

    Loader processes ignore what torch would end them by, and may wait for a full queue for ever.

    Args:
        others: Those that stay.
    """
    children = [child for child in multiprocessing.active_children() if child not in others]
    if not children:
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise what they died of
    for child in children:
        child.kill()
    for child in children:
        child.join(1)
    signal.signal(signal.SIGCHLD, before)


def has_no_reader() -> bool:
    """Tell whether what reads this process's output has ended."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)  # errors alone
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def drop_unread_output() -> None:
    """Write out what is waiting; what nobody reads would else spoil the status at the very end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


# ---------------------------------------------------------------- what the system does not give


def raise_file_limit() -> None:
    """Let this process, and what it starts, open as many files as it may without being asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limited = hard if 0 <= hard < _ENOUGH_FILES else _ENOUGH_FILES
    if 0 <= soft < limited:
        with suppress(OSError, ValueError):  # macOS has limits that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (limited, hard))


def file_limit() -> int:
    """Return how many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft >= 0 else _ENOUGH_FILES


def shortage(error: BaseException) -> str | None:
    """Say what the system did not give or took away, and what helps; None of any other error.

    torch tells of it in many words, from loader processes and about them, wherever it is noticed.
    """
    text = str(error)
    if getattr(error, "errno", None) == errno.EMFILE or re.search(_FILES, text):
        return (
            f"too many open files: the system allows a process {file_limit()}; raise that with "
            "`ulimit -n 4096`, or set data.workers=0"
        )
    if re.search(_SHARED_MEMORY, text):
        return (
            f"the shared memory in /dev/shm is full{_size_of_shared_memory()}; loader processes "
            "hand batches on in it: make it larger (docker: --shm-size=8g), or set data.workers=0"
        )
    if "DataLoader worker" in text and "killed by signal: Killed" in text:
        return (
            "a loader process was killed, as the system does where memory is short; set a lower "
            "data.workers"
        )
    return text.splitlines()[0] if text.startswith("DataLoader worker") else None


def _size_of_shared_memory() -> str:
    try:
        about = os.statvfs("/dev/shm")
    except OSError:
        return ""
    return f" ({about.f_blocks * about.f_frsize / 2**20:,.0f} MiB)"
