"""What was measured so far, and what could not be; and the record of it."""

from typing import Any

from data.disks import one_line
from scripts._benchmark.gpu.rows import CHANGED, MAE, OURS, TIMM, Cost
from scripts._benchmark.records import Rounds, add_values, make_record

_MIB = 2**20


class Found:
    """The figures of each row by its name, and the reasons of the rows that have none.

    Attributes:
        speeds: Images a second.
    """

    def __init__(self) -> None:
        self.speeds = Rounds()
        self._shares, self._products = Rounds("mfu"), Rounds("matrix_gflop_per_second")
        self._memory, self._counted = Rounds("peak_memory_mib"), Rounds("counted_memory_mib")
        self._gflop: dict[str, float] = {}
        self._pairs: dict[str, tuple[str, str]] = {}
        self._missing: dict[str, str] = {}
        self._num_failed = 0

    def leave_out(self, row: str, reason: str) -> None:
        """Name a row that cannot be had here."""
        self._missing[row] = reason

    def fail(self, row: str, error: Exception) -> None:
        """Name a row that should have been there, and drop what it had."""
        self.leave_out(row, one_line(error))
        self._num_failed += 1
        self.speeds.by_variant.pop(row, None)

    def add_costs(self, part: str, costs: dict[str, Cost], products: list[float]) -> None:
        """Add the costs of the steps of one encoder, and the matrix peak of each of its rounds."""
        if products:
            self._products.by_variant[part] = [product / 1e9 for product in products]
        for row, cost in costs.items():
            self._gflop[row] = cost.flops / 1e9
            pairs = zip(self.speeds.by_variant[row], products, strict=False)
            if shares := [speed * cost.flops / product for speed, product in pairs]:
                self._shares.by_variant[row] = shares
            if cost.peak_bytes is not None:
                self._memory.add(row, cost.peak_bytes / _MIB)
            if cost.counted_bytes is not None:
                self._counted.add(row, cost.counted_bytes / _MIB)
        for ours in (*OURS, *CHANGED):
            for other in (TIMM, MAE):
                pair = f"{ours} {part}", f"{other} {part}"
                self._pairs[f"{ours}_vs_{other} {part}"] = pair

    def add_run(self, row: str, record: dict[str, Any]) -> None:
        """Add a run and its own bare step."""
        bare = f"{row}, its step"
        for name, kind in ((row, "run"), (bare, "step")):
            self.speeds.by_variant[name] = record["images_per_second"][kind]["rounds"]
            self._shares.by_variant[name] = record["mfu"][kind]["rounds"]
        self._pairs[f"run_vs_step {row}"] = row, bare

    def record(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return what `--json` writes."""
        record = make_record("gpu", settings, self.speeds, self._pairs)
        for values in (self._shares, self._memory, self._counted, self._products):
            add_values(record, values, {})
        record["gflop_per_image"] = self._gflop
        record["missing"] = self._missing
        record["num_failed"] = self._num_failed
        return record
