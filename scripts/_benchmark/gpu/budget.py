"""A time that is split over what is measured, and kept whatever hangs."""

import time
from collections.abc import Sequence


class Budget:
    """Seconds for parts of given weights; what one leaves goes to those after it.

    Args:
        seconds: Of all, from now on.
        weights: Of the parts, in their order.
    """

    def __init__(self, seconds: float, weights: Sequence[float]) -> None:
        self._end = time.monotonic() + seconds
        self._weights = list(weights)

    def next_end(self) -> float:
        """Begin the next part; return when it has to end, by `time.monotonic`."""
        now = time.monotonic()
        share = self._weights[0] / sum(self._weights)
        self._weights.pop(0)
        return now + share * max(0.0, self._end - now)


def left(end: float) -> float:
    """Return the seconds until then; 0 where it is over."""
    return max(0.0, end - time.monotonic())
