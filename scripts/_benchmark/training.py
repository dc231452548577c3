"""The subcommands of scripts/benchmark.py that train: their options, and how they are measured.

What they measure is imported where it starts: torch and timm take seconds.
"""

import argparse
from pathlib import Path
from typing import Any

from scripts._benchmark.options import add_outputs, add_rounds, add_shards, values

Measured = tuple[dict[str, Any], str]  # the record, and what is printed
Subcommands = Any  # argparse has no public name for what add_subparsers gives


def add_step(benchmarks: Subcommands) -> None:
    """Declare `step`."""
    step = benchmarks.add_parser("step", help="a training step against timm's encoder and others")
    _add_training(step)
    text = "others to run, such as vit_pytorch,transformers_mae; none (default: those installed)"
    step.add_argument("--against", metavar="NAME,...", help=text)
    add_rounds(step, seconds=20)
    add_outputs(step)


def add_run(benchmarks: Subcommands) -> None:
    """Declare `run`."""
    run = benchmarks.add_parser("run", help="from shards to new weights against the bare step")
    add_shards(run)
    _add_training(run)
    option = run.add_argument
    option("--workers", type=int, default=1, help="loader processes of each process (1)")
    text = "2: two processes of half the threads against one of all, as started runs (1)"
    option("--processes", type=int, choices=(1, 2), default=1, help=text)
    add_rounds(run, seconds=60)
    add_outputs(run)


def _add_training(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    text = "timm's name, or a CONFIG.yaml whose encoder and image size to take"
    default = "vit_small_patch16_224"
    option("--encoder", metavar="NAME", default=default, help=f"{text} ({default})")
    text = "pixels a side (the configuration's, else 224)"
    option("--image-size", type=int, default=None, help=text)
    option("--batch-size", type=int, default=16, help="images a step (16)")
    option("--precision", choices=("fp32", "bf16"), default="fp32", help="of all (fp32)")
    option("--compile", action="store_true", help="compile the models of all")
    option("--threads", type=int, default=0, help="CPU threads (0: all)")


def measure_step(asked: argparse.Namespace, _: Path) -> Measured:
    """Run `step`."""
    from scripts._benchmark import step

    record = step.measure_step(step.StepOptions(**values(asked, step.StepOptions)))
    return record, step.step_table(record)


def measure_run(asked: argparse.Namespace, folder: Path) -> Measured:
    """Run `run`."""
    from scripts._benchmark import processes, run
    from scripts._benchmark.photographs import make_photograph_shard
    from scripts._benchmark.rounds import table

    asked.shards = asked.shards or [make_photograph_shard(folder)]
    options = run.RunOptions(**values(asked, run.RunOptions))
    measure = processes.measure_processes if options.processes > 1 else run.measure_run
    record = measure(options, folder)
    return record, table(record)
