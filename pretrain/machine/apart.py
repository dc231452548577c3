"""Things that are made and used in processes of their own, where nothing else is in their way.

What several in one process would share: compiled code (torch.compile keeps it by function, and
takes the next model for a change of the first), the heap and its peak, threads.
"""

import atexit
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.util import Finalize
from typing import Any, Generic, Self, TypeVar

from data.processes import end_children, end_with_parent

Thing = TypeVar("Thing")
Result = TypeVar("Result")

_made: list[Any] = []  # in such a process: the thing


class Apart(Generic[Thing]):
    """A process that makes something, and then calls functions on it.

    It is forked from a server that imports modules once, in a new interpreter. As a context, it
    ends the process.

    Args:
        name: What to call it where it fails.
        make: A module's function that returns the thing, which stays in the process.
        arguments: What it is called with.
        preload: Modules that the server imports if it is not there yet; None: main, which knows
            where the checkout lies, and that of `make`.
    """

    def __init__(
        self,
        name: str,
        make: Callable[..., Thing],
        *arguments: object,
        preload: Sequence[str] | None = None,
    ) -> None:
        self._name = name
        context = multiprocessing.get_context("forkserver")
        modules = ["__main__", make.__module__] if preload is None else list(preload)
        context.set_forkserver_preload(modules)
        resource_tracker.ensure_running()  # the server would start it, and it unblocks SIGINT
        with _ctrl_c_blocked():  # while the server imports; the process that asks ends it
            forkserver.ensure_running()
        self._process = ProcessPoolExecutor(1, context, _begin)
        self._number = self._process.submit(os.getpid)
        self._is_made = self._process.submit(_make, make, *arguments)

    def wait_until_made(self, end: float | None = None) -> None:
        """Return once the thing is there.

        Args:
            end: As for `call`.

        Raises:
            RuntimeError: The process ended. Besides, all that `make` raised.
        """
        self._result(self._is_made, end)

    def call(
        self, function: Callable[..., Result], *arguments: object, end: float | None = None
    ) -> Result:
        """Return what a module's function returns for the thing and these arguments.

        Args:
            function: The function.
            arguments: Those after the thing.
            end: When the process is killed if it has no answer yet, by `time.monotonic`.

        Raises:
            RuntimeError: The process ended. Besides, all that `make` or the function raised.
            TimeoutError: It was killed.
        """
        self.wait_until_made(end)
        try:
            return self._result(self._process.submit(_call, function, *arguments), end)
        except BrokenProcessPool as error:  # it had ended before
            raise self._ended() from error

    def _result(self, future: Future[Result], end: float | None) -> Result:
        try:
            return future.result(None if end is None else max(0.0, end - time.monotonic()))
        except TimeoutError as error:
            if future.done():  # the function's own
                raise
            self._kill()
            raise TimeoutError(f"{self._name} had no answer in its time, and was ended") from error
        except BrokenProcessPool as error:
            raise self._ended() from error

    def _kill(self) -> None:
        """End the process, whatever it does; what it started ends with it."""
        number = self._number.result()  # the first that it does
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)

    def _ended(self) -> RuntimeError:
        return RuntimeError(f"{self._name} ended without an answer")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._process.shutdown(wait=kind is None, cancel_futures=True)


def in_fresh_process(
    work: Callable[..., Result], *arguments: object, end: float | None = None
) -> Result:
    """Call a module's function in a process that has imported its modules and done nothing else.

    Args:
        work: The function.
        arguments: What it is called with.
        end: When the process is killed if it has no answer yet, by `time.monotonic`.

    Raises:
        RuntimeError: The process ended without an answer. Besides, all that the function raised.
        TimeoutError: It was killed.
    """
    with Apart(work.__name__, work, *arguments) as process:
        return process.call(_itself, end=end)


def fork_workers() -> None:
    """Let what starts processes within such a process fork them: a server of its own cannot."""
    multiprocessing.set_start_method("fork", force=True)


@contextmanager
def _ctrl_c_blocked() -> Generator[None]:
    """Block SIGINT in this thread, and for good in what is started from it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _itself(thing: Any) -> Any:
    return thing


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the process that asks ends this one
    end_with_parent()
    os.register_at_fork(after_in_child=end_with_parent)  # other projects' loader processes
    Finalize(None, _end, exitpriority=0)


def _end() -> None:
    """End what the thing started: such a process waits for it, and our loader ignores SIGTERM."""
    _made.clear()
    end_children()
    atexit._run_exitfuncs()  # not called in such a process; Streaming's shared memory needs it


def _make(make: Callable[..., object], *arguments: object) -> None:
    _made.append(make(*arguments))


def _call(function: Callable[..., Result], *arguments: object) -> Result:
    return function(*_made, *arguments)
