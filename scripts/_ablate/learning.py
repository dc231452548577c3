"""The benchmark `learn`: rows of an ablation, and by how much ours is ahead of each other one."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.settings import require
from scripts._ablate.plan import Plan, Row, read_plan, read_seeds
from scripts._ablate.runs import list_tasks, run_tasks
from scripts._ablate.table import write_table
from scripts._benchmark.alternatives.config import NAMES, AlternativePretrainConfig
from scripts._benchmark.installed import is_installed
from scripts._benchmark.rounds import Speeds, add_values, make_record, table

OURS = "ours"  # the row that the others are held against
_MEASURES = ("fewshot", "probe", "finetune")


def measure_learn(asked: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Pretrain and measure what is not finished; return the record, and what is printed.

    The record's `num_failed` counts what failed, each of which is said.

    Args:
        asked: `plan`, `overrides`, `minutes`, `seeds`, `against`, `output`.

    Raises:
        RunStopped: This process was asked to leave; the same command goes on.
        UserError: A key or a row is wrong.
    """
    minutes = [] if asked.minutes is None else [f"budget.minutes={asked.minutes:g}"]
    plan = read_plan(asked.plan, [*asked.overrides, *minutes])
    seeds = plan.seeds if asked.seeds is None else read_seeds("--seeds", asked.seeds)
    plan = plan._replace(rows=_chosen(plan, asked.against))
    output = Path(asked.output or f"runs/ablate/{plan.name}")
    tasks = list_tasks(plan, seeds, output)
    num_failed = run_tasks(tasks, lambda: write_table(plan, tasks, output))
    found, text = write_table(plan, tasks, output)
    settings = {
        "plan": asked.plan,
        "overrides": list(asked.overrides),
        "minutes": plan.minutes,
        "seeds": list(seeds),
    }
    (accuracies, pairs), *more = (_accuracies(found["rows"], measure) for measure in _MEASURES)
    record = make_record("learn", settings, accuracies, pairs)
    record |= {"table": found, "num_failed": num_failed}
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
        print(
            f"row {name} is left out: it needs {package}, which is not installed; run pip install "
            "-e '.[bench]' here",
            file=sys.stderr,
        )
        rows.pop(name)
    return rows


def _missing(rows: dict[str, Row]) -> Iterator[tuple[str, str]]:
    for name, row in list(rows.items()):
        config = row.load()
        if isinstance(config, AlternativePretrainConfig):
            module, package = NAMES[str(config.alternative.name)]
            if not is_installed(module):
                yield name, package


# ---------------------------------------------------------------- the record


def _accuracies(
    rows: list[dict[str, Any]], measure: str
) -> tuple[Speeds, dict[str, tuple[str, str]]]:
    """Return a measure's accuracies, of rows whose seeds are all finished, and what to divide."""
    accuracies = Speeds(f"{measure}_accuracy")
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
        "finetune": "finetune/accuracy",
    }[measure]
    found = [value for name, value in figures.items() if name.partition("@")[0] == figure]
    best = max(found, key=lambda value: value["mean"], default=None)
    return [] if best is None else best["values"]


def _num_shots(figure: str) -> int:
    return int(figure.partition("/")[2].removesuffix("shot"))
