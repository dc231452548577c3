"""Before the first step: processes, devices, precision, seeds, and each process's share."""

import logging
import os
import warnings
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    parse_flag_from_env,
)

from data.devices import has_mps, mps_has_bf16, num_cores
from data.images.jpeg import is_available
from data.processes import platform_note
from data.settings import require
from data.stream import Share
from data.text import count
from pretrain.machine.host import OURS
from pretrain.machine.launcher import PRECISIONS, check_launcher, has_chosen_threads, why_threads
from pretrain.machine.malloc import keep_heap
from pretrain.records.trackers import check_installed
from pretrain.training.config import OptimConfig, RunConfig
from pretrain.training.utilisation import Limit

logger = logging.getLogger(__name__)

_DISTRIBUTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


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
    require(
        accelerator.num_processes == 1 or not run.cuda_graphs,
        f"{group}.cuda_graphs=true is for one process, and there are {accelerator.num_processes}; "
        "leave it out",
    )
    if accelerator.device.type == "cpu":
        _set_threads(run.threads)
        keep_heap()
    start_logging(accelerator.is_main_process)
    if note := platform_note():
        logger.info(note)
    torch.manual_seed(run.seed)
    return accelerator


def _set_threads(threads: int) -> None:
    """Take the threads that were asked for, by key or by OMP_NUM_THREADS; else all, shared."""
    if not threads and has_chosen_threads():
        return  # torch has read it
    torch.set_num_threads(threads or max(1, num_cores() // local_ranks()))


def local_ranks() -> int:
    """Return how many ranks share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


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
    if not has_gpu and not (is_alone and has_mps()):
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
        run.precision != "bf16" or has_gpu or is_on_cpu or mps_has_bf16(),
        f"{group}.precision=bf16 needs macOS 14 on MPS; use fp32",
    )


def describe_start(accelerator: Accelerator, run: RunConfig, workers: int) -> str:
    """Say in one line on what a run computes, and with what it reads."""
    device, number = accelerator.device, accelerator.num_processes
    name = _device_name(device)
    threads = count(torch.get_num_threads(), "thread")
    parts = (
        name if number == 1 else f"{number} processes, each with {name}",
        threads if device.type != "cpu" else f"{threads} ({why_threads(run.threads)})",
        count(workers, "loader process"),
        "compiled JPEG decoder" if is_available() else "JPEG decoder of Pillow, not compiled",
        run.precision,
    )
    return ", ".join(parts)


def start_record(
    step: int, accelerator: Accelerator, run: RunConfig, limit: Limit | None
) -> dict[str, Any]:
    """Return what `starts.jsonl` says of a start: from which step, on what, and how fast that is.

    Args:
        step: How many are done.
        accelerator: What `start` gave.
        run: The run's.
        limit: Operations of an image, and the peak of all devices; None where not known.
    """
    known = {}
    if limit is not None:
        known = {"gflop_per_image": limit.flops / 1e9, "matrix_gflop_per_second": limit.peak / 1e9}
    return {
        "step": step,
        "device": _device_name(accelerator.device),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "precision": run.precision,
        **known,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type.upper()


def count_parameters(model: Any) -> str:
    """Say how many parameters a model has, in millions."""
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.3g} M parameters"


def start_logging(is_main_process: bool) -> None:
    """Let the main process say what it does; the others only what goes wrong.

    A program that has set up its own logging gets the same records there.
    """
    logging.basicConfig(format="%(message)s")
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO if is_main_process else logging.ERROR)
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
    size = optim.num_images
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
