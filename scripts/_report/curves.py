"""Charts over the steps before they have values, and how single batches are smoothed."""

import math
from dataclasses import dataclass
from typing import Literal

from scripts._report.figures import Kind, Line, Plot
from scripts._report.findings import Record

_SMOOTHING = (10, 50)  # a mean over a tenth of the records, 50 at most


@dataclass(frozen=True)
class Series:
    """One line of a chart: a key of the records, its name in the legend, its look.

    Of the kinds, `smooth` is a running mean of single batches, and so are baselines (`dashed`,
    `dotted`) that were measured on single batches.
    """

    key: str
    label: str
    colour: str
    kind: Kind | Literal["smooth"]
    marker: str = "o"

    @property
    def is_smoothed(self) -> bool:
        """Whether a running mean is drawn."""
        is_noisy = self.key.startswith(("train/", "optim/", "speed/"))
        return is_noisy and self.kind in ("smooth", "dashed", "dotted")

    def line(self, records: list[Record], scale: float) -> Line:
        """Take its values from the records; none where they have none."""
        points = [(r["step"], scale * r[self.key]) for r in records if self.key in r]
        if self.is_smoothed:
            points = smooth(points)
        kind = "line" if self.kind == "smooth" else self.kind
        return Line(self.label, self.colour, kind, tuple(points), self.marker)


@dataclass(frozen=True)
class Chart:
    """A chart before it has values; `scale` is a factor on all of them. Else as in `Plot`."""

    title: str
    axis: str
    series: tuple[Series, ...]
    reading: str
    scale: float = 1.0
    start_at_zero: bool = False
    least_top: float | None = None

    def plot(self, records: list[Record]) -> Plot:
        """Fill in the values; a series that has none, or another's, is left out."""
        drawn = {series.key for series in self.series if series.kind == "raw"}
        lines = (
            series.line(records, self.scale)
            for series in self.series
            if not (
                series.kind == "smooth" and series.key in drawn and smoothing(len(records)) == 1
            )
        )
        lines = tuple(line for line in lines if line.points)
        return Plot(
            self.title,
            self.axis,
            lines,
            self.reading,
            start_at_zero=self.start_at_zero,
            least_top=self.least_top,
        )


def smoothing(num_records: int) -> int:
    """Return over how many records the smoothed lines are a mean."""
    part, most = _SMOOTHING
    return min(most, max(1, num_records // part))


def smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Replace each value by the mean of it and those before it, as many as `smoothing` says."""
    width, values = smoothing(len(points)), [value for _, value in points]
    windows = (values[max(0, end - width) : end] for end in range(1, len(values) + 1))
    means = (math.fsum(window) / len(window) for window in windows)
    return [(step, mean) for (step, _), mean in zip(points, means, strict=True)]
