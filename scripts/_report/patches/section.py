"""What the features of patches are like, in a section of a report."""

from base64 import b64encode
from dataclasses import replace
from functools import partial
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from data.settings import UserError
from pretrain.pictures import draw
from pretrain.pictures.page import as_image
from pretrain.pictures.patches import (
    component_pictures,
    enlarged,
    patch_features,
    similarities,
)
from scripts._report.drawing import drawn
from scripts._report.figures import Figure, Section
from scripts._report.learnt import Take

TITLE = "What its patches are like"
_NUM_IMAGES, _NUM_LAYERS = 4, 4
_MOST_PATCHES = 256  # of which all similarities stand on the page: 64 kB an image and layer
_SCRIPT = Path(__file__).with_name("click.js")
_MARK = torch.tensor([255, 0, 80], dtype=torch.uint8)


def patches(encoder: VisionTransformer, take: Take | None) -> Section:
    """Show patch features as colours, and how alike the patches of an image are.

    Args:
        encoder: In evaluation mode, on the CPU.
        take: How many images -> that many at most, uint8 (B, C, H, W), and their keys; None
            where there are none.
    """
    if take is None:
        return Section(TITLE, notes=("None without images.",))
    try:
        images, _ = take(_NUM_IMAGES)
    except (UserError, OSError) as error:
        return Section(TITLE, notes=(f"None: {error}.",))
    features = patch_features(encoder, images, _spread(len(encoder.blocks), _NUM_LAYERS))
    figures = _components(images, features), _likeness(images, features)
    rows, columns = features[next(iter(features))].shape[1:3]
    if rows * columns > _MOST_PATCHES:
        note = (
            f"No patch can be chosen by a click: there are {rows * columns} of them, and the page "
            f"holds the similarities of {_MOST_PATCHES} at most."
        )
        return Section(TITLE, figures=figures, notes=(note,))
    layers = list(features)
    layers = dict.fromkeys([layers[(len(layers) - 1) // 2], layers[-1]])
    boxes = _clickable(draw.rgb(images), {layer: features[layer] for layer in layers})
    return Section(TITLE, boxes, figures, script=_SCRIPT.read_text("utf-8"))


def _spread(depth: int, num: int) -> list[int]:
    """Choose so many layers, evenly, the last among them."""
    num = min(num, depth)
    return [depth * (place + 1) // num for place in range(num)]


# ---------------------------------------------------------------- still


def _components(images: Tensor, features: dict[int, Tensor]) -> Figure:
    figure = drawn(
        "Patch features as colours",
        partial(draw.sheet, component_pictures(images, features), *_names(images, features)),
        f"{len(images)} images, and the three principal components of their patches' features in "
        f"{len(features)} blocks as red, green and blue",
        "The three directions in which the features of patches differ most, as red, green and "
        "blue, by block. They are those of all these images together: the same colour is a similar "
        "feature, within an image and across images. (A direction's sign is free: here its largest "
        "weight is positive, so the same encoder gives the same colours.) Parts of things in one "
        "colour, with edges where the things end, are a good sign; a colour that follows the place "
        "in the image alone means that the features say little but where a patch is.",
    )
    return replace(figure, is_wide=True)


def _likeness(images: Tensor, features: dict[int, Tensor]) -> Figure:
    rows, columns = next(iter(features.values())).shape[1:3]
    places = [
        (rows * (n + 1) // (len(images) + 1), columns * (n + 1) // (len(images) + 1))
        for n in range(len(images))
    ]
    marked = torch.stack(
        [_marked(image, at, (rows, columns)) for image, at in zip(images, places, strict=True)]
    )
    at = torch.tensor([row * columns + column for row, column in places])
    maps = [
        enlarged(_coloured(similarities(of)[range(len(images)), at], rows), images.shape[2:])
        for of in features.values()
    ]
    figure = drawn(
        "Patches like a chosen one",
        partial(draw.sheet, torch.stack([marked, *maps], 1), *_names(images, features)),
        f"{len(images)} images with a framed patch, and the cosine similarity of all their "
        f"patches to it in {len(features)} blocks",
        "How alike the features of each patch are to those of the framed one: cosine similarity, "
        "yellow for the same, dark for the least alike of that image. The framed patches are at "
        "fixed places. Bright where the same thing or texture is: the features tell it from the "
        "rest. Bright around the frame alone: they tell where it is.",
    )
    return replace(figure, is_wide=True)


def _names(images: Tensor, features: dict[int, Tensor]) -> tuple[list[str], list[str]]:
    return [""] * len(images), ["image", *(f"block {layer}" for layer in features)]


def _marked(image: Tensor, place: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Frame one patch of an image (C, H, W): uint8 (3, H, W)."""
    image = draw.rgb(image[None])[0].clone()
    height, width = (side // num for side, num in zip(image.shape[1:], grid, strict=True))
    top, left, thick = place[0] * height, place[1] * width, max(1, height // 6)
    inside = image[:, top : top + height, left : left + width].clone()
    image[:, top : top + height, left : left + width] = _MARK[:, None, None]
    cut = slice(thick, -thick)
    image[:, top : top + height, left : left + width][:, cut, cut] = inside[:, cut, cut]
    return image


def _coloured(values: Tensor, rows: int) -> Tensor:
    """Colour maps (B, N), each from its least to 1: (B, 3, rows, columns)."""
    from matplotlib import colormaps

    low = values.amin(1, keepdim=True)
    scaled = (values - low) / (1 - low).clamp(min=1e-12)
    tinted = torch.from_numpy(colormaps["viridis"](scaled.numpy())[..., :3])
    return tinted.float().unflatten(1, (rows, -1)).permute(0, 3, 1, 2)


# ---------------------------------------------------------------- a click chooses


def _clickable(images: Tensor, features: dict[int, Tensor]) -> str:
    """Write a box an image: its patches can be chosen, and the maps beside it answer."""
    rows, columns = next(iter(features.values())).shape[1:3]
    maps = {layer: _bytes(similarities(of)) for layer, of in features.items()}
    boxes = "".join(
        _box(number, image, (rows, columns), {layer: of[number] for layer, of in maps.items()})
        for number, image in enumerate(images)
    )
    words = (
        "Choose a patch of an image by a click, a touch or the arrow keys. The maps show the "
        "cosine similarity of all its patches to that one: yellow is the same, dark the least that "
        "two patches of the image have in this block."
    )
    return f'<p>{escape(words)}</p><div class="grid charts">{boxes}</div>'


def _bytes(values: Tensor) -> list[str]:
    """Scale each image's similarities (B, N, N) from their least to 1 into bytes, in base64."""
    low = values.amin((1, 2), keepdim=True)
    scaled = (values - low) / (1 - low).clamp(min=1e-12) * 255
    return [_base64(of.round().clamp(0, 255).to(torch.uint8).numpy()) for of in scaled]


def _base64(values: np.ndarray) -> str:
    return b64encode(values.tobytes()).decode()


def _box(number: int, image: Tensor, grid: tuple[int, int], maps: dict[int, str]) -> str:
    from matplotlib import colormaps

    content = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(content, "PNG")
    name = f"image {number + 1}"
    rows, columns = grid
    shown = as_image(content.getvalue(), f"{name}, whose patches can be chosen")
    canvases = "".join(
        f'<div><canvas width="{columns}" height="{rows}" role="img" data-values="{values}" '
        f'aria-label="{name}: similarity of its patches to the chosen one in block {layer}">'
        f"</canvas><small>block {layer}</small></div>"
        for layer, values in maps.items()
    )
    palette = (colormaps["viridis"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    return (
        f'<div class="panel clickable" data-patches="{rows},{columns}" '
        f'data-colours="{_base64(palette)}"><div><button type="button" aria-label="{name}: choose '
        f'a patch by a click or the arrow keys">{shown}<span class="mark"></span></button>'
        f"<small><output></output></small></div>{canvases}</div>"
    )
