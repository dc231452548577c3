"""Patch features of images with masks, by layer, in one pass; a feature map's cells are patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from data.batch import LedgerEntry
from data.segmented import IGNORED, SegmentedSamples
from data.settings import require
from pretrain.encoder.facts import grid_size, image_size, num_channels
from pretrain.evaluation.features import read_batches, read_tokens
from pretrain.records.bad_samples import Unusable


@dataclass(frozen=True)
class Patches:
    """A layer's patch features of some images, with the images' masks.

    Attributes:
        values: float32 (B, N, D).
        masks: uint8 (B, H, W), the class of each pixel or `IGNORED`.
        grid: (h, w), N = h w; each patch covers (H / h, W / w) pixels.
    """

    values: Tensor
    masks: Tensor
    grid: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.masks.shape[1], self.masks.shape[2]

    def at(self, images: Tensor) -> "Patches":
        """Return some images, by their places, int64 (b,)."""
        return Patches(self.values[images], self.masks[images], self.grid)

    def split(self, size: int) -> "list[Patches]":
        """Return them in parts of so many images, which are views."""
        pairs = zip(self.values.split(size), self.masks.split(size), strict=True)
        return [Patches(values, masks, self.grid) for values, masks in pairs]

    def pixels(self) -> Tensor:
        """Return the classes of each patch's pixels, row by row: uint8 (B, N, P)."""
        (rows, columns), (height, width) = self.grid, self.size
        cells = self.masks.view(-1, rows, height // rows, columns, width // columns)
        return cells.transpose(2, 3).flatten(3).flatten(1, 2)


def join_pixels(pixels: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Put patches' pixels (B, N, P), or one for all (B, N, 1), back into images (B, H, W)."""
    rows, columns = grid
    height, width = size[0] // rows, size[1] // columns
    cells = pixels.expand(-1, -1, height * width).unflatten(2, (height, width))
    return cells.unflatten(1, grid).transpose(2, 3).reshape(-1, *size)


def majorities(pixels: Tensor, num_classes: int) -> Tensor:
    """Return the most frequent number of each patch's pixels: uint8 (M, P) -> int64 (M,).

    Of several as frequent the least. It may be `IGNORED`.
    """
    counts = torch.stack([(pixels == number).sum(1) for number in range(num_classes)])
    ignored = (pixels == IGNORED).sum(1)
    most, found = counts.max(0)
    return torch.where(ignored > most, IGNORED, found)


class Layer(NamedTuple):
    """A layer whose features are read: its number from 1, and their shape."""

    number: int
    grid: tuple[int, int]
    width: int


def count_layers(encoder: Any) -> int:
    """Return how many layers a model has: blocks, or the levels of a CNN that timm names.

    Raises:
        UserError: It is a model whose feature maps timm cannot give.
    """
    if isinstance(encoder, VisionTransformer):
        return len(encoder.blocks)
    require(
        hasattr(encoder, "forward_intermediates"),
        f"encoder.name is a {type(encoder).__name__}, whose feature maps timm does not give; name "
        "another model",
    )
    return len(encoder.feature_info)


def find_layers(encoder: Any, numbers: Sequence[int], key: str) -> list[Layer]:
    """Return the layers of these numbers, from 1, with the shapes of their features.

    Args:
        encoder: On the CPU; left in evaluation mode.
        numbers: Of blocks, or of a CNN's levels.
        key: The configuration key of the numbers, for messages.

    Raises:
        UserError: There is no such layer, or its cells are of no whole number of pixels.
    """
    depth, size = count_layers(encoder), image_size(encoder)
    kind = "blocks" if isinstance(encoder, VisionTransformer) else "feature maps"
    for number in numbers:
        require(0 < number <= depth, f"{key}={number} is not in 1..{depth}, the encoder's {kind}")
        if not isinstance(encoder, VisionTransformer):  # whose size is checked
            _check_stride(size, encoder.feature_info[number - 1]["reduction"], f"{key}={number}")
    with torch.no_grad():
        image = torch.zeros(1, num_channels(encoder), *size)
        maps = read_maps(encoder.eval(), image, numbers)
    layers = [Layer(n, *_shape(encoder, found)) for n, found in zip(numbers, maps, strict=True)]
    return list(dict.fromkeys(layers))


def _check_stride(size: tuple[int, int], stride: int, what: str) -> None:
    near = [max(1, round(side / stride)) * stride for side in size]
    require(
        list(size) == near,
        f"data.image_size={list(size)} is no multiple of the {stride} pixels of a cell of {what}; "
        f"try {near}",
    )


def _shape(encoder: Any, found: Tensor) -> tuple[tuple[int, int], int]:
    if isinstance(encoder, VisionTransformer):
        return grid_size(encoder), found.shape[2]
    return (found.shape[2], found.shape[3]), found.shape[1]


def read_maps(encoder: Any, images: Tensor, numbers: Sequence[int]) -> list[Tensor]:
    """Normalised images -> patch tokens (B, N, D) of each layer, or a CNN's maps (B, D, h, w)."""
    if isinstance(encoder, VisionTransformer):
        tokens = read_tokens(encoder, images, numbers)
        return [tokens[number].patches for number in numbers]
    ordered = sorted(set(numbers))
    found = encoder.forward_intermediates(
        images,
        indices=[number - 1 for number in ordered],
        stop_early=True,
        output_fmt="NCHW",
        intermediates_only=True,
    )
    maps = dict(zip(ordered, found, strict=True))
    return [maps[number] for number in numbers]


def _read(encoder: Any, images: Tensor, _: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """Images -> float32 (B, N, D) of each layer."""
    maps = read_maps(encoder, images, [layer.number for layer in layers])
    tokens = (found if found.ndim == 3 else found.flatten(2).transpose(1, 2) for found in maps)
    return [found.float().contiguous() for found in tokens]


class Extracted(NamedTuple):
    """What was read of a split.

    Attributes:
        patches: By layer, of the usable images in listed order; on the main process, on the CPU.
        places: int64 (B,), their places among all that are listed.
        unusable: The other images.
    """

    patches: list[Patches]
    places: Tensor
    unusable: Unusable


def extract_patches(
    accelerator: Accelerator,
    encoder: Any,
    samples: SegmentedSamples,
    layers: Sequence[Layer],
    batch_size: int,
    workers: int,
    name: str,
) -> Extracted:
    """Read the patch features and masks of a split on all ranks.

    They are the same on any number of ranks: every batch has the same positions there. The main
    process holds all of them, B x N x D x 4 bytes a layer and B x H x W of masks, and no copy.

    Args:
        accelerator: What `start` gave.
        encoder: On this rank's device; left in evaluation mode.
        samples: In listed order.
        layers: What `find_layers` gave.
        batch_size: Images a forward pass on each rank.
        workers: Loader processes a rank.
        name: The key of the split, for messages.

    Raises:
        RunStopped: What the encoder gives is no number, on all ranks.
    """
    total = samples.manifest.num_samples if accelerator.is_main_process else 0
    masks = torch.empty(total, *samples.size, dtype=torch.uint8)
    values = [torch.empty(total, of.grid[0] * of.grid[1], of.width) for of in layers]
    places: list[Tensor] = []
    bad: list[LedgerEntry] = []
    start = used = 0
    read = partial(_read, encoder, layers=layers)
    for batch in read_batches(accelerator, encoder, samples, read, batch_size, workers, name):
        bad += batch.bad
        if not accelerator.is_main_process:
            continue
        good = batch.weight.nonzero()[:, 0]
        for whole, part in zip([masks, *values], [batch.label, *batch.values], strict=True):
            whole[used : used + len(good)] = part[good].cpu()
        places.append(start + good.cpu())
        start, used = start + len(batch.weight), used + len(good)
    patches = [
        Patches(v[:used], masks[:used], of.grid) for v, of in zip(values, layers, strict=True)
    ]
    unusable = Unusable(name, samples.manifest.num_samples, gather_object(bad))
    return Extracted(
        patches, torch.cat(places) if places else torch.empty(0, dtype=torch.int64), unusable
    )
