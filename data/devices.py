"""The abilities of devices: the one place that knows which device lacks what.

Apple's MPS has no float64, and copies to it that do not wait may read memory that has another owner
by then (pytorch/pytorch issue 189690). Its fused optimizers take a step that they were told to
skip, in all but the newest versions of torch (pytorch/pytorch pull request 186360).
"""

import os

import torch
from torch import Tensor
from torch.backends.mps import is_macos_or_newer


def num_cores() -> int:
    """Return how many cores this process may use; where nobody can tell, such as on macOS, all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_mps() -> bool:
    """Tell whether this machine computes on Apple's MPS."""
    return torch.backends.mps.is_available()


def mps_has_bf16() -> bool:
    """Tell whether MPS computes in bf16: from macOS 14 on."""
    return is_macos_or_newer(14, 0)


def has_float64(device: torch.device) -> bool:
    """Tell whether tensors on a device can be of float64."""
    return device.type != "mps"


def exact_device(device: torch.device) -> torch.device:
    """Return where float64 work for a device is done: on it, or on the CPU where it has none."""
    return device if has_float64(device) else torch.device("cpu")


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the most precise type on a device in which the values of a batch can be added up."""
    return torch.float64 if has_float64(device) else torch.float32


def skips_bad_steps(device: torch.device) -> bool:
    """Tell whether fused optimizers on a device heed `found_inf`."""
    return device.type != "mps"


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, unless it is there; from the CPU to a CUDA device without a wait.

    The copy of memory that is not pinned would wait for all that the device was given before.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)
