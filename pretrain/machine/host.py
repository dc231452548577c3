"""A run within another program, such as a notebook: what it sets for the process is put back."""

import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from data.processes import REQUESTS, end_children, raise_file_limit, watch_launcher

OURS = ("data", "pretrain", "finetune", "scripts")  # the loggers that a run speaks through
_LOGGERS = ("", "timm", *OURS)


@contextmanager
def within_program() -> Generator[None]:
    """Leave signals, environment, logging, random numbers, threads and processes as they were.

    The heap's tuning (`malloc.py`) and the limit of open files stay: they change no result. Numbers
    drawn on a GPU are put back only where the program had begun to use it.
    """
    watch_launcher()
    raise_file_limit()
    before = multiprocessing.active_children()
    with ExitStack() as stack:
        stack.callback(lambda: end_children(before))
        for guard in (_signals, _environment, _logging, _torch, _accelerate):
            stack.enter_context(guard())
        stack.enter_context(warnings.catch_warnings())
        yield


@contextmanager
def _signals() -> Generator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in REQUESTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _environment() -> Generator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _logging() -> Generator[None]:
    root = logging.getLogger()
    handlers = list(root.handlers)
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _torch() -> Generator[None]:
    import numpy as np
    import torch  # here: it takes seconds

    threads = torch.get_num_threads()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    numpy_state = np.random.get_state()  # noqa: NPY002 - what timm draws from
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=list(gpus)):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.use_deterministic_algorithms(is_deterministic)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextmanager
def _accelerate() -> Generator[None]:
    """Give the run a state of its own: accelerate keeps one for the process, device and all."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    kinds = (PartialState, AcceleratorState, GradientState)
    before = [dict(kind._shared_state) for kind in kinds]
    for kind in kinds:
        kind._shared_state.clear()
    try:
        yield
    finally:
        for kind, state in zip(kinds, before, strict=True):
            kind._shared_state.clear()
            kind._shared_state.update(state)
