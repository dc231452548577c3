"""The cores that this process may use, and the loader processes that they feed."""

from collections.abc import Iterator
from contextlib import suppress
from math import ceil
from pathlib import Path

from data.devices import num_cores
from data.settings import require
from data.text import count

_CGROUPS = Path("/sys/fs/cgroup")
_MOST = 8  # loader processes a rank that are chosen; more never paid off in what was measured
_ABSURD = 16, 4  # loader processes a rank: what any machine may have, and so many a core


def usable_cores() -> int:
    """Return the cores that the system lets this process use: by affinity and by a CPU limit."""
    return max(1, min([num_cores(), *_limits()]))


def _limits() -> Iterator[int]:
    """Yield the limits of the control groups (version 2) that this process is in."""
    own = [Path()]  # in a container, the path may be that of outside
    with suppress(OSError):  # there are none, such as on macOS
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own += [Path(line[4:]) for line in lines if line.startswith("0::/")]
    for group in {folder for path in own for folder in (path, *path.parents)}:
        try:
            quota, period = (_CGROUPS / group / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            yield ceil(int(quota) / int(period))


def loader_processes(asked: int | str, device: str, ranks: int) -> int:
    """Return how many loader processes a rank has.

    Beside a GPU the cores of a rank but one decode, up to 8. On a CPU one does where the rank has
    two cores or more: the trainer needs all of them for longer.

    Args:
        asked: `data.workers`: a number, or auto.
        device: Where the model is trained, such as `cuda`.
        ranks: Those of this machine.

    Raises:
        UserError: The number is absurd.
    """
    cores = usable_cores()
    if asked == "auto":
        free = max(0, cores // ranks - 1)
        return min(1 if device == "cpu" else _MOST, free)
    number, (any_, by_core) = int(asked), _ABSURD
    most = max(any_, by_core * cores)
    require(
        number <= most,
        f"data.workers={number} a rank is more than {most}, and there {_are(cores)} here; give "
        "auto, or a smaller number",
    )
    return number


def _are(cores: int) -> str:
    return f"{'is' if cores == 1 else 'are'} {count(cores, 'core')}"
