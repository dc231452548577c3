"""The running statistics of batch norms, which a baseline such as resnet18 has, over the ranks.

Each rank's batch norms see their own images. Averaged after each step, the statistics are the same
on all ranks, those of the whole batch as far as means go, and do not depend on when a checkpoint is
written. A transformer has none: then nothing is done.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.ranks import reduce


class RunningStatistics:
    """The running means and variances of a model.

    Args:
        model: It may be moved to another device later.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [
            layer
            for layer in model.modules()
            if isinstance(layer, _BatchNorm) and layer.track_running_stats
        ]
        self._held: list[Tensor] = []

    @property
    def _buffers(self) -> list[Tensor]:
        return [buffer for layer in self._layers for buffer in layer.buffers()]

    def hold(self) -> None:
        """Remember them as they are."""
        self._held = [buffer.clone() for buffer in self._buffers]

    def restore(self) -> None:
        """Put back what was held."""
        for buffer, held in zip(self._buffers, self._held, strict=True):
            buffer.copy_(held)

    def settle(self, accelerator: Accelerator, norm: Tensor) -> None:
        """Average them over the ranks; after a step whose gradient is not finite, restore them.

        Args:
            accelerator: What `start` gave.
            norm: The gradient's, the same on all ranks; it stays on the device.
        """
        if not self._layers:
            return
        buffers = [buffer for buffer in self._buffers if buffer.is_floating_point()]
        if accelerator.num_processes > 1:
            flat = torch.cat([buffer.flatten() for buffer in buffers])
            mean = reduce(accelerator, flat) / accelerator.num_processes
            for buffer, part in zip(buffers, mean.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))
        for buffer, held in zip(self._buffers, self._held, strict=True):
            buffer.copy_(torch.where(norm.isfinite(), buffer, held))
