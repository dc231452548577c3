"""Several runs' curves over each other, a chart a measure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from scripts._report.curves import smooth
from scripts._report.figures import PALETTE, Kind, Line, Plot
from scripts._report.findings import common_distances, newest
from scripts._report.history import Run

_COLOURS = tuple(PALETTE)
_MARKERS = ("o", "s", "^", "D", "v", "X")
_KINDS: tuple[Kind, ...] = ("line", "dashed", "dotted")  # of the first 8 runs, the next, the third
MOST = len(_COLOURS) * len(_KINDS)


@dataclass(frozen=True)
class Measure:
    """One chart.

    Attributes:
        key: Of the records.
        title: Heading.
        axis: Label of the vertical axis.
        reading: How to read it.
        scale: Factor on all values; 100 for percent.
        is_loss: Of one target only: runs with different ones have charts of their own.
    """

    key: str
    title: str
    axis: str
    reading: str
    scale: float = 1.0
    is_loss: bool = False

    @property
    def is_noisy(self) -> bool:
        """Whether it is of single batches: a running mean is drawn."""
        return self.key.startswith(("train/", "speed/")) or self.key == "optim/grad_norm"


_LOWER, _HIGHER = "Lower is better.", "Higher is better."
_MEASURES = (
    Measure(
        "val/loss",
        "Validation loss",
        "loss ({unit})",
        f"{_LOWER} On images not trained on; other masks or ratios make it another task.",
        is_loss=True,
    ),
    Measure(
        "train/loss",
        "Training loss",
        "loss ({unit})",
        f"{_LOWER} Where it falls and that of validation rises, a run overfits.",
        is_loss=True,
    ),
    Measure(
        "val/accuracy_mask",
        "Validation accuracy on masked patches",
        "accuracy (%)",
        f"{_HIGHER} The task itself, on images not trained on.",
        100,
    ),
    Measure(
        "train/accuracy_mask",
        "Training accuracy on masked patches",
        "accuracy (%)",
        f"{_HIGHER} The task itself, on training batches.",
        100,
    ),
    Measure(
        "val/map",
        "Mean average precision",
        "mean average precision (%)",
        f"{_HIGHER} On images not trained on, the mean over classes.",
        100,
    ),
    Measure(
        "probe/knn",
        "Frozen features, k nearest neighbours",
        "accuracy (%)",
        f"{_HIGHER} What the encoder is worth for other work; fair between all targets and masks.",
        100,
    ),
    Measure(
        "probe/5shot",
        "Frozen features, 5 images a class",
        "accuracy (%)",
        f"{_HIGHER} What the encoder is worth for other work; fair between all targets and masks.",
        100,
    ),
    Measure(
        "speed/images_per_second",
        "Throughput",
        "images per second",
        "Higher is faster; all processes together.",
    ),
    Measure(
        "optim/grad_norm",
        "Gradient norm",
        "norm before clipping",
        "A steady level is healthy; a climb or tall spikes ask for a lower learning rate.",
    ),
    Measure(
        "optim/lr",
        "Learning rate",
        "learning rate",
        "What each run was told for each step; it explains bends in the other curves.",
    ),
)
_FINE_TUNED = Measure(
    "val/accuracy",
    "Validation accuracy",
    "accuracy (%)",
    f"{_HIGHER} Top 1, on images not trained on.",
    100,
)


def overlays(named: dict[str, Run]) -> tuple[list[Plot], str]:
    """Return a chart for each measure that runs have, and a note on all of them.

    Runs of one batch size are drawn over steps, others over the images that they had seen.
    """
    is_by_step = len({run.batch_size for run in named.values()}) == 1
    looks = {name: _look(name, number) for number, name in enumerate(named)}
    across = "step" if is_by_step else "images seen"
    measures = _MEASURES if next(iter(named.values())).is_pretraining else (_FINE_TUNED, *_MEASURES)
    plots: list[Plot] = []
    for measure in measures:
        for suffix, group in _groups(measure, named):
            unit = next(iter(group.values())).unit
            lines = [
                _line(run, measure, looks[name], 1 if is_by_step else run.batch_size)
                for name, run in group.items()
            ]
            plots.append(
                Plot(
                    measure.title + suffix,
                    measure.axis.format(unit=unit),
                    tuple(line for line in lines if line.points),
                    measure.reading,
                    across,
                    start_at_zero=not measure.is_loss,
                    is_of_runs=True,
                )
            )
    plots.append(_gains(named, looks))
    why = "" if is_by_step else " The runs' batches differ in size, so steps are counted in images."
    note = "Curves of single batches are running means, over a tenth of a run's records." + why
    return [plot for plot in plots if plot.lines], note


def _look(name: str, number: int) -> Line:
    """Give a run a colour, a marker and, past the last colour, another stroke."""
    kind = _KINDS[number // len(_COLOURS)]
    marker = _MARKERS[number % len(_MARKERS)]
    return Line(name, _COLOURS[number % len(_COLOURS)], kind, (), marker)


def _line(run: Run, measure: Measure, look: Line, images: int) -> Line:
    points = [
        (images * record["step"], measure.scale * record[measure.key])
        for record in run.records
        if measure.key in record
    ]
    if measure.is_noisy:
        points = smooth(points)
    is_sparse = measure.key.startswith(("val/", "probe/")) and look.kind == "line"
    return replace(look, kind="joined" if is_sparse else look.kind, points=tuple(points))


def _groups(measure: Measure, named: dict[str, Run]) -> Iterator[tuple[str, dict[str, Run]]]:
    """Yield runs that a measure can compare, and how their chart's title ends."""
    tasks = {name: run.task for name, run in named.items()}
    if not measure.is_loss or len(set(tasks.values())) == 1:
        yield "", named
        return
    for task in dict.fromkeys(tasks.values()):
        yield f", target {task}", {name: run for name, run in named.items() if tasks[name] == task}


def _gains(named: dict[str, Run], looks: dict[str, Line]) -> Plot:
    """Draw by how much each run beats copying, over the distance to what is visible."""
    lines: list[Line] = []
    for name, run in named.items():
        _, _, figures = newest(run.records)
        points = [
            (float(num), 100 * (figures[key] - figures[f"neighbour_distance_{num}"]))
            for num in common_distances(figures)
            if (key := f"accuracy_distance_{num}") in figures
        ]
        kind: Kind = "joined" if looks[name].kind == "line" else looks[name].kind
        lines.append(replace(looks[name], kind=kind, points=tuple(points)))
    return Plot(
        "Gain over copying, by distance",
        "accuracy above copying (points)",
        tuple(line for line in lines if line.points),
        "Higher is better: by how many percentage points the model beats copying the nearest "
        "visible patch, at each distance from it. At 0 it knows no more than its neighbour's "
        "colour. Distances at which fewer than 1 % of the patches are would be noise.",
        "distance to the nearest visible patch, in patches",
        is_of_runs=True,
    )
