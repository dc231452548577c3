"""Measurements of several variants, a value a round, and the record made of them.

On a machine that others use too, a speed means little and a ratio of two neighbouring measurements
means more. So the variants take turns, A B C A B C, a ratio is made in each round, and the median
of the ratios is reported with the lowest and the highest.
"""

import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from data.devices import num_cores
from data.settings import UserError, require
from data.text import count

_LIBRARIES = ("torch", "torchvision", "timm", "accelerate", "pillow", "webdataset")
_ALTERNATIVES = ("vit-pytorch", "transformers", "nvidia-dali-cuda120", "mosaicml-streaming")
RATIO = "ratio"  # the title of their panel

Pairs = Mapping[str, tuple[str, str]]  # a ratio's name -> the variant and its baseline


@dataclass
class Rounds:
    """The measurements of each variant, one value a round.

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


def spread(values: list[float]) -> dict[str, Any]:
    """Return the median, the lowest and the highest of the rounds, and the rounds themselves."""
    return {"median": median(values), "min": min(values), "max": max(values), "rounds": values}


def make_record(
    benchmark: str, settings: dict[str, Any], measured: Rounds, pairs: Pairs
) -> dict[str, Any]:
    """Make what `--json` writes.

    Args:
        benchmark: Its name.
        settings: Its options.
        measured: Of which higher is better.
        pairs: The ratios; those of variants that were not measured are left out.
    """
    record: dict[str, Any] = {"benchmark": benchmark, "ratios": {}, "spread": {}, "units": []}
    record |= {"lower_is_better": [], "settings": settings, "machine": machine()}
    add_values(record, measured, pairs)
    return record


def add_values(
    record: dict[str, Any], measured: Rounds, pairs: Pairs, *, is_cost: bool = False
) -> None:
    """Add to a record what was measured in another unit, and its ratios.

    Args:
        record: What `make_record` made.
        measured: The values.
        pairs: As for `make_record`.
        is_cost: Whether lower is better.
    """
    by_variant = measured.by_variant
    pairs = {name: pair for name, pair in pairs.items() if by_variant.keys() >= set(pair)}
    record["lower_is_better"] += list(pairs) if is_cost else []
    spreads = {name: spread(measured.ratios(*pair)) for name, pair in pairs.items()}
    record["ratios"] |= {name: values["median"] for name, values in spreads.items()}
    record["spread"] |= spreads
    record["units"].append(measured.unit)
    record[measured.unit] = {name: spread(values) for name, values in by_variant.items()}


def machine() -> dict[str, Any]:
    """Describe what the values were measured on."""
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


def read_record(path: Path) -> dict[str, Any]:
    """Read what `--json` wrote.

    Raises:
        UserError: The file is no such record.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no record that --json wrote: {error}") from error
    is_record = isinstance(record, dict) and {"benchmark", "spread", "machine"} <= record.keys()
    require(is_record, f"{path} is no record of ratios; give one that --json wrote")
    return record


def panels(record: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the ratios and each unit with their title and their spreads, but for empty ones."""
    values = [(RATIO, record["spread"])]
    values += [(unit.replace("_", " "), record[unit]) for unit in record["units"]]
    return [(title, spreads) for title, spreads in values if spreads]


def table(record: dict[str, Any]) -> str:
    """Lay a record out for reading, the ratios last."""
    shown = sorted(panels(record), key=lambda panel: panel[0] == RATIO)
    width = max(28, *(len(name) + 2 for _, spreads in shown for name in spreads))
    lines: list[str] = []
    for title, spreads in shown:
        lines.append(f"{title:{width}}{'median':>10}{'min':>10}{'max':>10}")
        lines += [
            _row(f"{name:{width}}", values, name in record["lower_is_better"])
            for name, values in spreads.items()
        ]
        lines.append("")
    host = record["machine"]
    cores = f"{count(host['cores'], 'core')}, {count(host['threads'], 'thread')}"
    where = host["gpu"] or f"{host['cpu']}, {cores}"
    return "\n".join([*lines, f"{where}; torch {host['torch']}, timm {host['timm']}"])


def _row(label: str, values: dict[str, Any], is_cost: bool) -> str:
    numbers = "".join(f"{values[key]:10.3f}" for key in ("median", "min", "max"))
    return f"{label}{numbers}{'   lower is better' if is_cost else ''}"
