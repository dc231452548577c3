"""How much memory this process holds, and the most that it ever held."""

from pathlib import Path
from typing import NamedTuple

import torch

_STATUS = Path("/proc/self/status")


class Held(NamedTuple):
    """Bytes of this process: on a CUDA device what is allocated there, else resident memory.

    Attributes:
        now: Held now, the code of libraries left out.
        peak: The most that was ever held, likewise.
        code: The code of libraries, and other files in memory; 0 on a CUDA device.
    """

    now: int
    peak: int
    code: int


def has_memory_counter() -> bool:
    """Tell whether peak memory can be read here: of a CUDA device, or of the process from /proc."""
    return torch.cuda.is_available() or _STATUS.is_file()


def held_memory() -> Held:
    """Return what is held; only where `has_memory_counter`."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return Held(torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(), 0)
    rows = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    held, peak, code = (1024 * int(rows[key].split()[0]) for key in ("VmRSS", "VmHWM", "RssFile"))
    return Held(held - code, peak - code, code)
