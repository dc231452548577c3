"""The table: each row's figures over its seeds, as Markdown and as JSON."""

import json
import statistics
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from data.shards import atomic_write
from pretrain.configuration.layers import read_yaml
from pretrain.records.logs import read_records
from scripts._ablate.plan import Plan
from scripts._ablate.runs import Task

_FORMATS = {"steps": ".0f", "images_per_second": ".0f", "minutes": ".2f"}  # always shown
_NOTE = "Mean ± sample deviation over seeds. Minutes are of training alone, without validation."


def write_table(plan: Plan, tasks: Sequence[Task], output: Path) -> tuple[dict[str, Any], str]:
    """Write table.json and table.md of what is there, and return both."""
    rows = [_row([task for task in tasks if task.row is row]) for row in plan.rows.values()]
    budget = "steps" if plan.minutes is None else f"training time: {plan.minutes:g} minutes"
    seeds = sorted({task.seed for task in tasks})
    record = {"name": plan.name, "budget": f"equal {budget}", "seeds": seeds, "rows": rows}
    text = "\n".join([f"{plan.name}, equal {budget}", "", *_markdown(plan, rows), ""])
    output.mkdir(parents=True, exist_ok=True)
    with atomic_write(output / "table.json") as file:
        file.write(json.dumps(record, indent=1).encode() + b"\n")
    (output / "table.md").write_text(text)
    return record, text


def _row(tasks: Sequence[Task]) -> dict[str, Any]:
    """Return a row's record: its figures are of those seeds that have them."""
    values: dict[str, list[float]] = {}
    for task in tasks:
        for name, value in _figures(task):
            values.setdefault(name, []).append(value)
    return {
        "row": tasks[0].row.name,
        "paper": tasks[0].row.paper,
        "states": {str(task.seed): task.state for task in tasks},
        "figures": {name: _summary(of_seeds) for name, of_seeds in values.items()},
    }


def _summary(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "values": values}


# ---------------------------------------------------------------- figures


def _figures(task: Task) -> Iterator[tuple[str, float]]:
    """Yield what is known of a task: its pretraining's figures, its measures' accuracies."""
    if task.pretraining.state == "finished":
        yield from _training(task.pretraining.folder)
    for name, job in task.measures.items():
        if job.state == "finished":
            yield from _measured(name, json.loads((job.folder / "result.json").read_text()))


def _training(run: Path) -> Iterator[tuple[str, float]]:
    """Yield the last record, and the time of training: without validations and checkpoints."""
    records = read_records(run / "metrics.jsonl")
    batch_size = read_yaml(str(run / "config.yaml"))["optim"]["batch_size"]
    seconds, before = 0.0, 0
    for record in records:
        images = (record["step"] - before) * batch_size
        seconds, before = seconds + images / record["speed/images_per_second"], record["step"]
    yield "steps", before
    yield "images_per_second", before * batch_size / seconds
    yield "minutes", seconds / 60
    for name, value in records[-1].items():
        if name.startswith(("train/", "val/", "probe/")) and isinstance(value, int | float):
            yield name, value


def _measured(measure: str, result: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield MEASURE/figure; of several layers or poolings MEASURE/figure@layer.pooling."""
    cells = result.get("cells", [{"accuracy/accuracy": result.get("accuracy")}])
    several = [key for key in ("layer", "pooling") if len({cell.get(key) for cell in cells}) > 1]
    for cell in cells:
        view = ".".join(str(cell[key]) for key in several)
        for name, value in cell.items():
            group, _, figure = name.partition("/")
            if group == "accuracy":
                yield f"{measure}/{figure}{'@' if view else ''}{view}", value


# ---------------------------------------------------------------- Markdown


def _markdown(plan: Plan, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    names = _shown(plan, dict.fromkeys(name for row in rows for name in row["figures"]))
    paper = ["paper"] if any(row["paper"] is not None for row in rows) else []
    header = ["row", *paper, *map(_headline, names), "seeds"]
    for cells in (header, ["---"] * len(header), *(_cells(row, paper, names) for row in rows)):
        yield f"| {' | '.join(cells)} |"
    yield from ["", f"paper: {plan.paper}."] if paper else []
    yield from ["", _NOTE]
    for row in rows:
        for seed, state in row["states"].items():
            if state.startswith("failed"):
                yield from ["", f"- {row['row']}, seed {seed}, {state}"]


def _shown(plan: Plan, known: Collection[str]) -> list[str]:
    """Choose the figures of table.md among those that any row has."""
    shown = [name for name in plan.show if name in known]
    for measure in plan.measures:
        for name in known:
            group, _, figure = name.partition("@")[0].partition("/")
            if group == measure.name and figure in (measure.show or [figure]):
                shown.append(name)
    return shown + [name for name in _FORMATS if name in known]


def _headline(name: str) -> str:
    figure, _, view = name.partition("@")
    words = figure.replace("images_per_second", "images/s").replace("_", " ")
    parts = [f"layer {part}" if part.isdecimal() else part for part in view.split(".") if part]
    return " ".join([words, *parts])


def _cells(row: dict[str, Any], paper: Sequence[str], names: Sequence[str]) -> list[str]:
    published = ["" if row["paper"] is None else f"{row['paper']:.5g}" for _ in paper]
    figures = [_cell(name, row["figures"].get(name)) for name in names]
    states = list(row["states"].values())
    others = [state.partition(":")[0] for state in states if state != "finished"]
    done = f"{len(states) - len(others)} of {len(states)}, {others[0]}" if others else len(states)
    return [row["row"], *published, *figures, str(done)]


def _cell(name: str, figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "missing"
    if name in _FORMATS:
        return f"{figure['mean']:{_FORMATS[name]}}"
    group, _, last = name.partition("/")
    is_loss = group in ("train", "val") and not last.startswith("accuracy")
    is_fraction = not is_loss and not last.startswith(("rankme", "alpha"))
    scale, digits, unit = (100, 2, " %") if is_fraction else (1, 4, "")
    deviation = figure["deviation"]
    spread = "" if deviation is None else f" ± {scale * deviation:.{digits}f}"
    return f"{scale * figure['mean']:.{digits}f}{spread}{unit}"
