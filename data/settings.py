"""How a configuration states its keys, and how a user's mistake is reported.

Every component's frozen dataclass stands beside the component and declares its keys with
`setting`, so that `--help`, the resume check and the reader of the code see the same thing.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import field
from io import TextIOWrapper
from typing import Any, NoReturn

from data.disks import explain, is_disk_error


class RunStopped(Exception):  # noqa: N818 - not always an error of the program
    """A run that cannot go on, through no mistake in what was typed; one line says why.

    What was committed is intact. Entry points print it without a traceback and leave with `status`.

    Args:
        message: What the user reads.
        status: The process's exit status.
        is_agreed: All ranks raise it alike, so that one need print it. Else each that does prints.
    """

    def __init__(self, message: str, status: int = 1, is_agreed: bool = False) -> None:
        super().__init__(message, status, is_agreed)  # all, so that it can be pickled
        self.status = status
        self.is_agreed = is_agreed

    def __str__(self) -> str:
        return str(self.args[0])


class UserError(ValueError):
    """A mistake in the user's input: one line that names the key, the value, the rule, the remedy.

    Entry points print it without a traceback and leave with status 2.
    """


class OneLineParser(argparse.ArgumentParser):
    """A parser of a script's arguments whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise what `run_entry_point` prints.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{message}; see --help")


def setting(
    default: Any, meaning: str, *, changes_result: bool = True, type_name: str | None = None
) -> Any:
    """Declare one key of a configuration dataclass.

    Args:
        default: The value when the user gives none; a callable is called for each instance.
        meaning: One line for `--help`.
        changes_result: False for keys such as worker counts or logging, which may change when a
            run resumes. Every other key is refused by name if it differs.
        type_name: What `--help` says of a value that Python's types cannot state.
    """
    metadata = {"meaning": meaning, "changes_result": changes_result, "type_name": type_name}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def require(is_right: bool, message: str) -> None:
    """Raise `UserError(message)` unless the rule holds."""
    if not is_right:
        raise UserError(message)


def leave_signals_to_parent() -> None:
    """Ignore what asks a run to leave, in a process of the training process, which handles it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def run_entry_point(main: Callable[[list[str]], None]) -> None:
    """Run `main(arguments)` and leave the process with its status.

    A user's mistake is one line from the main process and status 2; a run that stopped is one line
    from the process that stopped it, and its status; so is a disk that cannot be read or written,
    wherever that was met; Ctrl-C is status 130.
    """
    rank = os.environ.get("RANK", "0")
    _write_any_character()
    try:
        main(sys.argv[1:])
    except UserError as error:
        if rank == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunStopped as error:
        if rank == "0" or not error.is_agreed:
            _say_stopped(rank, error)
        sys.exit(error.status)
    except OSError as error:
        if not is_disk_error(error):
            raise
        what = "a file" if error.filename is None else error.filename
        _say_stopped(rank, f"{what}: {explain(error)}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _say_stopped(rank: str, reason: object) -> None:
    where = "" if rank == "0" else f" on rank {rank}"
    print(f"stopped{where}: {reason}", file=sys.stderr)


def _write_any_character() -> None:
    """Escape what the terminal's encoding lacks: a line must not end the work that it tells of."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
