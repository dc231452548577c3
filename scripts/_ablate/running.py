"""Running an ablation's tasks one after the other, and its table after each."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.settings import require
from scripts._ablate.jobs import Children, JobFailed
from scripts._ablate.plan import Ablation
from scripts._ablate.reading import seeds_of
from scripts._ablate.rows import Task
from scripts._ablate.table import write_table


def tasks_of(ablation: Ablation, seeds: Iterable[int], output: Path) -> list[Task]:
    """List all rows with all seeds."""
    return [Task(ablation, row, seed, output) for row in ablation.rows.values() for seed in seeds]


def run_tasks(tasks: Sequence[Task], all_tasks: Sequence[Task]) -> int:
    """Run what is not finished; return how many tasks failed, each of which is said.

    Args:
        tasks: To run.
        all_tasks: What the table shows.

    Raises:
        RunStopped: This process was asked to leave.
    """
    failures, postponed = 0, list[Task]()
    with Children() as children:
        for task in tasks:
            if task.is_taken:  # another process is at it; the next may be free
                postponed.append(task)
            else:
                failures += _try(task, children, all_tasks)
        for task in postponed:
            failures += _try(task, children, all_tasks)
    return failures


def _try(task: Task, children: Children, all_tasks: Sequence[Task]) -> bool:
    """Run a task and bring the table up to date; return whether it failed."""
    with children.lock(task.lock, task.title):
        try:
            task.run(children)
        except JobFailed as error:
            print(f"{task.title} failed: {error}", file=sys.stderr, flush=True)
            return True
        finally:
            write_table(all_tasks, task.output)
    return False


def seeds_from(text: str) -> tuple[int, ...]:
    """Read what `--seeds` was given."""
    parts = text.split(",")
    is_right = all(part.isdecimal() for part in parts)
    require(is_right, f"--seeds={text} is no list of numbers from 0; try --seeds=0,1,2")
    return seeds_of([int(part) for part in parts], "--seeds")
