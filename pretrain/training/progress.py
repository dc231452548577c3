"""Progress on the console, and speed."""

import sys
import time
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from data.text import duration
from pretrain.records.logs import logger
from pretrain.records.words import baseline_of, line
from pretrain.training.utilisation import Limit

_SOON = 20.0  # seconds after which a run without a record yet says how long it will take


class Progress:
    """A log line a record, and on a terminal a bar below them; nothing on other ranks.

    A terminal that has gone, as a closed connection does, ends the bar and not the run.
    """

    def __init__(self, first: int, total: int, is_shown: bool) -> None:
        self._has_bar = is_shown and sys.stderr.isatty()
        self._is_shown = is_shown
        self._first, self._done, self._total = first, first, total
        self._begin = time.monotonic()
        self._has_told = self._has_named_baseline = False
        self._stack = ExitStack()
        self._bar: tqdm[Any] = tqdm(
            total=total, initial=first, unit="step", disable=not self._has_bar, dynamic_ncols=True
        )

    def advance(self) -> None:
        """Count one step."""
        self._done += 1
        with suppress(OSError):
            self._bar.update()
        if not self._has_told and not self._has_bar and self._seconds > _SOON:
            self._has_told = True
            if self._is_shown:
                logger.info("step %d/%d: about %s", self._done, self._total, self._time(self._done))

    def show(self, record: dict[str, Any]) -> None:
        """Show a logged record's main figures; what the baseline is, once."""
        if not self._is_shown:
            return
        logger.info("%s", line(record, self._total, self._time(record["step"])))
        baseline = baseline_of(record)
        if baseline is not None and not self._has_named_baseline:
            logger.info("baseline: the loss of %s", baseline[0])
        self._has_told = self._has_named_baseline = True

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._begin

    def _time(self, done: float) -> str:
        """Say how long the rest takes, at the pace since the start with all measurements."""
        rest = self._seconds / max(1, done - self._first) * (self._total - done)
        return f"{duration(rest)} left" if rest else f"{duration(self._seconds)} in all"

    def __enter__(self) -> Self:
        if self._has_bar:  # lines go above the bar
            self._stack.enter_context(logging_redirect_tqdm())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._bar.close()
        self._stack.close()


class Speedometer:
    """Images a second since the last record, validations and checkpoints left out.

    Attributes:
        limit: What the speed is held against; None where that is not known.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.limit: Limit | None = None
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
        """Return the speed, its share of the limit, and the fraction of the time spent waiting."""
        elapsed = time.perf_counter() - self._begin
        speed = self._num_steps * self._batch_size / elapsed
        share = {} if self.limit is None else {"speed/mfu": self.limit.share(speed)}
        waited = {"speed/data_wait_ratio": self._waited / elapsed}
        return {"speed/images_per_second": speed, **share, **waited}
