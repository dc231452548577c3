"""How a model is spread over the ranks: a copy each (DDP), or cut into pieces (FSDP2).

FSDP2 is torch's own `fully_shard`, and not accelerate's plugin: that silently gives DDP on CPU
ranks, so it could not be tested where this is.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def cut(model: nn.Module, accelerator: Accelerator) -> None:
    """Cut the parameters of a model over all ranks: each block by itself, then the rest.

    Args:
        model: Holds the blocks in `model.encoder.blocks`; changed in place.
        accelerator: What `start` gave.
    """
    model.to(accelerator.device)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in cast(Any, model).encoder.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


@contextmanager
def open_to_parts(model: nn.Module) -> Generator[None]:
    """Let a part of the model, such as its encoder, be run by itself; all ranks have to.

    A cut model gathers its blocks in their own forward pass, but what lies around them only in the
    model's, which is not called here.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def backward_of(
    accelerator: Accelerator, wrapped: nn.Module, *, is_last: bool
) -> AbstractContextManager[Any]:
    """Return the context of a micro-batch's passes: ranks add gradients up in the last one only."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(is_last)
        return nullcontext()
    return nullcontext() if is_last else accelerator.no_sync(wrapped)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the pieces of all ranks; all of them have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Cut a whole tensor, which every rank holds, as `model` is cut."""
    if not isinstance(model, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(model.device), model.device_mesh, model.placements, src_data_rank=None
    )
