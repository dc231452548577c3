"""The benchmark `learn`: rows of an ablation, and by how much ours is ahead of each other one."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.settings import require
from scripts._ablate.plan import Plan, Row, read_plan, read_seeds
from scripts._ablate.runs import list_tasks, run_tasks
from scripts._ablate.table import write_table
from scripts._benchmark.alternatives.config import NAMES, AlternativePretrainConfig
from scripts._benchmark.installed import Package
from scripts._benchmark.options import LearnOptions, Measured
from scripts._benchmark.records import Rounds, add_values, make_record, table

OURS = "ours"  # the row that the others are held against
_MEASURES = ("fewshot", "probe", "attentive", "finetune")


def measure(options: LearnOptions, _: Path) -> Measured:
    """Pretrain and measure what is not finished.

    The record's `num_failed` counts the rows that failed, each of which is named.

    Raises:
        RunStopped: This process was asked to leave; the same command goes on.
        UserError: A key or a row is wrong.
    """
    minutes = [] if options.minutes is None else [f"budget.minutes={options.minutes:g}"]
    plan = read_plan(options.plan, [*options.overrides, *minutes])
    seeds = plan.seeds if options.seeds is None else read_seeds("--seeds", options.seeds)
    plan = plan._replace(rows=_chosen(plan, options.against))
    output = Path(options.output or f"runs/ablate/{plan.name}")
    tasks = list_tasks(plan, seeds, output)
    num_failed = run_tasks(tasks, lambda: write_table(plan, tasks, output))
    results, text = write_table(plan, tasks, output)
    settings = {
        "plan": options.plan,
        "overrides": list(options.overrides),
        "minutes": plan.minutes,
        "seeds": list(seeds),
    }
    (accuracies, pairs), *more = (_accuracies(results["rows"], measure) for measure in _MEASURES)
    record = make_record("learn", settings, accuracies, pairs)
    record |= {"table": results, "num_failed": num_failed}
    for accuracies, pairs in more:
        add_values(record, accuracies, pairs)
    return record, f"{text}\n{table(record)}" if record["ratios"] else text


def _chosen(plan: Plan, against: str | None) -> dict[str, Row]:
    """Choose ours and those asked for; leave out what is not installed, and say so."""
    names = list(plan.rows) if against is None else [OURS, *against.split(",")]
    known = ", ".join(plan.rows)
    for name in names:
        require(name in plan.rows, f"--against={against}: {name} is no row; known: {known}")
    rows = {name: row for name, row in plan.rows.items() if name in names}
    for name, package in _missing(rows):
        print(f"left out: {name} {package.complaint}", file=sys.stderr)
        rows.pop(name)
    return rows


def _missing(rows: dict[str, Row]) -> Iterator[tuple[str, Package]]:
    for name, row in list(rows.items()):
        config = row.load()
        if isinstance(config, AlternativePretrainConfig):
            package = NAMES[str(config.alternative.name)]
            if not package.is_installed:
                yield name, package


# ---------------------------------------------------------------- the record


def _accuracies(
    rows: list[dict[str, Any]], measure: str
) -> tuple[Rounds, dict[str, tuple[str, str]]]:
    """Return a measure's accuracies, of rows whose seeds are all finished, and what to divide."""
    accuracies = Rounds(f"{measure}_accuracy")
    for row in rows:
        values = best_place(row["figures"], measure)
        if values and set(row["states"].values()) == {"finished"}:
            accuracies.by_variant[row["row"]] = values
    names = list(accuracies.by_variant)
    others = [name for name in names if name != OURS] if OURS in names else []
    return accuracies, {f"{measure}_vs_{name}": (OURS, name) for name in others}


def best_place(figures: dict[str, Any], measure: str) -> list[float]:
    """Return a measure's accuracies over the seeds, of the block where their mean is highest."""
    names = {name.partition("@")[0] for name in figures if name.startswith(f"{measure}/")}
    shots = [name for name in names if name.endswith("shot")]
    figure = {
        "fewshot": max(shots, key=_num_shots, default=""),
        "probe": "probe/linear_top1",
        "attentive": "attentive/linear_top1",
        "finetune": "finetune/accuracy",
    }[measure]
    values = [value for name, value in figures.items() if name.partition("@")[0] == figure]
    best = max(values, key=lambda value: value["mean"], default=None)
    return [] if best is None else best["values"]


def _num_shots(figure: str) -> int:
    return int(figure.partition("/")[2].removesuffix("shot"))
