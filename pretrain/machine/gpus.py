"""The GPUs that a run could take, counted without torch, and what starts a process on each."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pretrain.machine.launcher import TRUE

_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")  # of any launcher
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")
_SLURM = ("SLURM_PROCID",)  # of each task, and of a job's own script


def is_one_of_many(environment: Mapping[str, str]) -> bool:
    """Tell whether a launcher or Slurm has started this process, and so decides how many run."""
    return any(name in environment for name in (*_RANKS, *_LAUNCHERS, *_SLURM))


def count_gpus(environment: Mapping[str, str]) -> int:
    """Count the NVIDIA GPUs that torch would see; 0 where nvidia-smi is not there.

    A GPU that is cut into parts (MIG) counts as the one that torch sees of it.

    Args:
        environment: CUDA_VISIBLE_DEVICES leaves some out, and ACCELERATE_USE_CPU all of them.
    """
    if environment.get("ACCELERATE_USE_CPU", "").lower() in TRUE:
        return 0
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and "," not in visible:  # one at most: nothing need be asked
        return int(visible.strip() not in ("", "-1"))
    lines = _list_gpus()
    total = sum(line.startswith("GPU ") for line in lines)
    if any("MIG" in line for line in lines):
        return min(total, 1)
    return total if visible is None else _num_visible(visible.split(","), total)


def _num_visible(names: Sequence[str], total: int) -> int:
    """Count what CUDA_VISIBLE_DEVICES names; CUDA reads it up to the first that is not there."""
    for number, name in enumerate(names):
        is_index = name.strip().lstrip("-").isdigit()
        if not name.strip() or (is_index and not 0 <= int(name) < total):
            return number
    return min(len(names), total)


def _list_gpus() -> list[str]:
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def launch_command(num: int, config: Path, script: Path, arguments: Sequence[str]) -> list[str]:
    """Return the `accelerate launch` of one process a GPU of this machine.

    Args:
        num: GPUs.
        config: For accelerate, in place of what the user's home folder may hold.
        script: The entry point.
        arguments: Its own.
    """
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "-q"]
    options = ["--config_file", str(config), "--num_processes", str(num)]
    free = ["--main_process_port", "0"]  # two runs may share a machine
    return [*launcher, *options, *free, str(script), *arguments]


def replace_by_launcher(command: Sequence[str]) -> None:
    """Become the launcher; this process's number, and so whoever waits for it, stay the same."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], list(command))
