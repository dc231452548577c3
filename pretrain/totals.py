"""Sums over the batches of a step, or of a pass over a split, and over the ranks: in float64."""

import torch
from accelerate import Accelerator
from torch import Tensor

from data.devices import sum_dtype
from pretrain.ranks import reduce
from pretrain.sums import Sums

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
