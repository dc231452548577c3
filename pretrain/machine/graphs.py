"""Compiled passes as CUDA graphs: recorded once, and each replay is one launch.

So the host does not set the pace. A replay runs the kernels that were recorded, in their order and
in the same memory, and that is what has to be minded: it writes over what the one before returned.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_map_only

logger = logging.getLogger(__name__)


class Graphs:
    """Runs a model's training passes, and keeps what they return from the next replay.

    Random numbers follow from the generator's seed when a replay begins, as in passes that are not
    recorded. What torch cannot record runs as compiled, on a CPU all of it; a warning says so.

    Source: "CUDAGraph Trees" in torch's documentation; issues 96693 and 169545 of pytorch/pytorch
    on gradients that are added up.

    Args:
        model: On its device, where its weights stay; `model(...)` itself is not changed.

    Attributes:
        has_own_gradients: Whether gradients are to be set to zero, and not to None.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._run: Callable[..., Any] = torch.compile(model.forward, mode="reduce-overhead")
        self._is_told = False
        self.has_own_gradients = False

    def __call__(self, *arguments: Any) -> Any:
        """Return what the model returns, in memory that no replay writes to."""
        self._tell()
        torch.compiler.cudagraph_mark_step_begin()
        return tree_map_only(Tensor, Tensor.clone, self._run(*arguments))

    def own_gradients(self) -> None:
        """Move gradients that more will be added to out of the graphs' memory, once for all.

        From then on they are to be set to zero. Set to None, they would be what the next backward
        pass returns, which a replay writes over: some versions of torch then add up wrong numbers
        in silence, others stop.
        """
        if self.has_own_gradients:
            return
        self.has_own_gradients = True
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()

    def _tell(self) -> None:
        """Say once, after the first passes, that not all of them are recorded."""
        if counters["inductor"]["cudagraph_skips"] and not self._is_told:
            self._is_told = True
            logger.warning(
                "run.cuda_graphs=true: torch does not record all of the step and runs the rest as "
                "compiled; TORCH_LOGS=cudagraphs says why"
            )
