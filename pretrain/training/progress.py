"""Progress on the console, and speed."""

import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from pretrain.records.logs import logger


class Progress:
    """A bar on a terminal, log lines elsewhere; nothing on other ranks."""

    def __init__(self, first: int, total: int, is_shown: bool) -> None:
        self._has_bar = is_shown and sys.stderr.isatty()
        self._is_shown = is_shown
        self._total = total
        self._bar: tqdm[Any] = tqdm(
            total=total, initial=first, unit="step", disable=not self._has_bar, dynamic_ncols=True
        )

    def advance(self) -> None:
        """Count one step."""
        self._bar.update()

    def show(self, record: dict[str, Any]) -> None:
        """Show a logged record's main figures."""
        named = {
            "loss": record.get("train/loss"),
            "accuracy": record.get("train/accuracy"),
            "val loss": record.get("val/loss"),
            "val accuracy": record.get("val/accuracy"),
            "k-NN": record.get("probe/knn"),
            "images/s": record.get("speed/images_per_second"),
        }
        shown = {name: f"{value:.4g}" for name, value in named.items() if value is not None}
        if self._has_bar:
            self._bar.set_postfix(shown)
        elif self._is_shown:
            text = "  ".join(f"{name} {value}" for name, value in shown.items())
            logger.info("step %d/%d  %s", record["step"], self._total, text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()


class Speedometer:
    """Images a second since the last record, validations and checkpoints left out."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Start counting anew."""
        self._begin = self._mark = time.perf_counter()
        self._waited = 0.0
        self._num_steps = 0

    def data_arrived(self) -> None:
        """Count the time since the last step's end as waiting for data."""
        self._waited += time.perf_counter() - self._mark

    def step_done(self) -> None:
        """Count one step."""
        self._num_steps += 1
        self._mark = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Return the speed, and the fraction of the time spent waiting for data."""
        elapsed = time.perf_counter() - self._begin
        return {
            "speed/images_per_second": self._num_steps * self._batch_size / elapsed,
            "speed/data_wait_ratio": self._waited / elapsed,
        }
