"""Speed of two processes of half the threads against one process of all: started runs, in turns."""

import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from data.commands import CommandFailed, run_logged
from data.devices import num_cores
from data.settings import RunStopped, require
from pretrain.configuration.load import to_yaml
from pretrain.records.logs import read_records
from scripts._benchmark.options import RunOptions
from scripts._benchmark.records import Rounds, make_record
from scripts._benchmark.training.subject import Subject

ONE, TWO = "one process", "two processes"
RATIOS = {"two_processes_vs_one": (TWO, ONE)}
_NUM_PROCESSES = 2
_RUN = Path(__file__).resolve().parents[3] / "pretrain/run.py"
_LEFT_OUT = 5  # first steps: memory is allocated, the loader's first batches wait for images
_FIRST = 8  # steps of the first run, which tells how many a turn needs
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={_NUM_PROCESSES}")


def measure_processes(options: RunOptions, shards: list[str], folder: Path) -> dict[str, Any]:
    """Start a run of one process, then the same of two, as a user starts them; and so on.

    Each turn is a run of its own, of equal batches and equal numbers of steps, with a checkpoint on
    its way. Its speed is that of its metrics.jsonl, which leaves checkpoints out, without the first
    steps.

    Args:
        options: Their threads are those of all processes together.
        shards: Read by the runs.
        folder: An empty one, for runs.

    Returns:
        The record.

    Raises:
        UserError: The encoder cannot be used; threads or images do not divide; there is a GPU.
        RunStopped: A run ended badly.
    """
    commands = commands_of(options, shards, folder)
    size, speeds = options.batch_size, Rounds()
    speed = measure_command(commands[ONE], _FIRST, folder)
    steps = _LEFT_OUT + max(1, math.ceil(options.seconds * speed / size))
    for _ in range(options.rounds):
        for name, command in commands.items():
            speeds.add(name, measure_command(command, steps, folder))
    about = {"image_size": Subject.of(options).side, "steps": steps}
    record = make_record("processes", asdict(options) | about, speeds, RATIOS)
    record["machine"]["threads"] = _num_threads(options)
    return record


def _num_threads(options: RunOptions) -> int:
    """Return the threads of all processes together."""
    return options.threads or num_cores()


def commands_of(options: RunOptions, shards: list[str], folder: Path) -> dict[str, list[str]]:
    """Return how both are started, without their steps; their configuration goes to the folder.

    Raises:
        UserError: As `measure_processes`.
    """
    require(
        not torch.cuda.is_available(),
        "--processes=2 compares processes on CPU cores, and there is a GPU; hide it with "
        "CUDA_VISIBLE_DEVICES=''",
    )
    threads = _num_threads(options)
    for key, value in (("threads", threads), ("batch-size", options.batch_size)):
        require(
            value % _NUM_PROCESSES == 0,
            f"--{key}={value} does not divide by --processes={_NUM_PROCESSES}; try "
            f"{value + value % _NUM_PROCESSES}",
        )
    config = Subject.of(options).pretrain_config(log_every=1)
    data = replace(config.data, shards=shards, workers=options.workers)
    config = replace(config, data=data, optim=replace(config.optim, warmup_steps=0))
    path = folder / "config.yaml"
    path.write_text(to_yaml(config))
    starts = {ONE: ((), threads), TWO: (_TORCHRUN, threads // _NUM_PROCESSES)}
    return {
        name: [sys.executable, *launcher, str(_RUN), str(path), f"run.threads={threads}"]
        for name, (launcher, threads) in starts.items()
    }


def measure_command(command: Sequence[str], steps: int, folder: Path) -> float:
    """Run so many steps; return the images a second of those that count.

    Raises:
        RunStopped: The run ended badly.
    """
    run = folder / "run"
    every = max(1, steps // 2)
    own = [f"optim.steps={steps}", f"run.checkpoint_every={every}", f"run.dir={run}"]
    try:
        run_logged([*command, *own], folder / "output.log")
    except CommandFailed as error:
        raise RunStopped(f"a run that was to be measured ended with {error}") from error
    records = read_records(run / "metrics.jsonl")[_LEFT_OUT:]
    shutil.rmtree(run)
    return len(records) / sum(1 / record["speed/images_per_second"] for record in records)
