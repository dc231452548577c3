"""Batches on their way to the device."""

import torch
from accelerate import Accelerator
from torch import Tensor

from data.devices import exact_device, send, sum_dtype
from pretrain.ranks import reduce
from pretrain.training.contract import Sums


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
        name: send(tensor, exact_device(device) if name == "random_key" else device)
        for name, tensor in tensors.items()
    }


class Late:
    """A number that is on its way from the device, read without waiting for what came after it."""

    def __init__(self, value: Tensor) -> None:
        self._value, self._event = value.detach(), None
        if value.is_cuda:
            host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value = host.copy_(value.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> float:
        """Return the number, once it is there."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._value)


_MOST_KEPT = 64  # batches


class Totals:
    """Adds up batches' sums on their device; where that has no float64, on the host.

    There, a batch's own sums are of float32. They are kept and fetched many at a time, since the
    host waits for the device each time.
    """

    def __init__(self) -> None:
        self._sums: Sums = {}
        self._kept: list[Sums] = []

    def add(self, sums: Sums) -> None:
        """Add a batch's sums."""
        if sum_dtype(next(iter(sums.values())).device) == torch.float64:
            self._sums = add_sums(self._sums, sums)
            return
        self._kept.append(sums)
        if len(self._kept) == _MOST_KEPT:
            self._fetch()

    def reduce(self, accelerator: Accelerator) -> Sums:
        """Return the sums over all ranks, on the CPU; all of them have to ask."""
        self._fetch()
        flat = reduce(accelerator, _flatten(self._sums)).cpu()
        return _unflatten(flat, self._sums)

    def _fetch(self) -> None:
        """Add what is kept, in one transfer."""
        if self._kept:
            flat = torch.stack([_flatten(sums) for sums in self._kept])
            fetched = _unflatten(flat.cpu().double().sum(0), self._kept[0])
            self._sums, self._kept = add_sums(self._sums, fetched), []


def add_sums(left: Sums, right: Sums) -> Sums:
    """Add two batches' sums; an empty left side counts as zero."""
    return {name: left[name] + value if left else value for name, value in right.items()}


def _flatten(sums: Sums) -> Tensor:
    """Put sums side by side: a dict's own order need not be the other ranks'."""
    return torch.cat([sums[name].flatten() for name in sorted(sums)])


def _unflatten(flat: Tensor, like: Sums) -> Sums:
    """Cut what `_flatten` gave of sums of the same shapes."""
    names = sorted(like)
    parts = flat.split([like[name].numel() for name in names])
    return {name: part.view(like[name].shape) for name, part in zip(names, parts, strict=True)}
