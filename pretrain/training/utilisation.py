"""The share of the device's peak that a run's training steps use: MFU.

It is the operations of the model itself, forward and backward, over what the devices could have
computed in that time. What is computed a second time to save memory (`run.grad_checkpointing`, the
scores of fused attention) is no use to the model and is left out; with it, the figure is called
HFU. The peak is not the data sheet's: it is measured, as the speed of a product of large matrices.

Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
"""

import logging
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from pretrain.encoder.recompute import nothing_recomputed
from pretrain.machine.operations import count_flops_once
from pretrain.machine.speed import matrix_peak
from pretrain.ranks import on_main, reduce
from pretrain.training.examples import Batch, batch_of, on_fake_tensors

logger = logging.getLogger(__name__)

_SECONDS = 0.2  # of matrix products


class Limit(NamedTuple):
    """What the speed of a run is held against.

    Attributes:
        flops: Floating-point operations of an image in a training step.
        peak: Operations a second of all ranks' devices.
    """

    flops: float
    peak: float

    def share(self, images_per_second: float) -> float:
        """Return the MFU: 1 where the devices compute nothing but the model, at their peak."""
        return images_per_second * self.flops / self.peak

    def __str__(self) -> str:
        """Say both in words."""
        return f"{self.flops / 1e9:.3g} GFLOP an image; matrix products {_speed(self.peak)}"


def _speed(peak: float) -> str:
    unit, name = (1e12, "TFLOP/s") if peak >= 1e12 else (1e9, "GFLOP/s")
    return f"{peak / unit:.3g} {name}"


def step_flops(model: Any, batch: Batch) -> int:
    """Count the operations of a forward and a backward pass, each once.

    Args:
        model: An `Objective`; its gradients are added to, and it is left in training.
        batch: On fake tensors, or real ones.
    """
    with nothing_recomputed(model.encoder):
        return count_flops_once(lambda: model.train()(batch).loss.backward())


def flops_per_image(accelerator: Accelerator, model: Any, num_images: int) -> float | None:
    """Count the operations of an image in a training step, computing nothing; all ranks ask.

    Args:
        accelerator: What `start` gave.
        model: An `Objective` on the CPU, before it is compiled or cut. It stays as it is.
        num_images: Of a forward pass.

    Returns:
        None where the model cannot be followed without values.
    """

    def count() -> float | None:
        try:
            with on_fake_tensors(model, torch.device("cpu")) as fake:
                return step_flops(fake, batch_of(fake, num_images)) / num_images
        except Exception as error:
            logger.debug("the operations cannot be counted: %s", error)
            return None  # it may well train

    return on_main(accelerator, count)


def measure_limit(accelerator: Accelerator, precision: str, flops: float | None) -> Limit | None:
    """Measure the peak of all ranks' devices, at the same time: ranks may share cores.

    Args:
        accelerator: What `start` gave.
        precision: That of the run.
        flops: What `flops_per_image` returned; the same on all ranks.
    """
    if not flops:
        return None
    accelerator.wait_for_everyone()
    peak = matrix_peak(accelerator.device, precision, _SECONDS)
    whole = reduce(accelerator, torch.tensor(peak, device=accelerator.device))
    return Limit(flops, float(whole))
