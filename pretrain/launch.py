"""Before the first step: processes, devices, precision, seeds, and each process's share."""

import logging
import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    parse_flag_from_env,
)
from torch.backends.mps import is_macos_or_newer

from data.devices import num_cores
from data.index.manifest import Manifest
from data.index.opening import open_manifest
from data.jpeg import is_compiled
from data.settings import UserError, require, setting
from data.storage import Storage
from data.stream import Share
from data.text import count
from pretrain.heap import keep_heap
from pretrain.launcher import PRECISIONS, check_launcher, has_chosen_threads, why_threads
from pretrain.optim import OptimConfig
from pretrain.ranks import main_process_first
from pretrain.recompute import check_kind
from pretrain.trackers import check_installed, check_names

_PARALLEL = ("ddp", "fsdp")
_RESUME = ("auto", "must", "never")
_DISTRIBUTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives, how often it speaks and saves, and on what it runs."""

    dir: str = setting("runs/pretrain", "folder of the run", changes_result=False, is_path=True)
    seed: int = setting(0, "seed of the weights, the order, the crops and the corruption")
    resume: str = setting(
        "auto",
        "auto (continue if there is a checkpoint), must (or fail), never (fail if there is one)",
        changes_result=False,
    )
    checkpoint_every: int = setting(
        1000, "steps between checkpoints; 0: only by minutes and at the end", changes_result=False
    )
    checkpoint_minutes: float = setting(
        30.0, "minutes between checkpoints; 0: only by steps", changes_result=False
    )
    keep_checkpoints: int = setting(2, "newest checkpoints to keep; 0: all", changes_result=False)
    log_every: int = setting(50, "steps between records in metrics.jsonl", changes_result=False)
    trackers: tuple[str, ...] = setting(
        (),
        "whom to tell the same records, such as [tensorboard, wandb]; those that accelerate knows",
        changes_result=False,
    )
    eval_every: int = setting(
        1000, "steps between validations; 0: only at the end", changes_result=False
    )
    deterministic: bool = setting(False, "deterministic GPU kernels, for bit-exact resume; slower")
    micro_batch_size: int = setting(
        0,
        "images a forward pass on each process; 0: its whole share of the batch",
        changes_result=False,
    )
    parallel: str = setting(
        "ddp",
        "ddp (each process holds the model) or fsdp (each holds a piece of it, for large models)",
        changes_result=False,
    )
    compile: bool = setting(False, "compile the model with torch.compile: slow to start, then fast")
    grad_checkpointing: str = setting(
        "none",
        "what is computed again in backward: none, selective (all but products), full (blocks)",
        changes_result=False,
    )
    max_bad_steps: int = setting(
        10,
        "stop after so many steps in a row whose loss is not finite; each is skipped; 0: never",
        changes_result=False,
    )
    requeue_status: int = setting(
        75,
        "exit status after SIGTERM or SIGUSR1, when a checkpoint was committed",
        changes_result=False,
    )
    precision: str = setting("fp32", "fp32, bf16, or fp16 (GPUs only)")
    threads: int = setting(
        0,
        "CPU threads a process when it trains on the CPU; 0: OMP_NUM_THREADS, else all, shared",
        changes_result=False,
    )

    def __post_init__(self) -> None:
        for key in (
            "checkpoint_every",
            "checkpoint_minutes",
            "keep_checkpoints",
            "eval_every",
            "max_bad_steps",
        ):
            value = getattr(self, key)
            require(value >= 0, f"run.{key}={value} is below 0; 0 turns it off")
        for key in ("micro_batch_size", "threads"):
            value = getattr(self, key)
            require(value >= 0, f"run.{key}={value} is below 0; 0 chooses for you")
        require(self.log_every > 0, f"run.log_every={self.log_every} must be above 0")
        require(self.dir != "", "run.dir is empty; name a folder, such as runs/mine")
        require(
            0 <= self.seed < 1 << 63,
            f"run.seed={self.seed} is not in 0..2^63-1, what torch takes; try 0",
        )
        if self.precision not in PRECISIONS:
            raise UserError(f"run.precision={self.precision} is not one of fp32, bf16, fp16")
        check_kind(self.grad_checkpointing)
        if self.parallel not in _PARALLEL:
            raise UserError(f"run.parallel={self.parallel} is not one of {', '.join(_PARALLEL)}")
        require(
            self.requeue_status in range(3, 126),
            f"run.requeue_status={self.requeue_status} is not in 3..125, the statuses that nothing "
            "else uses; try 75",
        )
        check_names(self.trackers)
        if self.resume not in _RESUME:
            raise UserError(f"run.resume={self.resume} is not one of {', '.join(_RESUME)}")


def start(run: RunConfig, group: str = "run") -> Accelerator:
    """Set up processes, devices, precision and seeds.

    Args:
        run: What is asked for.
        group: Where its keys are in the whole configuration, for messages.

    Raises:
        UserError: The device cannot compute in this precision, or a tracker is not installed.
    """
    choose_device(run, group)
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    check_launcher(run.precision, group)
    _silence_ddp()
    check_installed(run.trackers)
    accelerator = Accelerator(
        mixed_precision=PRECISIONS[run.precision],
        log_with=list(run.trackers) or None,
        project_dir=run.dir if run.trackers else None,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    require(
        accelerator.distributed_type in _DISTRIBUTED,
        f"accelerate is configured for {accelerator.distributed_type}; leave FSDP and DeepSpeed "
        "out of its configuration"
        + (", and set run.parallel=fsdp to cut the model over the processes" * (group == "run")),
    )
    require(
        run.parallel != "fsdp" or accelerator.num_processes > 1,
        "run.parallel=fsdp needs several processes, and there is one; use run.parallel=ddp",
    )
    if accelerator.device.type == "cpu":
        _set_threads(run.threads)
        keep_heap()
    start_logging(accelerator.is_main_process)
    torch.manual_seed(run.seed)
    return accelerator


def _set_threads(asked: int) -> None:
    """Take the threads that were asked for, by key or by OMP_NUM_THREADS; else all, shared."""
    if not asked and has_chosen_threads():
        return  # torch has read it
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(asked or max(1, num_cores() // local))


def choose_device(run: RunConfig, group: str = "run") -> None:
    """Let accelerate take a CUDA device, else Apple's MPS for one process alone, else the CPU.

    Args:
        run: What is asked for.
        group: Where its keys are in the whole configuration, for messages.

    Raises:
        UserError: It cannot compute in this precision.
    """
    has_gpu = torch.cuda.is_available()
    is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if not has_gpu and not (is_alone and torch.backends.mps.is_available()):
        # `accelerate launch` says false without --cpu; and torchrun, to which nobody says anything,
        # would start as many runs of one process
        os.environ["ACCELERATE_USE_CPU"] = "true"
    is_on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    require(
        run.precision != "fp16" or (has_gpu and not is_on_cpu),
        "run.precision=fp16 needs a GPU; use fp32 or bf16 on a CPU"
        if is_on_cpu
        # before pytorch/pytorch pull request 186360 a step that overflowed would be taken
        else "run.precision=fp16 needs a CUDA device; use fp32 or bf16 on MPS",
    )
    require(
        run.precision != "bf16" or has_gpu or is_on_cpu or is_macos_or_newer(14, 0),
        f"{group}.precision=bf16 needs macOS 14 on MPS; use fp32",
    )


def describe_start(accelerator: Accelerator, run: RunConfig, workers: int) -> str:
    """Say in one line on what a run computes, and with what it reads."""
    device, number = accelerator.device, accelerator.num_processes
    is_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_gpu else device.type.upper()
    threads = count(torch.get_num_threads(), "thread")
    parts = (
        name if number == 1 else f"{number} processes, each with {name}",
        threads if device.type != "cpu" else f"{threads} ({why_threads(run.threads)})",
        count(workers, "loader process"),
        "compiled JPEG decoder" if is_compiled() else "JPEG decoder of torchvision, not compiled",
        run.precision,
    )
    return ", ".join(parts)


def count_parameters(model: Any) -> str:
    """Say how many parameters a model has, in millions."""
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.3g} M parameters"


def start_logging(is_main_process: bool) -> None:
    """Let the main process say what it does; the others only what goes wrong."""
    logging.basicConfig(
        level=logging.INFO if is_main_process else logging.ERROR, format="%(message)s"
    )
    logging.getLogger("timm").setLevel(logging.WARNING)  # it tells of every local load


def _silence_ddp() -> None:
    """Silence what torch's DDP says on every rank, and no user can act upon."""
    # torch 2.15 renames what torch 2.9 and accelerate know by this name only
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    # the class token's gradient (1, 1, D): strides of sides of length 1 mean nothing
    warnings.filterwarnings("ignore", r"(?s)Grad strides do not match.*sizes\(\) = \[1, 1, ")


def share(accelerator: Accelerator, run: RunConfig, optim: OptimConfig) -> Share:
    """Cut the global batch into this process's micro-batches.

    Raises:
        UserError: The batch does not divide.
    """
    world = accelerator.num_processes
    size = optim.batch_size
    require(
        size % world == 0,
        f"optim.batch_size={size} is not a multiple of the {world} processes; "
        f"try {max(world, size // world * world)}",
    )
    own = size // world
    micro = run.micro_batch_size or own
    fitting = max(d for d in range(1, min(micro, own) + 1) if own % d == 0)
    require(
        own % micro == 0,
        f"run.micro_batch_size={micro} does not divide the {count(own, 'image')} that "
        f"each process takes of optim.batch_size={size}; try {fitting}",
    )
    return Share(accelerator.process_index, world, micro)


def open_shards(
    accelerator: Accelerator, spec: object, key: str, storage: Storage, fraction: float = 1.0
) -> Manifest:
    """Open the shards that a configuration key names; the main process makes missing indexes."""
    return main_process_first(accelerator, lambda: open_manifest(spec, key, storage, fraction))
