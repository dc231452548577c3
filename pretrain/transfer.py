"""Batches on their way to the device."""

import torch
from torch import Tensor

from data.devices import exact_device, send


class Copies:
    """Copies batches to the device; on a GPU on a stream of their own.

    A copy then runs while the GPU is still at the step before, which was given to it earlier: the
    host waits for nothing in between. Nothing is taken from the loader ahead of its step.

    Args:
        device: Where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a batch on the device; what is computed next on it waits for the copy."""
        if self._stream is None:
            return to_device(tensors, self._device)
        with torch.cuda.stream(self._stream):
            copied = to_device(tensors, self._device)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in copied.values():
            tensor.record_stream(current)  # or its memory would be used again too early
        return copied


def to_device(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move a batch to a device; its keys to where float64 numbers can be drawn from them."""
    return {
        name: send(tensor, exact_device(device) if name == "key" else device)
        for name, tensor in tensors.items()
    }
