"""Memory: what training takes at least, what is free, and what to do where it cannot fit.

A pass on torch's fake tensors, which have shapes and no values, tells what a forward pass keeps for
the backward pass. Those bytes are those of real tensors (tested). What lives for a moment within a
pass, and what others take, comes on top: a count is a lower bound, and what fits is not refused.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data.settings import UserError
from data.stream import Share
from data.text import count
from pretrain.encoder.recompute import recompute_blocks
from pretrain.encoder.tokens import choose_attention
from pretrain.machine.free_memory import free_bytes
from pretrain.machine.malloc import release_heap
from pretrain.training.config import OptimConfig, RunConfig
from pretrain.training.examples import Batch, batch_of, on_fake_tensors
from pretrain.training.launch import local_ranks

# of a count is taken for certain: with selective it was .6 % too much (docs/results/memory.md)
_SURE = 0.98
_HEADROOM = 0.9  # of the free memory that what is advised may take, being a lower bound
_SMALLER = {"l": 303e6, "b": 86e6, "s": 22e6, "ti": 5.5e6}  # of configs/encoder
_BYTES = 16  # a parameter, with adamw
_logger = logging.getLogger(__name__)


# ---------------------------------------------------------------- what training takes


def count_state_bytes(model: nn.Module, optim: OptimConfig) -> int:
    """Count the bytes that stay between passes: weights, gradients, moments and averages in fp32.

    With adamw and everything trained, 16 a parameter.
    """
    return _weight_bytes(model, optim) + _gradient_bytes(model) * (1 + _num_moments(optim))


def _weight_bytes(model: nn.Module, optim: OptimConfig) -> int:
    number = sum(parameter.numel() for parameter in model.parameters())
    return 4 * number * (2 if optim.ema else 1)


def _gradient_bytes(model: nn.Module) -> int:
    return 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)


def _num_moments(optim: OptimConfig) -> int:
    return 2 if optim.algorithm == "adamw" else int(optim.momentum > 0)


def count_saved_bytes(model: nn.Module, batch: Batch, precision: str, device: str = "cpu") -> int:
    """Count the bytes that a forward pass keeps for the backward pass, weights excepted.

    A storage counts once, however many tensors share it. Under autocast, weights are kept in half
    precision as well; those copies count.
    """
    made = _Made()
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    with made, torch.autocast(device, half, enabled=precision != "fp32"):
        loss = model.train()(batch).loss
    others = [*model.parameters(), *model.buffers(), *batch.values(), loss]
    own = {_identity(tensor) for tensor in others}
    return sum(size for identity, size in made.held().items() if identity not in own)


class _Made(TorchDispatchMode):
    """Notes the storages that operations return, without keeping them alive."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._made[_identity(tensor)] = StorageWeakRef(storage), storage.nbytes()
        return result

    def held(self) -> dict[int, int]:
        """Return the bytes of those that are still alive, by identity."""
        return {key: size for key, (made, size) in self._made.items() if not made.expired()}


def _identity(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@dataclass(frozen=True)
class Need:
    """A lower bound of the memory that one rank's training takes at its peak.

    Attributes:
        model: An `Objective` on the CPU, its blocks told what is computed again.
        run: The run's.
        optim: What trains it.
        device: Where it will be trained.
        num_ranks: Among which the model is cut; 1 where each rank has a copy.
        images_a_step: Images of a step on this rank.
    """

    model: Any
    run: RunConfig
    optim: OptimConfig
    device: torch.device
    num_ranks: int
    images_a_step: int

    def bytes(self, num_images: int, saved: int) -> int:
        """Count them for so many images a forward pass, which keeps `saved` bytes.

        Gradients are there in a forward pass only when passes are added up, moments not before the
        first step is done.
        """
        weights, gradients = _weight_bytes(self.model, self.optim), _gradient_bytes(self.model)
        moments = gradients * _num_moments(self.optim)
        is_added_up = num_images < self.images_a_step
        in_forward = weights + moments * (self.optim.steps != 1) + gradients * is_added_up
        at_the_end = weights + gradients + moments
        return max(in_forward // self.num_ranks + saved, at_the_end // self.num_ranks)

    def saved(self, num_images: int) -> int:
        """Count what a forward pass of so many images keeps for the backward pass."""
        if self.run.compile:
            return 0  # a compiled model may compute anything again
        with on_fake_tensors(self.model, self.device) as model:
            batch = batch_of(model, num_images)
            batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
            return count_saved_bytes(model, batch, self.run.precision, self.device.type)


# ---------------------------------------------------------------- whether it fits


def check_fits(
    accelerator: Accelerator,
    run: RunConfig,
    optim: OptimConfig,
    part: Share,
    model: Any,
    multiple: int = 1,
) -> Share:
    """Return a share whose passes fit into the device's free memory, before any slow work.

    Where `run.micro_batch_size` is not given, it is the largest that should fit on all ranks.

    Args:
        accelerator: What `start` gave.
        run: The run's.
        optim: What trains the model.
        part: This rank's share.
        model: An `Objective` on the CPU.
        multiple: What the images of a forward pass must be a multiple of.

    Raises:
        UserError: It does not fit on one of the ranks; all raise it alike.
    """
    choose_attention(model, accelerator.device, accelerator.mixed_precision)
    recompute_blocks(model.encoder, run.grad_checkpointing)
    num_ranks = accelerator.num_processes if run.parallel == "fsdp" else 1
    own = optim.num_images // part.world_size
    need = Need(model, run, optim, accelerator.device, num_ranks, own)
    found: list[tuple[str, int | None] | None] = gather_object(
        [_problem(need, part.micro_batch_size, multiple)]
    )
    problems = [problem for problem in found if problem is not None]
    if not problems:
        return part
    fitting = [number for _, number in problems if number is not None]
    if run.micro_batch_size or len(fitting) < len(problems):
        text, number = problems[0]
        advice = f"run.micro_batch_size={number} should fit, and trains alike"
        raise UserError(text if number is None else f"{text}; {advice}")
    _logger.info("run.micro_batch_size=%d: %s", min(fitting), problems[0][0])
    return replace(part, micro_batch_size=min(fitting))


def _problem(need: Need, num_images: int, multiple: int) -> tuple[str, int | None] | None:
    """Say what does not fit, and how many images should; None where it fits or nobody can tell."""
    free = _free_for(need)
    if free is None:
        return None
    try:
        saved = need.saved(num_images)
    except Exception as error:
        _logger.debug("the memory cannot be counted: %s", error)
        return None  # it may well train
    taken = need.bytes(num_images, saved)
    if _SURE * taken <= free:
        return None
    text = (
        f"a forward pass of {count(num_images, 'image')} takes {_gib(taken)} GiB or more, and "
        f"{_gib(free)} GiB are free on {need.device.type}"
    )
    fitting = _fitting(need, num_images, saved, multiple, int(_HEADROOM * free))
    if fitting is None:
        text = f"{text}; fewer images do not fit either: {_remedy(need, free)}"
    return text, fitting


def most_images(need: Need) -> int | None:
    """Return how many images of a step should fit into a forward pass at once; None: not one.

    That is all of the step's on this rank, or the largest divisor that fits into nine tenths of
    the free memory; all where nobody can tell.
    """
    free, number = _free_for(need), need.images_a_step
    if free is None:
        return number
    saved, free = need.saved(number), int(_HEADROOM * free)
    return number if need.bytes(number, saved) <= free else _fitting(need, number, saved, 1, free)


def _fitting(need: Need, num_images: int, saved: int, multiple: int, free: int) -> int | None:
    """Return the largest `run.micro_batch_size` below `num_images` that fits."""
    few = 2 * multiple
    if num_images <= few:
        return None
    by_few = need.saved(few)
    by_one = (saved - by_few) / (num_images - few)  # an image more; each adds as much
    for number in range(num_images - 1, 0, -1):
        divides = need.images_a_step % number == 0 and number % multiple == 0
        if divides and need.bytes(number, by_few + int(by_one * (number - few))) <= free:
            return number
    return None


def _free_for(need: Need) -> int | None:
    """Return the bytes that this rank can have, with what its weights hold by now."""
    free = free_for_rank(need.device)
    if free is None or need.device.type != "cpu":
        return free
    return free + 4 * sum(parameter.numel() for parameter in need.model.parameters())


def free_for_rank(device: torch.device) -> int | None:
    """Return the bytes that this rank can have on a device; None where nobody can tell.

    Ranks on the CPUs of a machine share what it has.
    """
    if device.type != "cpu":
        return free_bytes(device)
    release_heap()
    free = free_bytes(device)
    return None if free is None else free // local_ranks()


def _remedy(need: Need, free: int) -> str:
    number = sum(parameter.numel() for parameter in need.model.parameters())
    for name, parameters in _SMALLER.items():
        if parameters < 0.9 * number and _BYTES * parameters < _HEADROOM * free:
            return f"try a smaller encoder, such as configs/encoder/{name}.yaml"
    return "try a smaller encoder, smaller images, or run.grad_checkpointing=full"


def _gib(number: int) -> str:
    return f"{number / 2**30:,.1f}"
