"""The best step of a run by a figure of its validations, and how long a run waits for a better."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from data.text import count
from pretrain.ranks import on_main
from pretrain.records import checkpoint
from pretrain.training.state import Training, load_weights

logger = logging.getLogger(__name__)


@dataclass
class Best:
    """Compares validations; all ranks do so alike, since they have the same figures.

    The step of a better one is committed at once, so that what the newest checkpoint says of the
    best, and what it hands on, always is of one run.

    Attributes:
        figure: Its name in a record, such as `val/accuracy`; more is better.
        patience: Validations in a row without a better one after which a run ends; 0: none ends it.
        step: The best step; 0 before the first validation.
        value: The figure there. An equal one that comes later is no better.
        num_since: Validations since then.
    """

    figure: str
    patience: int = 0
    step: int = 0
    value: float = -math.inf
    num_since: int = 0
    _before: dict[str, Any] = field(default_factory=dict[str, Any])
    _is_loaded: bool = False

    def note(self, done: int, record: Mapping[str, float]) -> bool:
        """Take in the record of step `done`; tell whether it is the best so far."""
        value = record.get(self.figure)
        if value is None:  # no validation
            return False
        if not value > self.value:  # so that nan is not
            self.num_since += 1
            return False
        self._before = self.state()
        self.step, self.value, self.num_since = done, value, 0
        return True

    def not_committed(self, done: int) -> None:
        """Go back to the best before step `done`, which could not be written."""
        if self.step == done:
            self._set(self._before)

    @property
    def is_given_up(self) -> bool:
        """Whether the run is to end."""
        return 0 < self.patience <= self.num_since

    def why_given_up(self) -> str:
        """Say why a run ended before its last step."""
        return (
            f"no better {self.figure} in {count(self.num_since, 'validation')} (run.patience); "
            f"the best is that of step {self.step}"
        )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it."""
        value = self.value if self.step else None
        return {"step": self.step, "value": value, "num_since": self.num_since}

    def _set(self, state: Mapping[str, Any]) -> None:
        self.step, self.num_since = state["step"], state["num_since"]
        self.value = -math.inf if state["value"] is None else state["value"]

    def resume(self, accelerator: Accelerator, newest: Path, state: Mapping[str, Any]) -> None:
        """Take back what the newest checkpoint says; where the best one is damaged, begin anew."""
        if not state.get("best"):
            return
        self._set(state["best"])
        best = checkpoint.folder_of(newest.parent.parent, self.step)
        if self.step and not on_main(accelerator, lambda: checkpoint.is_intact(best)):
            logger.warning(
                "%s, the best step by %s, is gone or damaged; a best is chosen among what follows",
                best,
                self.figure,
            )
            self.step, self.value = 0, -math.inf

    def load(self, training: Training, run: Path, done: int) -> bool:
        """Load the weights of the best step, after the last one.

        Args:
            training: Gets them.
            run: The run's folder.
            done: The last step.

        Returns:
            Whether they are other ones than before.

        Raises:
            UserError: Their checkpoint cannot be read.
        """
        if self.step in (0, done) or self._is_loaded:
            return False
        load_weights(training.best, checkpoint.folder_of(run, self.step))
        self._is_loaded = True
        return True
