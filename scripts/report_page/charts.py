"""Which charts a report has, what each shows, and how it is read."""

from dataclasses import dataclass, replace
from typing import Literal

Record = dict[str, float]
Kind = Literal["raw", "line", "smooth", "points", "dashed", "dotted"]


@dataclass(frozen=True)
class Series:
    """One line of a chart: a key of the records, its name in the legend, its look.

    Of the kinds, `smooth` is a running mean of single batches, and so are baselines (`dashed`,
    `dotted`) that were measured on single batches.
    """

    key: str
    label: str
    colour: str
    kind: Kind
    marker: str = "o"

    @property
    def is_smoothed(self) -> bool:
        """Whether a running mean is drawn."""
        is_noisy = self.key.startswith(("train/", "optim/"))
        return is_noisy and self.kind in ("smooth", "dashed", "dotted")


@dataclass(frozen=True)
class Chart:
    """What is drawn, and how it is read.

    Attributes:
        title: Heading.
        axis: Label of the vertical axis, with the unit.
        series: Those without values are left out.
        reading: One sentence on how to read it.
        scale: Factor on all values; 100 for percent.
        start_at_zero: Whether the vertical axis begins at 0.
        least_top: The vertical axis ends there or above.
    """

    title: str
    axis: str
    series: tuple[Series, ...]
    reading: str
    scale: float = 1.0
    start_at_zero: bool = False
    least_top: float | None = None


def _by_kind(kind: str, colour: str, marker: str) -> tuple[Series, ...]:
    return (
        Series(f"train/accuracy_{kind}", f"{kind}, training", colour, "smooth"),
        Series(f"val/accuracy_{kind}", f"{kind}, validation", colour, "points", marker),
    )


_LOSS = (
    Series("train/loss", "training, each record", "blue", "raw"),
    Series("train/loss", "training, smoothed", "blue", "smooth"),
    Series("val/loss", "validation", "orange", "points"),
)
_SHARED = (
    Chart(
        "Learning rate",
        "learning rate",
        (Series("optim/lr", "learning rate", "blue", "line"),),
        "It should rise during the warm-up and then fall to nearly 0 at the last step.",
        start_at_zero=True,
    ),
    Chart(
        "Gradient norm",
        "norm before clipping",
        (
            Series("optim/grad_norm", "each record", "blue", "raw"),
            Series("optim/grad_norm", "smoothed", "blue", "smooth"),
        ),
        "A steady level is healthy; a climb or tall spikes ask for a lower learning rate.",
        start_at_zero=True,
    ),
    Chart(
        "Throughput",
        "images per second",
        (Series("speed/images_per_second", "images per second", "blue", "raw"),),
        "Higher is faster; all processes together, without validation and saving.",
        start_at_zero=True,
    ),
    Chart(
        "Waiting for data",
        "% of the time",
        (Series("speed/data_wait_ratio", "waiting for data", "orange", "raw"),),
        "Near 0 the model sets the pace; much above 10 % the loader does.",
        scale=100,
        start_at_zero=True,
        least_top=10,
    ),
)
_PRETRAINING = (
    Chart(
        "Loss",
        "loss (nats)",
        (
            *_LOSS,
            Series("train/class_entropy", "class frequencies only, training", "grey", "dotted"),
            Series("val/class_entropy", "class frequencies only, validation", "grey", "dashed"),
        ),
        "Lower is better; only below the grey baselines, the entropy of the class distribution, "
        "has the model learnt more than how frequent each colour is.",
    ),
    Chart(
        "Accuracy on corrupted patches",
        "accuracy (%)",
        (
            *_by_kind("mask", "blue", "o"),
            *_by_kind("random", "orange", "s"),
            *_by_kind("kept", "green", "^"),
            Series("train/accuracy_neighbour", "nearest visible patch's colour", "grey", "dashed"),
            Series("train/accuracy_majority", "most frequent class", "grey", "dotted"),
        ),
        "Higher is better; the blue line is the task itself (kept patches can be seen), and above "
        "the dashed line the model beats copying the nearest visible patch.",
        scale=100,
        start_at_zero=True,
    ),
    Chart(
        "Frozen features on labelled images",
        "accuracy (%)",
        (
            Series("probe/knn", "k nearest neighbours", "blue", "points"),
            Series("probe/1shot", "1 image a class", "grey", "points", "^"),
            Series("probe/5shot", "5 images a class", "orange", "points", "s"),
            Series("probe/10shot", "10 images a class", "green", "points", "^"),
        ),
        "Higher is better; what the encoder is worth for other work, measured while it is trained.",
        scale=100,
        start_at_zero=True,
    ),
)
_FINETUNING = (
    Chart(
        "Loss",
        "loss (nats)",
        _LOSS,
        "Lower is better; validation that rises while training falls is overfitting.",
    ),
    Chart(
        "Accuracy",
        "accuracy (%)",
        (
            Series("train/accuracy", "training, each record", "blue", "raw"),
            Series("train/accuracy", "training, smoothed", "blue", "smooth"),
            Series("val/accuracy", "validation", "orange", "points"),
            Series(
                "val/accuracy_balanced", "validation, mean over classes", "green", "points", "^"
            ),
        ),
        "Higher is better; the orange points are the top-1 accuracy on images not trained on.",
        scale=100,
        start_at_zero=True,
    ),
)


def charts_for(records: list[Record]) -> list[Chart]:
    """Return the charts for which a run has records, each with the series that it has."""
    is_pretraining = any("train/class_entropy" in record for record in records)
    wanted = (_PRETRAINING if is_pretraining else _FINETUNING) + _SHARED
    held = {key for record in records for key in record}
    charts = [
        replace(chart, series=tuple(s for s in chart.series if s.key in held)) for chart in wanted
    ]
    return [chart for chart in charts if chart.series]
