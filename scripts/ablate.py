"""Compare rows of a table: each is pretrained, and its encoder measured, over several seeds.

    python scripts/ablate.py NAME [key=value ...]
    python scripts/ablate.py FILE.yaml [--output DIR] [--seeds 0,1,2] [--rows ROW,ROW] [--table]

NAME is configs/ablate/NAME.yaml (targets, masks, positions, ratio, pooling, patch_size, spectrum,
learn or vilt): copy one to make your own. `key=value` is of all rows' pretraining,
`measures.NAME.key=value` of a measure, `budget.minutes=5` gives all rows the same time of
training in place of the same steps: a short run of each row, thrown away, measures its speed, and
the number of steps follows from it. So give such a table a machine of its own.

Each step is a command that a user would type. The same command again goes on where it was, and what
is finished is not run again. A run refuses other keys than it began with; a measure is made anew.
Two processes share the rows.

DIR (runs/ablate/NAME) holds table.md, table.json, and the runs: DIR/ROW/seed-0. `--table` writes
the table of what is there. Status 1: a row failed; the others went on.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.settings import OneLineParser, require, require_utf8, run_entry_point
from scripts._ablate.plan import read_plan, read_seeds
from scripts._ablate.runs import list_tasks, run_tasks
from scripts._ablate.table import write_table


def main(arguments: list[str]) -> None:
    """Run `python scripts/ablate.py ARGUMENTS`; leave with status 1 where a row failed."""
    require_utf8(arguments)
    options = _parse(arguments)
    plan = read_plan(options.plan, options.overrides)
    seeds = plan.seeds if options.seeds is None else read_seeds("--seeds", options.seeds)
    output = Path(options.output or f"runs/ablate/{plan.name}")
    names = list(plan.rows) if options.rows is None else options.rows.split(",")
    for name in names:
        known = ", ".join(plan.rows)
        require(name in plan.rows, f"--rows={options.rows}: {name} is no row; known: {known}")
    tasks = list_tasks(plan, seeds, output)
    chosen = [] if options.table else [task for task in tasks if task.row.name in names]
    failures = run_tasks(chosen, lambda: write_table(plan, tasks, output))
    _, text = write_table(plan, tasks, output)
    print(text, end="")
    if failures:
        sys.exit(1)


def _parse(arguments: list[str]) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(description=__doc__, formatter_class=formatter)
    option = parser.add_argument
    option("plan", metavar="NAME|FILE.yaml", help="of configs/ablate, or your own")
    option("overrides", nargs="*", metavar="key=value", help="of all rows")
    option("--output", metavar="DIR", help="(runs/ablate/NAME)")
    option("--seeds", metavar="0,1,2", help="in place of the YAML's")
    option("--rows", metavar="ROW,ROW", help="these alone")
    option("--table", action="store_true", help="write the table of what is there; run nothing")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    run_entry_point(main)
