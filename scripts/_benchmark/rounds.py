"""Speeds (or seconds, or bytes) of several variants, taken in turns, and the ratios between them.

On a machine that others use too, a speed means little and a ratio of two neighbouring measurements
means more. So the variants take turns, A B C A B C, a ratio is made in each round, and the median
of the ratios is reported with the lowest and the highest.
"""

import math
import os
import platform
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from data.devices import num_cores

_LIBRARIES = ("torch", "torchvision", "timm", "accelerate", "pillow", "webdataset")
_ALTERNATIVES = ("vit-pytorch", "transformers", "nvidia-dali-cuda120", "mosaicml-streaming")


@dataclass
class Speeds:
    """What was measured of each variant, one value a round.

    Attributes:
        unit: What the values are; the key in a record.
        by_variant: The values.
    """

    unit: str = "images_per_second"
    by_variant: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def add(self, variant: str, value: float) -> None:
        """Append a round's value."""
        self.by_variant.setdefault(variant, []).append(value)

    def ratios(self, variant: str, baseline: str) -> list[float]:
        """Divide two variants' values round by round."""
        pairs = zip(self.by_variant[variant], self.by_variant[baseline], strict=True)
        return [value / base for value, base in pairs]


def clock() -> float:
    """Seconds, once the GPU has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def images_per_second(work: Callable[[], object], num_images: int, seconds: float) -> float:
    """Repeat `work`, which handles `num_images`, for about some seconds; at least once.

    A GPU is waited for only before the first call and after the last, as in a run; how many there
    are to be is told by one before them.
    """
    if torch.accelerator.is_available():
        begin = clock()
        work()
        return _back_to_back(work, num_images, max(1, math.ceil(seconds / (clock() - begin))))
    begin = now = time.perf_counter()
    done = 0
    while not done or now - begin < seconds:
        work()
        done += num_images
        now = time.perf_counter()
    return done / (now - begin)


def warm_up(work: Callable[[], object]) -> None:
    """Work until all is as it stays: memory is allocated, code compiled, of some in the third call.

    transformers' MAE, compiled, is one of those.
    """
    for _ in range(3):
        work()


def take_turn(work: Callable[[], object], num_images: int, seconds: float) -> float:
    """Measure images a second, then give a GPU's unused memory to the processes that come next."""
    speed = images_per_second(work, num_images, seconds)
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    return speed


def _back_to_back(work: Callable[[], object], num_images: int, num_calls: int) -> float:
    begin = clock()
    for _ in range(num_calls):
        work()
    return num_calls * num_images / (clock() - begin)


def spread(values: list[float]) -> dict[str, Any]:
    """Return the median, the lowest and the highest of the rounds, and the rounds themselves."""
    return {"median": median(values), "min": min(values), "max": max(values), "rounds": values}


def make_record(
    benchmark: str,
    settings: dict[str, Any],
    speeds: Speeds,
    pairs: dict[str, tuple[str, str]],
    lower_is_better: Collection[str] = (),
) -> dict[str, Any]:
    """Make what `--json` writes.

    Args:
        benchmark: Its name.
        settings: What was asked for.
        speeds: What was measured.
        pairs: For each ratio's name, the variant and its baseline.
        lower_is_better: The ratios of costs.
    """
    record: dict[str, Any] = {"benchmark": benchmark, "ratios": {}, "spread": {}, "units": []}
    record |= {"lower_is_better": [], "settings": settings, "machine": machine()}
    add_values(record, speeds, pairs, lower_is_better)
    return record


def add_values(
    record: dict[str, Any],
    speeds: Speeds,
    pairs: dict[str, tuple[str, str]],
    lower_is_better: Collection[str] = (),
) -> None:
    """Add to a record what was measured in another unit, and its ratios."""
    record["lower_is_better"] += [name for name in pairs if name in lower_is_better]
    spreads = {name: spread(speeds.ratios(*pair)) for name, pair in pairs.items()}
    record["ratios"] |= {name: values["median"] for name, values in spreads.items()}
    record["spread"] |= spreads
    record["units"].append(speeds.unit)
    record[speeds.unit] = {name: spread(values) for name, values in speeds.by_variant.items()}


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on."""
    return {
        "cpu": _cpu_model(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
        **_installed_alternatives(),
    }


def _installed_alternatives() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in _ALTERNATIVES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(record: dict[str, Any]) -> str:
    """Lay a record out for reading."""
    rows = [(unit.replace("_", " "), record[unit]) for unit in record["units"]]
    rows.append(("ratio", record["spread"]))
    width = max(28, *(len(name) + 2 for _, values in rows for name in values))
    lines: list[str] = []
    for title, values in rows:
        lines.append(f"{title:{width}}{'median':>10}{'min':>10}{'max':>10}")
        lines += [_row(name, value, width, record) for name, value in values.items()]
        lines.append("")
    host = record["machine"]
    where = host["gpu"] or f"{host['cpu']}, {host['cores']} cores, {host['threads']} threads"
    lines.append(f"{where}; torch {host['torch']}, timm {host['timm']}")
    return "\n".join(lines)


def _row(name: str, value: dict[str, Any], width: int, record: dict[str, Any]) -> str:
    numbers = "".join(f"{value[key]:10.3f}" for key in ("median", "min", "max"))
    is_lower_better = name in record["lower_is_better"]
    return f"{name:{width}}{numbers}{'   lower is better' if is_lower_better else ''}"
