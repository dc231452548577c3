"""Requests -> batches of images and masks: the class of each pixel.

A mask is the member KEY.seg.png of a sample, as large as its image; see `data.images.masks`.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from data.batch import Batch, Request
from data.images.boxes import Box, evaluation_box
from data.images.decoding import decode_resized
from data.images.levels import UnreadableImage
from data.images.masks import cut_nearest, decode_mask
from data.index.manifest import Manifest
from data.labels.classes import Numbering, UnknownClass, as_it_is
from data.labels.parse import NO_LABEL
from data.reading.bad import BadSample
from data.reading.reader import ShardReader
from data.samples import Samples, pick_image
from data.settings import UserError
from data.shards import MASK_EXTENSION
from data.text import name_some, printable

IGNORED = 255  # in a batch, of pixels that count in no figure, whatever number the shards have


class SegmentedSamples(Samples):
    """Requests -> batches in listed order, cut as in evaluation, whose label is a mask.

    `label` is uint8 (B, H, W), cut as the image is, each pixel the one under its middle. A sample
    without a mask, with one of another size than its image, or with numbers that are no classes, is
    bad; its label is all `IGNORED`.

    Args:
        manifest: The indexed shards.
        size: (H, W) of images and masks.
        num_classes: K.
        ignored: The number in the shards of pixels that count in no figure.
        channels: C.
        numbering: As in `Samples`.
    """

    def __init__(
        self,
        manifest: Manifest,
        size: tuple[int, int],
        *,
        num_classes: int,
        ignored: int,
        channels: int = 3,
        numbering: Numbering | None = None,
    ) -> None:
        super().__init__(manifest, size, seed=0, channels=channels, numbering=numbering)
        self._wanted |= {MASK_EXTENSION}
        self._num_known = num_classes
        self._ignored = ignored

    def __getitem__(self, request: Request) -> Batch:
        """Read, decode and crop one request's images and masks."""
        masks: list[np.ndarray] = []

        def read(shard: int, place: int) -> tuple[tuple[bytes, np.ndarray], int]:
            members = self._members(shard, place)
            return (pick_image(members, self.channels), self._mask(shard, members)), NO_LABEL

        def crop(content: tuple[bytes, np.ndarray], _: np.ndarray) -> Tensor:
            image, mask = content
            pixels = decode_resized(image, self.channels, lambda h, w: self._plan(mask, h, w))
            height, width = mask.shape
            masks.append(cut_nearest(mask, evaluation_box(height, width, self.size), self.size))
            return pixels

        batch = self._fill(request, read, crop)
        label = torch.full((request.stop - request.start, *self.size), IGNORED, dtype=torch.uint8)
        if masks:
            label[batch.tensors["weight"] > 0] = torch.from_numpy(np.stack(masks))
        return batch._replace(tensors=batch.tensors | {"label": label})

    def _mask(self, shard: int, members: Mapping[str, bytes]) -> np.ndarray:
        """Return a sample's mask (h, w) under the common numbers, `IGNORED` where none counts."""
        content = members.get(MASK_EXTENSION)
        if content is None:
            raise BadSample(f"no mask: it has no .{MASK_EXTENSION} member")
        try:
            values = decode_mask(content)
        except UnreadableImage as error:
            raise BadSample(f".{MASK_EXTENSION}: {error}") from error
        return self._table(shard, values)[values]

    def _table(self, shard: int, values: np.ndarray) -> np.ndarray:
        """Return the common number of each number that occurs: uint8 (256,)."""
        renumber = self.numbering or as_it_is
        table = np.full(256, IGNORED, np.uint8)
        unknown: list[int] = []
        for value in np.flatnonzero(np.bincount(values.ravel())).tolist():
            if value == self._ignored:
                continue
            try:
                number = renumber(shard, value)
            except UnknownClass:
                number = self._num_known
            if number < self._num_known:
                table[value] = number
            else:
                unknown.append(value)
        if unknown:
            remedy = f"; if it is of no class, give data.ignored={unknown[0]}"
            raise BadSample(
                f".{MASK_EXTENSION} has {name_some(unknown)}, which is neither one of "
                f"{self._num_known} classes nor data.ignored={self._ignored}"
                f"{remedy if len(unknown) == 1 else ''}"
            )
        return table

    def _plan(self, mask: np.ndarray, height: int, width: int) -> tuple[Box, tuple[int, int]]:
        if mask.shape != (height, width):
            raise BadSample(
                f".{MASK_EXTENSION} is {mask.shape[1]}x{mask.shape[0]}, and its image "
                f"{width}x{height}"
            )
        return evaluation_box(height, width, self.size), self.size


def check_masks(manifest: Manifest, key: str) -> None:
    """Refuse images without a single mask, by the index alone.

    What a single sample lacks, the ledger of bad samples will say.

    Args:
        manifest: The indexed shards.
        key: The configuration key that names them, for messages.

    Raises:
        UserError: No sample has a mask, or it is a folder of images.
    """
    for place in manifest.shards.tables:
        source = printable(manifest.shards.locations[place])
        raise UserError(
            f"{key}={source} is read as images alone, and masks come from shards that hold KEY.jpg "
            f"with KEY.{MASK_EXTENSION} (`tar --sort=name -cf SHARD.tar -C FOLDER .`); name shards"
        )
    endings: dict[str, None] = {}
    reader = ShardReader(manifest)
    try:
        for shard, row in enumerate(manifest.shards):
            for sample in range(row.num_samples):
                extensions = reader.extensions(shard, sample)
                if MASK_EXTENSION in extensions:
                    return
                endings |= dict.fromkeys(f".{extension}" for extension in extensions)
    finally:
        reader.close()
    raise UserError(
        f"{key}: no sample has a mask, KEY.{MASK_EXTENSION} beside KEY.jpg, but "
        f"{name_some([*endings], 8)}; write shards with masks"
    )
