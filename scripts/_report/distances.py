"""Whether a run learnt more than copying: its last validation by distance to what is visible."""

from dataclasses import replace

from pretrain.pictures.page import table
from scripts._report.drawing import chart
from scripts._report.figures import Line, Plot, Section
from scripts._report.findings import (
    Record,
    common_distances,
    distance_name,
    distances,
    newest,
    percent,
)
from scripts._report.history import Run

ACROSS = "distance to the nearest visible patch, in patches"
_MODEL = Line("the model", "blue", "joined")
_COPYING = Line("copying the nearest visible patch", "grey", "dashed", key="neighbour")


def by_distance(run: Run) -> Section:
    """Show the last validation by distance; an empty section for a run that has none."""
    _, step, figures = newest(run.records)
    bins = distances(figures)
    title = "Does it learn more than copying?"
    if not bins:
        return Section(title)
    plots = [_losses(run)] if not run.has_classes else [_ACCURACIES, _losses(run)]
    charts = tuple(chart(_fill(plot, figures)) for plot in plots)
    note = (
        f"Masked patches of the last validation, at step {step:,.0f}. Far from what is "
        "visible copying fails: there only what was learnt of images helps. Distances of fewer "
        "than 1 % of the patches are not drawn."
    )
    return Section(title, _table(run, figures, bins), charts, (note,))


def _fill(plot: Plot, figures: Record) -> Plot:
    """Fill in the values by distance."""
    numbers = common_distances(figures)
    lines = (
        replace(line, points=points_at(numbers, line.key, figures, plot.scale))
        for line in plot.lines
    )
    return replace(plot, lines=tuple(line for line in lines if line.points))


def points_at(
    numbers: list[int], key: str, figures: Record, scale: float
) -> tuple[tuple[float, float], ...]:
    """Return (distance, value) of a measure at those distances where a record has it."""
    names = {num: f"{key}_distance_{num}" for num in numbers}
    return tuple((num, scale * figures[name]) for num, name in names.items() if name in figures)


_ACCURACIES = Plot(
    "Accuracy by distance",
    "accuracy (%)",
    (replace(_MODEL, key="accuracy"), _COPYING),
    "Higher is better; where the blue line stays above the dashed one, the model knows more "
    "than its neighbour. Copying gets worse with the distance.",
    ACROSS,
)


def _losses(run: Run) -> Plot:
    beats = " Where it stays below the dashed line, the model knows more than its neighbour."
    return Plot(
        "Loss by distance",
        f"loss ({run.unit})",
        (replace(_MODEL, key="loss"), *([] if run.has_classes else [_COPYING])),
        "Lower is better; a blue line that climbs means that patches are harder the farther they "
        "are from what is visible." + (beats * (not run.has_classes)),
        ACROSS,
        start_at_zero=False,
    )


def _table(run: Run, figures: Record, bins: list[int]) -> str:
    columns = {
        "ratio": "Of the masked patches",
        "loss": f"Loss ({run.unit})",
        "accuracy": "Accuracy",
        "neighbour": "Copying the nearest",
    }
    held = {key: label for key, label in columns.items() if f"{key}_distance_{bins[0]}" in figures}
    rows = [
        [distance_name(num, figures), *(_value(run, key, num, figures) for key in held)]
        for num in bins
    ]
    return table(["Distance (patches)", *held.values()], rows)


def _value(run: Run, key: str, num: int, figures: Record) -> str:
    value = figures.get(f"{key}_distance_{num}")
    if value is None:
        return ""
    is_error = key == "loss" or (key == "neighbour" and not run.has_classes)
    if is_error:
        return f"{value:#.4g}"
    return "under 0.1 %" if 0 < value < 5e-4 else percent(value)
