"""Decoding all images of a set once, into memory of one device."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.batch import Batch, Request
from data.images.decoding import decode
from data.images.levels import UnreadableImage
from data.index.manifest import Manifest
from data.reading.bad import BadSample
from data.samples import PADDING, Samples
from data.stream import read_batches

_LOOKED_AT = 64  # images from whose sizes the memory of all is estimated
_BATCH = 64  # images that a loader process hands over at once
_ROOM = 1.05  # of what is estimated; more is taken as it is needed


@dataclass(frozen=True)
class DecodedImages:
    """The images of a set, decoded, one behind the other.

    Attributes:
        pixels: uint8 (n,) on the device: of each image (C, height, width).
        starts: int64 (N,), where each sample's image begins; -1: it cannot be read.
        sides: int64 (N, 2), heights and widths; 0 of what cannot be read.
        seconds: What decoding took.
    """

    pixels: Tensor
    starts: np.ndarray
    sides: np.ndarray
    seconds: float

    def holds(self, ids: np.ndarray) -> np.ndarray:
        """Tell of sample ids (B,), or `PADDING`, whether their images are here: bool (B,)."""
        return (ids != PADDING) & (self.starts[ids] >= 0)


class _WholeImages(Samples):
    """Requests -> decoded images, whole: `image` uint8 (n,) and `sides` int64 (B, 2)."""

    def __init__(self, manifest: Manifest, channels: int) -> None:
        super().__init__(manifest, (1, 1), seed=0, channels=channels)

    def __getitem__(self, request: Request) -> Batch:
        """Read and decode one request's samples, in the order of the shards."""
        ids = self._ids(request)
        images = [self._decoded(int(sample)) for sample in ids if sample != PADDING]
        sides = [(0, 0) if image is None else image.shape[1:] for image in images]
        pixels = [image.flatten() for image in images if image is not None]
        image = torch.cat(pixels) if pixels else torch.empty(0, dtype=torch.uint8)
        return Batch({"image": image, "sides": torch.tensor(sides)}, [], [])

    def _decoded(self, sample: int) -> Tensor | None:
        try:
            content, _ = self._read(*self.order.locate(sample))
            return decode(content, self.channels)
        except (BadSample, UnreadableImage):
            return None  # who asks for its crop learns why


def estimate_bytes(manifest: Manifest, channels: int) -> int:
    """Estimate the memory that a set takes decoded, from some of its images, spread over it."""
    whole = _WholeImages(manifest, channels)
    chosen = np.unique(np.linspace(0, manifest.num_samples - 1, _LOOKED_AT).astype(int))
    found = [whole[Request(0, k, k + 1)].tensors["image"].numel() for k in chosen.tolist()]
    return round(sum(found) / len(found) * manifest.num_samples)


def decode_all(
    manifest: Manifest, channels: int, device: torch.device, workers: int
) -> DecodedImages:
    """Decode all images of a set, in loader processes, into memory of a device.

    Args:
        manifest: The indexed shards.
        channels: C of the images.
        device: Where they stay.
        workers: Loader processes; 0 works in this one.

    Raises:
        RunStopped: The shards cannot be read.
        torch.OutOfMemoryError: They do not fit.
    """
    begun = time.monotonic()
    total = manifest.num_samples
    requests = [Request(0, start, start + _BATCH) for start in range(0, total, _BATCH)]
    pixels, end = torch.empty(0, dtype=torch.uint8, device=device), 0
    sides: list[np.ndarray] = []
    for batch in read_batches(_WholeImages(manifest, channels), requests, workers):
        sides.append(batch.tensors["sides"].numpy())
        begin, end = end, end + len(batch.tensors["image"])
        if end > len(pixels):
            part = min(1.0, _BATCH * len(sides) / total)
            # images of one size fill the first estimate; else there is some room to be wrong
            room = int(end / part * (1 if begin == 0 else _ROOM))
            pixels = torch.cat([pixels[:begin], pixels.new_empty(max(room, end) - begin)])
        pixels[begin:end] = batch.tensors["image"]
    all_sides = np.concatenate(sides)
    sizes = channels * all_sides.prod(axis=1)
    starts = np.where(sizes > 0, np.cumsum(sizes) - sizes, -1)
    return DecodedImages(pixels[:end], starts, all_sides, time.monotonic() - begun)
