"""Training samples whose images are in memory already: the batches of `data.samples`, bit for bit.

What cannot be decoded is read again each time it is asked for, as it is without this, so that it is
named for the same reason.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from data.batch import Batch, LedgerEntry, Request, SamplePlace
from data.devices import send
from data.images.boxes import FLIP, training_boxes
from data.index.manifest import Manifest
from data.labels.parse import NO_LABEL
from data.resident.crops import DeviceCropper, Parts, crop_on_host
from data.resident.images import DecodedImages
from data.samples import PADDING, Samples, crop_numbers


class ResidentSamples(Samples):
    """Requests -> batches of training crops, with no state; the crops are on the images' device.

    Args:
        images: All of the manifest's, decoded.
        manifest: The indexed shards.
        size: (H, W) of the crops.
        options: Further arguments of `Samples`, `crop_area` among them.
    """

    is_in_memory = True

    def __init__(
        self, images: DecodedImages, manifest: Manifest, size: tuple[int, int], **options: Any
    ) -> None:
        super().__init__(manifest, size, **options)
        assert not self.labelled
        assert self.augment is None
        self._images = images
        device, most = images.pixels.device, images.sides.max(axis=0).tolist()
        self.cropper = None if _is_host(device) else DeviceCropper(size, most, device)

    def __getitem__(self, request: Request) -> Batch:
        """Cut one request's crops."""
        ids = self._ids(request)
        keys = self._keys(request.epoch, ids)
        is_held = self._images.holds(ids)
        weight = torch.from_numpy(is_held.astype(np.float32))
        image = self._crops(ids, crop_numbers(keys), is_held)
        bad: list[LedgerEntry] = []
        if (others := (ids != PADDING) & ~is_held).any():
            read = self._fill(request, self._read, self._crop, ~others)
            weight += read.tensors["weight"]
            chosen = torch.from_numpy(np.flatnonzero(others))
            image[chosen] = read.tensors["image"][chosen].to(image.device)
            bad = read.bad
        label = torch.full(ids.shape, NO_LABEL)
        tensors = {"weight": weight, "random_key": torch.from_numpy(keys), "label": label}
        places = _Places(partial(self._named, request, ids), np.flatnonzero(weight))
        return Batch({"image": image, **tensors}, places, bad)

    def _named(self, request: Request, ids: np.ndarray, slot: int) -> SamplePlace:
        return self._place_of(request, slot, *self.order.locate(int(ids[slot])))

    def _crops(self, ids: np.ndarray, numbers: np.ndarray, is_held: np.ndarray) -> Tensor:
        """Cut the crops of the slots that are held: uint8 (B, C, H, W), 0 in the others."""
        images, slots, held = self._images, np.flatnonzero(is_held), ids[is_held]
        pixels = images.pixels
        shape = (len(ids), self.channels, *self.size)
        if not slots.size:
            return pixels.new_zeros(shape)
        assert self.crop_area is not None
        sides, numbers = images.sides[held], numbers[slots]
        boxes = training_boxes(sides, numbers, self.size, self.crop_area)
        parts = Parts(images.starts[held], sides, boxes, numbers[:, FLIP] < 0.5)
        if self.cropper is None:
            crops = crop_on_host(pixels, parts, self.channels, self.size)
        else:
            crops = self.cropper(pixels, parts, self.channels)
        if len(slots) == len(ids):
            return crops
        index = send(torch.from_numpy(slots), pixels.device)
        return crops.new_zeros(shape).index_copy_(0, index, crops)


def _is_host(device: torch.device) -> bool:
    return device.type == "cpu"


class _Places(Sequence[SamplePlace]):
    """The samples of a batch by name, made when they are asked for: most are never.

    Args:
        make: A slot -> its sample's place.
        slots: int64 (n,), those that are listed.
    """

    def __init__(self, make: Callable[[int], SamplePlace], slots: np.ndarray) -> None:
        self._make, self._slots = make, slots

    def __len__(self) -> int:
        return len(self._slots)

    @overload
    def __getitem__(self, index: int) -> SamplePlace: ...
    @overload
    def __getitem__(self, index: slice) -> list[SamplePlace]: ...
    def __getitem__(self, index: int | slice) -> SamplePlace | list[SamplePlace]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        return self._make(int(self._slots[index]))
