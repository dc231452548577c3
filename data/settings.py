"""How a configuration states its keys, and how a user's mistake is reported.

Every component's frozen dataclass stands beside the component and declares its keys with
`setting`, so that `--help`, the resume check and the reader of the code see the same thing.
"""

import argparse
import os
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import field
from errno import ENOMEM
from io import TextIOWrapper
from typing import Any, NoReturn

from data.disks import explain, is_disk_error
from data.processes import (
    INTERRUPTED,
    drop_unread_output,
    end_children,
    has_no_reader,
    interruptible,
    raise_file_limit,
    shortage,
    watch_launcher,
)
from data.text import is_utf8, printable

_NO_READER = 141  # the status of who writes to `head`, which has ended: 128 + SIGPIPE

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc", "alloc_failed")


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

    Where several are found at once, a line for each.

    Entry points print it without a traceback and leave with status 2.
    """


class OneLineParser(argparse.ArgumentParser):
    """A parser of a script's arguments: an error is one line, the description keeps its lines."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Raise what `run_entry_point` prints.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{message}; see --help")


def positive(text: str) -> int:
    """Read a number above 0, as argparse's `type`."""
    if not text.strip().isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)


def setting(
    default: Any,
    meaning: str,
    *,
    changes_result: bool = True,
    type_name: str | None = None,
    is_path: bool = False,
    knows_none: bool = False,
    instead_of: str | None = None,
) -> Any:
    """Declare one key of a configuration dataclass.

    Args:
        default: The value when the user gives none; a callable is called for each instance.
        meaning: One line for `--help`.
        changes_result: False for keys such as worker counts or logging, which may change when a
            run resumes. Every other key is refused by name if it differs.
        type_name: What `--help` says of a value that Python's types cannot state.
        is_path: Whether `~` in front of it means the home folder.
        knows_none: Whether `none` is one of its words, and not the same as null.
        instead_of: The dotted key in whose place it is given; one of the two, where they are set.
    """
    metadata = {
        "meaning": meaning,
        "changes_result": changes_result,
        "type_name": type_name,
        "is_path": is_path,
        "knows_none": knows_none,
        "instead_of": instead_of,
    }
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def require(is_right: bool, message: str) -> None:
    """Raise `UserError(message)` unless the rule holds."""
    if not is_right:
        raise UserError(message)


def require_utf8(arguments: Iterable[str]) -> None:
    """Raise `UserError` for an argument that no file of ours can hold: one that is not UTF-8."""
    for argument in arguments:
        require(
            is_utf8(argument),
            f"{printable(argument)} is not in UTF-8, and neither a configuration nor safetensors "
            "takes such a name; rename the file or folder",
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether there was no memory left; that is no mistake in what was typed."""
    is_known = isinstance(error, MemoryError) or getattr(error, "errno", None) == ENOMEM
    return is_known or any(words in str(error).lower() for words in _OUT_OF_MEMORY)


@contextmanager
def memory_errors(remedy: str) -> Generator[None]:
    """Turn what Python, torch and CUDA raise where there is no memory left into `RunStopped`.

    Args:
        remedy: What takes less memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if shortage(error) is not None or not is_out_of_memory(error):
            raise
        lines = str(error).splitlines() or ["Python could get no more"]
        reason = lines[0].rpartition("] ")[2]  # no place in torch's sources
        reason = reason.partition(" Including non-PyTorch")[0].strip().rstrip(".")
        raise RunStopped(f"memory ran out: {reason}; try {remedy}") from error


def run_entry_point(main: Callable[[list[str]], None]) -> None:
    """Run `main(arguments)` and leave the process with its status, and with none that it started.

    A user's mistake is one line from the main process and status 2; a run that stopped is one line
    from the process that stopped it, and its status; so is a disk that cannot be read or written,
    wherever that was met, memory that ran out, and what else the system does not give. Ctrl-C is
    one line and status 130.
    Where the reader of the output has ended, such as `head`, this ends too, without a word.
    """
    watch_launcher()
    raise_file_limit()
    _write_any_character()
    try:
        with interruptible(), machine_errors():
            _run(main)
    except UserError as error:
        lines = [f"error: {line}" for line in str(error).splitlines()]
        _leave("\n".join(lines), 2, is_agreed=True)
    except RunStopped as error:
        _leave(f"stopped: {error}", error.status, error.is_agreed)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        if has_no_reader():
            sys.exit(_NO_READER)
        raise
    finally:
        drop_unread_output()
        end_children()


@contextmanager
def machine_errors() -> Generator[None]:
    """Turn what the machine does not give, and what a disk says, into `RunStopped`."""
    try:
        with memory_errors("a machine with more memory"):
            yield
    except (OSError, RuntimeError) as error:
        is_unread = isinstance(error, BrokenPipeError) and has_no_reader()
        reason = None if is_unread else _what_failed(error)
        if reason is None:
            raise
        raise RunStopped(reason) from error


def _run(main: Callable[[list[str]], None]) -> None:
    try:
        main(sys.argv[1:])
    except SystemExit:  # as after --help
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def _what_failed(error: OSError | RuntimeError) -> str | None:
    """Say what of the machine failed, not of the program; else None."""
    reason = shortage(error)
    if reason is not None:
        return f"{reason}; the same command goes on"
    if isinstance(error, OSError) and is_disk_error(error):
        return f"{'a file' if error.filename is None else error.filename}: {explain(error)}"
    return None


def _leave(text: str, status: int, is_agreed: bool) -> NoReturn:
    """Say why on one rank where all leave alike, else on each; then leave."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or not is_agreed:
        where = "" if rank == "0" else f" on rank {rank}"
        with suppress(OSError):  # nobody reads it, and the status tells
            print(text.replace(":", f"{where}:", 1), file=sys.stderr)
    sys.exit(status)


def _write_any_character() -> None:
    """Escape what the terminal's encoding lacks: a line must not end the work that it tells of."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
