"""Shrinking the images of a source while shards are made, and what is said of it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import torch

from data.images.shrink import KeptAsItIs, shrink
from data.shards import ImageFile
from data.text import count, name_some
from pretrain.machine.cores import usable_cores

_CHUNK = 64  # samples in memory at once


class Shrinking:
    """Shrinks samples, on all cores, and counts.

    Args:
        max_side: Pixels that no side is to exceed.
        quality: Of the JPEGs that are written.
    """

    def __init__(self, max_side: int, quality: int) -> None:
        self.max_side, self.quality = max_side, quality
        self._num_images = self._num_shrunk = self._bytes_before = self._bytes_after = 0
        self._kept: dict[str, list[str]] = {}  # by what they have

    def shrink(self, samples: Iterator[ImageFile]) -> Iterator[ImageFile]:
        """Yield samples in their order; what is shrunk is a `jpg` member."""
        torch.set_num_threads(1)  # of each of the pool's threads
        with ThreadPoolExecutor(usable_cores()) as pool:
            while chunk := list(islice(samples, _CHUNK)):
                for sample, result in zip(chunk, pool.map(self._shrink, chunk), strict=True):
                    yield self._taken(sample, result)

    def _shrink(self, sample: ImageFile) -> bytes | KeptAsItIs | None:
        try:
            return shrink(sample.data, self.max_side, self.quality)
        except KeptAsItIs as kept:
            return kept

    def _taken(self, sample: ImageFile, result: bytes | KeptAsItIs | None) -> ImageFile:
        """Count a sample, and return what is written of it."""
        taken = sample
        if isinstance(result, bytes):
            taken = replace(sample, extension="jpg", data=result)
        if isinstance(result, KeptAsItIs):
            self._kept.setdefault(str(result), []).append(f"{sample.key}.{sample.extension}")
        self._num_images += 1
        self._num_shrunk += taken is not sample
        self._bytes_before += len(sample.data)
        self._bytes_after += len(taken.data)
        return taken

    def summary(self) -> Iterator[str]:
        """Yield in lines what was shrunk, and what was kept as it is."""
        yield (
            f"shrunk: {self._num_shrunk:,} of {count(self._num_images, 'image')} written now, to "
            f"{self.max_side} pixels at quality {self.quality}; from {self._bytes_before:,} to "
            f"{self._bytes_after:,} bytes in all"
        )
        reasons = [
            f"{len(names):,} with {reason} ({name_some(sorted(names))})"
            for reason, names in sorted(self._kept.items())
        ]
        if reasons:
            yield f"kept as they are: {'; '.join(reasons)}"
