"""Things that are made and used in processes of their own, where nothing else is in their way.

What several in one process would share: compiled code (torch.compile keeps it by function, and
takes the next model for a change of the first), the heap and its peak, threads.
"""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Generic, Self, TypeVar

from data.processes import end_with_parent
from data.settings import UserError

Thing = TypeVar("Thing")
Result = TypeVar("Result")


class Apart(Generic[Thing]):
    """A process that makes something, and then calls functions on it when it is told to.

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
        self._name, self._is_made = name, False
        context = multiprocessing.get_context("forkserver")
        modules = ["__main__", make.__module__] if preload is None else list(preload)
        context.set_forkserver_preload(modules)
        self._calls, calls = context.Pipe()
        self._process = context.Process(target=_serve, args=(calls, make, arguments))
        self._process.start()
        calls.close()

    def wait_until_made(self) -> None:
        """Return once the thing is there.

        Raises:
            UserError: What makes it raised that.
            RuntimeError: The process ended; it has printed why.
        """
        if not self._is_made:
            self._answer()
            self._is_made = True

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Return what a module's function returns for the thing and these arguments.

        Raises:
            UserError: As `wait_until_made`; or the function raised that.
            RuntimeError: The process ended; it has printed why.
        """
        self.wait_until_made()
        with suppress(ConnectionError):  # the answer tells
            self._calls.send((function, arguments))
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._calls.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> Any:
        try:
            answer = self._calls.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(f"{self._name} ended without an answer") from error
        if isinstance(answer, UserError):
            raise answer
        return answer


def in_fresh_process(work: Callable[..., Result], *arguments: object) -> Result:
    """Call a module's function in a process that has imported its modules and done nothing else.

    Raises:
        UserError: The function raised that.
        RuntimeError: The process ended without an answer; it has printed why.
    """
    with Apart(work.__name__, work, *arguments) as process:
        return process.call(_itself)


def _itself(thing: Any) -> Any:
    return thing


def _serve(calls: Connection, make: Callable[..., object], arguments: tuple[object, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: who asked closes the pipe
    end_with_parent()
    os.register_at_fork(after_in_child=end_with_parent)  # other projects' loader processes
    try:
        thing = make(*arguments)
        _tell(calls, None)
        for function, others in _received(calls):
            _tell(calls, function(thing, *others))
    except UserError as error:
        _tell(calls, error)
    atexit._run_exitfuncs()  # not done in such a process; Streaming's shared memory waits for it


def _received(calls: Connection) -> Iterator[tuple[Callable[..., object], tuple[object, ...]]]:
    """Yield calls until nobody asks any more."""
    with suppress(EOFError, ConnectionError):
        while True:
            yield calls.recv()


def _tell(calls: Connection, answer: object) -> None:
    with suppress(ConnectionError):  # nobody waits any more
        calls.send(answer)
