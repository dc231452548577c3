"""Peak memory of a few calls, in a process that has done nothing else."""

from collections.abc import Callable
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_NUM_CALLS = 3  # the optimizer's moments are made at the end of the first
_MIB = 2**20


def is_possible() -> bool:
    """Whether peak memory can be read here: of a CUDA device, or of the process from /proc."""
    return torch.cuda.is_available() or _STATUS.is_file()


def peak_mib(make: Callable[[], Callable[[], object]]) -> float:
    """Return by how much the peak exceeds what was held before, in MiB.

    Of the resident memory of this process, its libraries' code left out, or of what is allocated on
    the CUDA device. To be called in a fresh process: a peak is never lowered.

    Args:
        make: Makes the model and returns its step, which is called a few times.
    """
    _touch_libraries()
    before, _ = _held_and_peak()
    work = make()
    for _ in range(_NUM_CALLS):
        work()
    _, peak = _held_and_peak()
    return (peak - before) / _MIB


def _touch_libraries() -> None:
    """Let torch load and allocate what the first pass of any model does."""
    torch.nn.Linear(8, 8)(torch.ones(8, 8)).sum().backward()


def _held_and_peak() -> tuple[int, int]:
    """Return bytes held now, and the most that were ever held."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    rows = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    keys = ("VmRSS", "VmHWM", "RssFile")
    held, peak, code = (1024 * int(rows[key].split()[0]) for key in keys)
    return held - code, peak - code
