"""How much memory a device still has: never less than what can be had."""

from collections.abc import Iterator
from pathlib import Path

import torch

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_Names = tuple[
    str, str, str
]  # files: the limit, what is used; and in memory.stat, what of it can go
_V2: _Names = ("memory.max", "memory.current", "file")
_V1: _Names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")


def free_bytes(device: torch.device) -> int | None:
    """Return how many bytes can be had on a device; None where nobody can tell.

    On the CPU that is what the system calls available, within the limits of this process's control
    groups; files in memory can go, and the swap counts.
    """
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    if device.type != "cpu":
        return None
    try:
        rows = (line.split() for line in (_PROC / "meminfo").read_text().splitlines())
        sizes = {row[0].rstrip(":"): 1024 * int(row[1]) for row in rows}
        swap = sizes.get("SwapFree", 0)
        return min([sizes["MemAvailable"], *_free_in_groups()]) + swap
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _free_in_groups() -> Iterator[int]:
    """Yield what each control group above this process that has a limit can still have."""
    for line in (_PROC / "self/cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds == "":
            top, names = _CGROUPS, _V2
        elif "memory" in kinds.split(","):
            top, names = _CGROUPS / "memory", _V1
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):  # in a container, the path may be that of outside
                yield from _free_in(folder, names)


def _free_in(folder: Path, names: _Names) -> Iterator[int]:
    try:
        limit, used = ((folder / name).read_text().strip() for name in names[:2])
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        if limit.isdigit():
            yield max(0, int(limit) - int(used) + int(stat.get(names[2], 0)))
    except (OSError, ValueError):
        return
