"""A picture of some validation images, their masks, and what the best head says of them."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from data.batch import Request
from data.segmented import IGNORED, SegmentedSamples
from data.shards import atomic_write
from pretrain.pictures import draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = ("image", "mask", "prediction")
_A_ROW = 4  # names of classes


def choose_places(number: int, most: int) -> Tensor:
    """Return places of images that lie evenly among so many: int64 (n,)."""
    return torch.linspace(0, max(0, number - 1), min(number, most)).round().long()


def draw_predictions(
    samples: SegmentedSamples, places: Tensor, masks: Tensor, found: Tensor, names: list[str]
) -> "Figure":
    """Draw images in rows: the image, its mask, and the classes that were found.

    Args:
        samples: Where the images are.
        places: int64 (n,), the images' places among all that are listed.
        masks: uint8 (n, H, W); what is `IGNORED` is black.
        found: int64 (n, H, W).
        names: Of the classes.
    """
    from matplotlib.patches import Patch

    images = torch.cat([samples[Request(0, p, p + 1)].tensors["image"] for p in places.tolist()])
    images = draw.rgb(images)
    colours = torch.from_numpy(class_colours())
    pictures = [images, *(colours[of.long()].permute(0, 3, 1, 2) for of in (masks, found))]
    figure = draw.sheet(torch.stack(pictures, dim=1), [""] * len(images), _COLUMNS)
    numbers: list[int] = torch.cat([masks.long(), found]).unique().tolist()
    keys = [
        Patch(color="#" + bytes(colours[number].tolist()).hex(), label=names[number])
        for number in numbers
        if number != IGNORED
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=_A_ROW, frameon=False)
    return figure


def class_colours() -> np.ndarray:
    """Return a colour a number: uint8 (256, 3); `IGNORED` is black.

    They are PASCAL VOC's, of the number above: a class's bits are dealt out to red, green and blue
    in turn, from the highest bit down.
    """
    numbers = (np.arange(256) + 1) % (IGNORED + 1)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> channel & 1) << 7 - bit).astype(np.uint8)
        numbers = numbers >> 3
    return colours


def save_png(figure: "Figure", path: Path) -> None:
    """Write a figure, whole or not at all."""
    with atomic_write(path) as file:
        file.write(draw.render(lambda: figure, "png"))
