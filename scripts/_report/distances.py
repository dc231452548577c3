"""Whether a run learnt more than copying: its last validation by distance to what is visible."""

from scripts._report.drawing import chart
from scripts._report.figures import Kind, Line, Plot, Section
from scripts._report.findings import (
    Record,
    common_distances,
    distance_name,
    distances,
    newest,
    percent,
)
from scripts._report.history import Run
from scripts._report.page import table

_ACROSS = "distance to the nearest visible patch, in patches"


def by_distance(run: Run, prefix: str = "") -> Section:
    """Show the last validation by distance; an empty section for a run that has none."""
    _, record, figures = newest(run.records)
    bins = distances(figures)
    title = "Does it learn more than copying?"
    if not bins:
        return Section(title)
    drawn = common_distances(figures)
    plots = [plot for plot in (_accuracies(figures, drawn), _losses(run, figures, drawn)) if plot]
    notes = (
        f"Masked patches of the last validation, at step {record['step']:,.0f}. Far from what is "
        "visible copying fails: there only what was learnt of images helps. Distances of fewer "
        "than 1 % of the patches are not drawn.",
    )
    return Section(
        title,
        _table(run, figures, bins),
        tuple(chart(plot, prefix) for plot in plots),
        notes,
    )


def _lines(figures: Record, bins: list[int], wanted: dict[str, Line], scale: float) -> list[Line]:
    """Fill lines with the figures by distance; those that the record lacks are left out."""
    lines: list[Line] = []
    for key, look in wanted.items():
        points = [
            (float(num), scale * figures[f"{key}_distance_{num}"])
            for num in bins
            if f"{key}_distance_{num}" in figures
        ]
        if points:
            lines.append(Line(look.label, look.colour, look.kind, tuple(points), look.marker))
    return lines


def _look(label: str, colour: str, kind: Kind, marker: str = "o") -> Line:
    return Line(label, colour, kind, (), marker)


def _accuracies(figures: Record, bins: list[int]) -> Plot | None:
    if f"accuracy_distance_{bins[0]}" not in figures:
        return None
    wanted = {
        "accuracy": _look("the model", "blue", "joined"),
        "neighbour": _look("copying the nearest visible patch", "grey", "dashed"),
    }
    return Plot(
        "Accuracy by distance",
        "accuracy (%)",
        tuple(_lines(figures, bins, wanted, 100)),
        "Higher is better; where the blue line stays above the dashed one, the model knows more "
        "than its neighbour. Copying gets worse with the distance.",
        _ACROSS,
        start_at_zero=True,
    )


def _losses(run: Run, figures: Record, bins: list[int]) -> Plot:
    wanted = {"loss": _look("the model", "blue", "joined")}
    if not run.has_classes:
        wanted["neighbour"] = _look("copying the nearest visible patch", "grey", "dashed")
    beats = " Where it stays below the dashed line, the model knows more than its neighbour."
    return Plot(
        "Loss by distance",
        f"loss ({run.unit})",
        tuple(_lines(figures, bins, wanted, 1)),
        "Lower is better; a blue line that climbs means that patches are harder the farther they "
        "are from what is visible." + (beats * (not run.has_classes)),
        _ACROSS,
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
    return f"{value:#.4g}" if is_error else _share(value)


def _share(fraction: float) -> str:
    return "under 0.1 %" if 0 < fraction < 5e-4 else percent(fraction)
