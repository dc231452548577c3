"""Speed of two processes of half the threads against one process of all: started runs, in turns."""

import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data.commands import run_logged
from data.devices import num_cores
from data.settings import require
from pretrain.records.logs import read_records
from scripts._ablate.plan import ROOT, arguments_of
from scripts._benchmark.rounds import Speeds, make_record
from scripts._benchmark.run import RunOptions

ONE, TWO = "one process", "two processes"
RATIOS = {"two_processes_vs_one": (TWO, ONE)}
_NUM_PROCESSES = 2
_LEFT_OUT = 5  # first steps: memory is allocated, the loader's first batches wait for images
_SIZES = ("patch_size", "embed_dim", "depth", "num_heads")
_FIRST = 8  # steps of the first run, which tells how many a turn needs
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={_NUM_PROCESSES}")


def measure_processes(options: RunOptions, folder: Path) -> dict[str, Any]:
    """Start a run of one process, then the same of two, as a user starts them; and so on.

    Each turn is a run of its own, of equal batches and equal numbers of steps, with a checkpoint on
    its way. Its speed is that of its metrics.jsonl, which leaves checkpoints out, without the first
    steps.

    Args:
        options: What is asked for; the threads are those of all processes together.
        folder: An empty one, for runs.

    Returns:
        The record.

    Raises:
        UserError: The encoder cannot be used; threads or images do not divide; there is a GPU.
        RunStopped: A run ended badly, or a signal came.
    """
    commands = _commands(options)
    size, speeds = options.batch_size, Speeds()
    speed = _run(commands[ONE], _FIRST, folder)
    steps = _LEFT_OUT + max(1, math.ceil(options.seconds * speed / size))
    for _ in range(options.rounds):
        for name, command in commands.items():
            speeds.add(name, _run(command, steps, folder))
    settings = asdict(options) | {"image_size": options.side, "steps": steps}
    record = make_record("processes", settings, speeds, RATIOS)
    record["machine"]["threads"] = _num_threads(options)
    return record


def _num_threads(options: RunOptions) -> int:
    """Return the threads of all processes together."""
    return options.threads or num_cores()


def _commands(options: RunOptions) -> dict[str, list[str]]:
    """Return how both are started, without their steps."""
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
    script = str(ROOT / "pretrain/run.py")
    starts = {ONE: ((), threads), TWO: (_TORCHRUN, threads // _NUM_PROCESSES)}
    return {
        name: [sys.executable, *launcher, script, *_arguments(options, threads)]
        for name, (launcher, threads) in starts.items()
    }


def _arguments(options: RunOptions, threads: int) -> list[str]:
    encoder = options.encoder_config()
    sizes = {key: getattr(encoder, key) for key in _SIZES}
    keys = {
        "encoder.name": encoder.name,
        **{f"encoder.{key}": value for key, value in sizes.items() if value is not None},
        **({"encoder.args": encoder.args} if encoder.args else {}),
        "data.shards": options.shards,
        "data.image_size": options.side,
        "data.workers": options.workers,
        "optim.batch_size": options.batch_size,
        "optim.warmup_steps": 0,
        "run.precision": options.precision,
        "run.compile": options.compile,
        "run.threads": threads,
        "run.log_every": 1,
        "run.checkpoint_minutes": 0,
    }
    return arguments_of(keys)


def _run(command: Sequence[str], steps: int, folder: Path) -> float:
    """Run so many steps; return the images a second of those that count."""
    run, log = folder / "run", folder / "output.log"
    every = max(1, steps // 2)
    own = [f"optim.steps={steps}", f"run.checkpoint_every={every}", f"run.dir={run}"]
    run_logged([*command, *own], log)
    records = read_records(run / "metrics.jsonl")[_LEFT_OUT:]
    shutil.rmtree(run)
    return len(records) / sum(1 / record["speed/images_per_second"] for record in records)
