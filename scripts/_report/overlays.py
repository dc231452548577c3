"""Several runs' curves over each other, a chart a measure."""

from collections.abc import Iterator
from dataclasses import replace

from scripts._report.charts import points_of, smooth
from scripts._report.distances import ACROSS
from scripts._report.figures import PALETTE, Line, LineKind, Plot
from scripts._report.findings import common_distances, newest
from scripts._report.history import Run

_COLOURS = tuple(PALETTE)
_MARKERS = ("o", "s", "^", "D", "v", "X")
_STROKES: tuple[LineKind, ...] = (
    "line",
    "dashed",
    "dotted",
)  # of the first 8 runs, the next, the third
MOST = len(_COLOURS) * len(_STROKES)

_FAIR = (
    "Higher is better. What the encoder is worth for other work; fair between all targets and "
    "masks."
)
_FINE_TUNED = {
    "val/accuracy": (
        "Validation accuracy",
        "accuracy (%)",
        "Higher is better. Top 1, on images not trained on.",
    )
}
_MEASURES = {  # a key of the records -> its chart's title, axis and reading
    "val/loss": (
        "Validation loss",
        "loss ({unit})",
        "Lower is better. On images not trained on; other masks or ratios make it another task.",
    ),
    "train/loss": (
        "Training loss",
        "loss ({unit})",
        "Lower is better. Where it falls and that of validation rises, a run overfits.",
    ),
    "val/accuracy_mask": (
        "Validation accuracy on masked patches",
        "accuracy (%)",
        "Higher is better. The task itself, on images not trained on.",
    ),
    "train/accuracy_mask": (
        "Training accuracy on masked patches",
        "accuracy (%)",
        "Higher is better. The task itself, on training batches.",
    ),
    "val/accuracy_matching": (
        "Does the caption belong to the image?",
        "accuracy (%)",
        "Higher is better; 50 % is guessing. On pairs not trained on, half of them swapped.",
    ),
    "val/accuracy_words": (
        "Hidden words",
        "accuracy (%)",
        "Higher is better. On captions not trained on, with their images.",
    ),
    "val/accuracy_words_blank": (
        "Hidden words, without the image",
        "accuracy (%)",
        "What the text alone gives away: the same words with blank images. The distance of a run's "
        "curve above from this one is what it reads off the image.",
    ),
    "val/map": (
        "Mean average precision",
        "mean average precision (%)",
        "Higher is better. On images not trained on, the mean over classes.",
    ),
    "probe/knn": ("Frozen features, k nearest neighbours", "accuracy (%)", _FAIR),
    "probe/5shot": ("Frozen features, 5 images a class", "accuracy (%)", _FAIR),
    "probe/rankme": (
        "Effective rank (RankMe)",
        "dimensions",
        "How many dimensions the pooled features fill, without labels. It compares runs of one "
        "objective and one width, and more is not better for sure.",
    ),
    "speed/images_per_second": (
        "Throughput",
        "images per second",
        "Higher is faster; all processes together.",
    ),
    "optim/grad_norm": (
        "Gradient norm",
        "norm before clipping",
        "A steady level is healthy; a climb or tall spikes ask for a lower learning rate.",
    ),
    "optim/lr": (
        "Learning rate",
        "learning rate",
        "The rate of each step; it explains bends in the other curves.",
    ),
}


def overlays(named: dict[str, Run]) -> tuple[list[Plot], str]:
    """Return a chart for each measure that runs have, and a note on all of them.

    Runs of one batch size are drawn over steps, others over the images that they had seen.
    """
    is_by_step = len({run.batch_size for run in named.values()}) == 1
    looks = {name: _look(name, number) for number, name in enumerate(named)}
    is_tuned = any(run.is_tuned for run in named.values())
    measures = _FINE_TUNED | _MEASURES if is_tuned else _MEASURES
    plots = [
        _plot(key, suffix, group, looks, is_by_step=is_by_step)
        for key in measures
        for suffix, group in _groups(key, named)
    ]
    why = "" if is_by_step else " The runs' batches differ in size, so steps are counted in images."
    note = "Curves of single batches are running means, over a tenth of a run's records." + why
    return [plot for plot in (*plots, _gains(named, looks)) if plot.lines], note


def _look(name: str, number: int) -> Line:
    """Give a run a colour, a marker and, past the last colour, another stroke."""
    stroke = _STROKES[number // len(_COLOURS)]
    marker = _MARKERS[number % len(_MARKERS)]
    return Line(name, _COLOURS[number % len(_COLOURS)], stroke, marker=marker)


def _groups(key: str, named: dict[str, Run]) -> Iterator[tuple[str, dict[str, Run]]]:
    """Yield runs that a measure can compare, and how their chart's title ends."""
    tasks = {name: run.task for name, run in named.items()}
    if not key.endswith("/loss") or len(set(tasks.values())) == 1:
        yield "", named
        return
    for task in dict.fromkeys(tasks.values()):
        yield f", {task}", {name: run for name, run in named.items() if tasks[name] == task}


def _plot(
    key: str, suffix: str, runs: dict[str, Run], looks: dict[str, Line], *, is_by_step: bool
) -> Plot:
    title, axis, reading = (_FINE_TUNED | _MEASURES)[key]
    plot = Plot(
        title + suffix,
        axis.format(unit=next(iter(runs.values())).unit),
        (),
        reading,
        "step" if is_by_step else "images seen",
        start_at_zero=not key.endswith("/loss"),
        is_of_runs=True,
    )
    lines = (
        _line(run, key, looks[name], plot.scale, 1 if is_by_step else run.batch_size)
        for name, run in runs.items()
    )
    return replace(plot, lines=tuple(line for line in lines if line.points))


def _line(run: Run, key: str, look: Line, scale: float, images: int) -> Line:
    points = points_of(run.records, key, scale)
    if key.startswith(("train/", "speed/")) or key == "optim/grad_norm":  # of single batches
        points = smooth(points)
    line = _with_markers(look) if key.startswith(("val/", "probe/")) else look
    return replace(line, points=tuple((images * step, value) for step, value in points))


def _with_markers(look: Line) -> Line:
    return replace(look, kind="joined") if look.kind == "line" else look


def _gains(named: dict[str, Run], looks: dict[str, Line]) -> Plot:
    """Draw by how much each run beats copying, over the distance to what is visible."""
    lines: list[Line] = []
    for name, run in named.items():
        figures = newest(run.records).figures
        points = [
            (float(num), 100 * (figures[key] - figures[f"neighbour_distance_{num}"]))
            for num in common_distances(figures)
            if (key := f"accuracy_distance_{num}") in figures
        ]
        lines.append(replace(_with_markers(looks[name]), points=tuple(points)))
    return Plot(
        "Gain over copying, by distance",
        "accuracy above copying (points)",
        tuple(line for line in lines if line.points),
        "Higher is better: by how many percentage points the model beats copying the nearest "
        "visible patch, at each distance from it. At 0 it knows no more than its neighbour's "
        "colour. Distances at which fewer than 1 % of the patches are would be noise.",
        ACROSS,
        start_at_zero=False,
        is_of_runs=True,
    )
