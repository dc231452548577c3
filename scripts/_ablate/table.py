"""The table: each row's figures over its seeds, as Markdown and as JSON."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pretrain.configuration.layers import read_yaml
from pretrain.records.logs import read_records
from scripts._ablate.jobs import read_json, state_of, write_json
from scripts._ablate.plan import Measure
from scripts._ablate.rows import Task

Figures = dict[str, float]
_PLAIN = ("steps", "images_per_second", "minutes")  # of training; always shown


def write_table(tasks: Sequence[Task], output: Path) -> str:
    """Write table.md and table.json of what is there; return the former."""
    rows = _rows(tasks)
    ablation, seeds = tasks[0].ablation, sorted({task.seed for task in tasks})
    minutes = ablation.budget.minutes
    budget = "equal steps" if minutes is None else f"equal wall time: {minutes:g} minutes"
    text = _markdown(tasks, rows, f"{ablation.name}, {budget}")
    output.mkdir(parents=True, exist_ok=True)
    record = {"name": ablation.name, "budget": budget, "seeds": seeds, "rows": rows}
    write_json(output / "table.json", record)
    (output / "table.md").write_text(text)
    return text


def _rows(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    found: dict[str, list[Task]] = {}
    for task in tasks:
        found.setdefault(task.row.name, []).append(task)
    return [_row(of_row) for of_row in found.values()]


def _row(tasks: Sequence[Task]) -> dict[str, Any]:
    """Return a row's record: its figures are of those seeds that have them."""
    by_seed = {task.seed: figures_of(task) for task in tasks}
    names = dict.fromkeys(name for figures in by_seed.values() for name in figures)
    return {
        "row": tasks[0].row.name,
        "paper": tasks[0].row.paper,
        "states": {str(task.seed): _state(task) for task in tasks},
        "figures": {
            name: _over([found[name] for found in by_seed.values() if name in found])
            for name in names
        },
    }


def _over(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "values": values}


def _state(task: Task) -> str:
    folders = [task.run_folder, *(job.folder for job in task.measures)]
    states = [state_of(folder) for folder in folders]
    failed = [state for state in states if state.startswith("failed")]
    if failed:
        return failed[0]
    if set(states) == {"finished"}:
        return "finished"
    return "missing" if set(states) == {"missing"} else "unfinished"


# ---------------------------------------------------------------- figures


def figures_of(task: Task) -> Figures:
    """Return what is known of a task: its pretraining's figures, its measures' accuracies."""
    found: Figures = {}
    if state_of(task.run_folder) == "finished":
        found |= _training(task.run_folder)
    for measure in task.row.measures:
        folder = task.folder / measure.name
        if state_of(folder) == "finished":
            found |= dict(_measured(measure, read_json(folder / "result.json")))
    return found


def _training(run: Path) -> Figures:
    """Return the last record, and the time of training: without validations and checkpoints."""
    records = read_records(run / "metrics.jsonl")
    batch_size = read_yaml(str(run / "config.yaml"))["optim"]["batch_size"]
    last, before, seconds = records[-1], 0, 0.0
    for record in records:
        images = (record["step"] - before) * batch_size
        seconds, before = seconds + images / record["speed/images_per_second"], record["step"]
    kept = ("train/", "val/", "probe/")
    figures = {name: value for name, value in last.items() if name.startswith(kept)}
    return {
        "steps": last["step"],
        "images_per_second": last["step"] * batch_size / seconds,
        "minutes": seconds / 60,
        **{name: value for name, value in figures.items() if isinstance(value, int | float)},
    }


def _measured(measure: Measure, result: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield MEASURE/figure; of several layers or poolings MEASURE/figure@layer.pooling."""
    cells = result.get("cells")
    if cells is None:
        yield f"{measure.name}/accuracy", result["accuracy"]
        return
    several = [key for key in ("layer", "pooling") if len({cell[key] for cell in cells}) > 1]
    for cell in cells:
        place = ".".join(str(cell[key]) for key in several)
        for name, value in cell.items():
            if name.startswith("accuracy/"):
                figure = f"{measure.name}/{name.removeprefix('accuracy/')}"
                yield figure + (f"@{place}" if place else ""), value


# ---------------------------------------------------------------- Markdown


def _markdown(tasks: Sequence[Task], rows: Sequence[dict[str, Any]], title: str) -> str:
    names = _columns(tasks, rows)
    has_paper = any(row["paper"] is not None for row in rows)
    header = ["row", *(["paper"] if has_paper else []), *map(_headline, names), "seeds"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        paper = [] if not has_paper else ["" if row["paper"] is None else f"{row['paper']:.5g}"]
        cells = [_cell(name, row["figures"].get(name)) for name in names]
        lines.append([row["row"], *paper, *cells, _seeds(row["states"])])
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    paper = tasks[0].ablation.paper if has_paper else None
    notes = "".join(f"\n{line}\n" for line in _notes(rows, paper))
    return f"{title}\n\n{text}{notes}"


def _columns(tasks: Sequence[Task], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Choose what table.md shows, of the figures that any row has."""
    known = dict.fromkeys(name for row in rows for name in row["figures"])
    chosen = [name for name in tasks[0].ablation.show if name in known]
    for measure in tasks[0].row.measures:
        own = [name for name in known if name.startswith(f"{measure.name}/")]
        chosen += [
            name
            for name in own
            if not measure.show or name.partition("/")[2].partition("@")[0] in measure.show
        ]
    return chosen + [name for name in _PLAIN if name in known]


def _headline(name: str) -> str:
    figure, _, place = name.partition("@")
    words = figure.replace("_", " ").replace("images per second", "images/s")
    parts = [f"layer {part}" if part.isdecimal() else part for part in place.split(".") if part]
    return " ".join([words, *parts])


def _is_fraction(name: str) -> bool:
    """Whether a figure is shown in percent; `loss` and the like are not, wherever they stand."""
    group, _, figure = name.partition("/")
    is_of_run = group in ("train", "val", "probe")
    return bool(figure) and (not is_of_run or figure.startswith("accuracy") or group == "probe")


def _cell(name: str, figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "missing"
    mean, deviation = figure["mean"], figure["deviation"]
    if name in ("steps", "images_per_second"):
        return f"{mean:.0f}"
    if name == "minutes":
        return f"{mean:.2f}"
    scale, digits, unit = (100, 2, " %") if _is_fraction(name) else (1, 4, "")
    spread = "" if deviation is None else f" ± {scale * deviation:.{digits}f}"
    return f"{scale * mean:.{digits}f}{spread}{unit}"


def _seeds(states: dict[str, str]) -> str:
    done = sum(state == "finished" for state in states.values())
    if done == len(states):
        return "one seed" if done == 1 else str(done)
    worst = next((s for s in states.values() if s.startswith("failed")), None)
    rest = "failed" if worst else next(s for s in states.values() if s != "finished")
    return rest if done == 0 else f"{done} of {len(states)}, rest {rest}"


def _notes(rows: Sequence[dict[str, Any]], paper: str | None) -> Iterator[str]:
    if paper is not None:
        yield f"paper: {paper}."
    yield "Mean ± sample deviation over seeds. Minutes are of training alone, without validation."
    for row in rows:
        for seed, state in row["states"].items():
            if state.startswith("failed"):
                yield f"- {row['row']}, seed {seed}, {state}"
