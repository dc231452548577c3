"""Speeds of several variants, taken in turns, and the ratios between them.

On a machine that others use too, a speed means little and a ratio of two neighbouring measurements
means more. So the variants take turns, A B C A B C, a ratio is made in each round, and the median
of the ratios is reported with the lowest and the highest.
"""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

_LIBRARIES = ("torch", "torchvision", "timm", "accelerate", "pillow")


@dataclass
class Speeds:
    """Images a second of each variant, one value a round."""

    by_variant: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def add(self, variant: str, images_per_second: float) -> None:
        """Append a round's value."""
        self.by_variant.setdefault(variant, []).append(images_per_second)

    def ratios(self, variant: str, baseline: str) -> list[float]:
        """Divide two variants' speeds round by round."""
        pairs = zip(self.by_variant[variant], self.by_variant[baseline], strict=True)
        return [speed / base for speed, base in pairs]


def clock() -> float:
    """Seconds, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def images_per_second(work: Callable[[], object], num_images: int, seconds: float) -> float:
    """Repeat `work`, which handles `num_images`, for about some seconds; at least once."""
    begin = now = clock()
    done = 0
    while not done or now - begin < seconds:
        work()
        done += num_images
        now = clock()
    return done / (now - begin)


def spread(values: list[float]) -> dict[str, Any]:
    """Return the median, the lowest and the highest of the rounds, and the rounds themselves."""
    return {"median": median(values), "min": min(values), "max": max(values), "rounds": values}


def make_record(
    benchmark: str, settings: dict[str, Any], speeds: Speeds, pairs: dict[str, tuple[str, str]]
) -> dict[str, Any]:
    """Make what `--json` writes.

    Args:
        benchmark: Its name.
        settings: What was asked for.
        speeds: What was measured.
        pairs: For each ratio's name, the variant and its baseline.
    """
    spreads = {name: spread(speeds.ratios(*pair)) for name, pair in pairs.items()}
    return {
        "benchmark": benchmark,
        "ratios": {name: values["median"] for name, values in spreads.items()},
        "spread": spreads,
        "images_per_second": {name: spread(v) for name, v in speeds.by_variant.items()},
        "settings": settings,
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
    }


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(record: dict[str, Any]) -> str:
    """Lay a record out for reading."""
    rows = [("images/s", record["images_per_second"]), ("ratio", record["spread"])]
    lines: list[str] = []
    for title, values in rows:
        lines.append(f"{title:20}{'median':>10}{'min':>10}{'max':>10}")
        lines += [
            f"{name:20}" + "".join(f"{value[key]:10.3f}" for key in ("median", "min", "max"))
            for name, value in values.items()
        ]
        lines.append("")
    host = record["machine"]
    where = host["gpu"] or f"{host['cpu']}, {host['cores']} cores, {host['threads']} threads"
    lines.append(f"{where}; torch {host['torch']}, timm {host['timm']}")
    return "\n".join(lines)
