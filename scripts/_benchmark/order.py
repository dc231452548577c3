"""What the order of an epoch costs: start-up, memory, and a lookup anywhere in an epoch.

Nothing is read: the order needs only how many samples each shard holds.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.order import Order
from data.settings import require
from scripts._benchmark.apart import in_fresh_process
from scripts._benchmark.rounds import Speeds, spread

RATIOS = {"lookup_99_vs_1": ("at 99 %", "at 1 %")}
_STATM = Path("/proc/self/statm")
_NEAR = 0.005  # "at 1 %" is anywhere between 0.5 and 1.5 % of an epoch
_PLACES = {"at 1 %": (0.01 - _NEAR, 0.01 + _NEAR), "at 99 %": (0.99 - _NEAR, 0.99 + _NEAR)}
_PLACES["anywhere"] = (0.0, 1.0)


@dataclass(frozen=True)
class OrderOptions:
    """What is measured.

    Attributes:
        samples: In all shards.
        shards: Of nearly equal, but not equal size.
        batch_size: Positions looked up at once.
        lookups: At each place.
        rounds: Fresh processes.
    """

    samples: int
    shards: int
    batch_size: int
    lookups: int
    rounds: int


def measure_order(options: OrderOptions) -> tuple[Speeds, dict[str, Any]]:
    """Measure in a fresh process a round.

    - Seconds: making the `Order`, and the first lookup of an epoch, which permutes the shards.
    - MiB: by how much the resident memory grew over both, and over all lookups as well.
      The sample counts that are handed in (8 bytes a shard) are not part of it.
    - Milliseconds a batch of positions at random places, near 1 %, near 99 % and anywhere; a
      round's value is the median of its lookups.

    Returns:
        The milliseconds, and the rest by name.
    """
    require(
        options.samples >= 100 * options.batch_size and options.samples >= options.shards,
        f"--samples={options.samples} are too few for batches of {options.batch_size} and "
        f"{options.shards} shards; give 100 batches, and a sample a shard",
    )
    require(_STATM.is_file(), f"order reads memory from {_STATM}, which is not here")
    lookups, costs, all_lookups = Speeds("ms_per_batch"), Speeds("start"), Speeds("all")
    for _ in range(options.rounds):
        found = in_fresh_process(_measure, options)
        for name, values in found["lookups"].items():
            lookups.add(name, float(np.median(values)))
            all_lookups.by_variant.setdefault(name, []).extend(values)
        for name, value in found["costs"].items():
            costs.add(name, value)
    rest = {name: spread(values) for name, values in costs.by_variant.items()}
    every = {
        name: {"min": min(values), "max": max(values), "count": len(values)}
        for name, values in all_lookups.by_variant.items()
    }
    return lookups, {"start": rest, "single_lookups_ms": every}


def _measure(options: OrderOptions) -> dict[str, Any]:
    """Measure one round, in a process that has done nothing else."""
    starts = _starts(options)
    Order(np.array([0, 1 << 20]), 1).samples(0, np.arange(8))  # numpy's first calls are slow
    generator = np.random.default_rng(0)
    before = _resident_mib()
    began = time.perf_counter()
    order = Order(starts, seed=1)
    made = time.perf_counter()
    order.samples(0, np.arange(options.batch_size))
    first = time.perf_counter()
    held = _resident_mib() - before
    lookups: dict[str, list[float]] = {name: [] for name in _PLACES}
    for _ in range(options.lookups):  # in turns, so that a disturbance meets all places
        for name, (low, high) in _PLACES.items():
            start = int(generator.uniform(low, high) * (options.samples - options.batch_size))
            lookups[name].append(_time_lookup(order, start, options.batch_size))
    costs = {
        "construct_seconds": made - began,
        "first_lookup_seconds": first - made,
        "memory_mib": held,
        "memory_after_lookups_mib": _resident_mib() - before,
    }
    return {"lookups": lookups, "costs": costs}


def _time_lookup(order: Order, start: int, batch_size: int) -> float:
    """Return the milliseconds of looking up one batch."""
    positions = np.arange(start, start + batch_size)
    began = time.perf_counter()
    order.samples(0, positions)
    return 1000 * (time.perf_counter() - began)


def _starts(options: OrderOptions) -> np.ndarray:
    """Make cumulative counts of shards whose sizes differ by up to a tenth, (shards + 1,)."""
    weights = np.random.default_rng(0).uniform(0.95, 1.05, options.shards)
    ends = np.round(np.cumsum(weights) / weights.sum() * options.samples).astype(np.int64)
    return np.concatenate([[0], ends])


def _resident_mib() -> float:
    return int(_STATM.read_text().split()[1]) * 4096 / 2**20
