"""What an encoder has learnt, in pictures: filters, positions, attention."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from data.settings import UserError
from pretrain.objective.model import MaskedPatchModel
from pretrain.pictures import attention, draw, weights
from scripts._report.drawing import Make, as_element, as_file
from scripts._report.figures import Figure, Section, file_name

Take = Callable[[int], tuple[Tensor, Tensor]]

_FOR_DISTANCE, _FOR_ROLLOUT = 128, 6  # images
_FILTERS = "Principal filters of the patch embedding"
_POSITIONS = "Similarity of position embeddings"
_DISTANCE = "Mean attention distance"
_ROLLOUT = "Attention rollout"


@dataclass(frozen=True)
class Missing:
    """A picture that there is not, and why."""

    title: str
    reason: str


def learnt(model: MaskedPatchModel, take: Take | None, prefix: str = "") -> Section:
    """Draw what an encoder has learnt; notes say what cannot be drawn.

    Args:
        model: In evaluation mode, on the CPU.
        take: How many images -> that many at most, uint8 (B, C, H, W), and their keys; None
            where there are none.
        prefix: Of the figures' file names.
    """
    parts = [_filters(model.encoder), _positions(model.encoder)]
    parts += _attention(model, take) if take is not None else [_no_images(_DISTANCE)]
    figures = [part(prefix) for part in parts if not isinstance(part, Missing)]
    notes = [f"{part.title}: {part.reason}." for part in parts if isinstance(part, Missing)]
    return Section("What the encoder has learnt", figures=tuple(figures), notes=tuple(notes))


def _figure(title: str, make: Make, alt: str, reading: str, prefix: str) -> Figure:
    name = prefix + file_name(title)
    picture = as_element(make, f"{title}: {alt}")
    return Figure(title, name, picture, reading, partial(as_file, make))


Part = Callable[[str], Figure] | Missing  # a prefix -> its figure


# ---------------------------------------------------------------- from the weights


def _filters(encoder: VisionTransformer) -> Part:
    components = weights.principal_filters(encoder)
    if components is None:
        return Missing(_FILTERS, "none, since the patches are cut from a CNN's feature map")
    channels = components.shape[1]
    grey = "" if channels == 3 else f" The mean over the {channels} channels is drawn, in grey."
    return partial(
        _figure,
        _FILTERS,
        partial(draw.filters, components),
        f"{len(components)} small pictures of weights, the strongest first",
        "What the first layer looks at in a patch, the strongest component top left, row by row, "
        "each stretched to its full range. Smooth blobs, stripes and colour gradients are a good "
        f"sign; noise means that the filters have learnt little yet.{grey}",
    )


def _positions(encoder: VisionTransformer) -> Part:
    table = weights.position_similarity(encoder)
    if table is None:
        return Missing(
            _POSITIONS,
            "none, since the encoder has no table of position embeddings (encoder.position is none "
            "or relative)",
        )
    rows, columns = table.shape[1:]
    return partial(
        _figure,
        _POSITIONS,
        partial(draw.similarity, table),
        f"a map of {rows} x {columns} patches for each patch, yellow where alike",
        "A map for each patch, laid out as the patches are in the image: how alike its position "
        "embedding is to all others, yellow for the same, dark for the opposite. A bright spot at "
        "the patch's own place that fades with the distance means that the encoder knows where "
        "patches are; speckle means that it has not learnt that yet.",
    )


# ---------------------------------------------------------------- from images


def _attention(model: MaskedPatchModel, take: Take) -> Iterator[Part]:
    try:
        images, _ = take(_FOR_DISTANCE)
    except (UserError, OSError) as error:
        yield Missing(_DISTANCE, f"none: {error}")
        return
    for part in (_distance, _rollout):
        try:
            yield part(model, images)
        except UserError as error:
            yield Missing(_TITLES[part], f"none: {error}")


def _distance(model: MaskedPatchModel, images: Tensor) -> Part:
    values = attention.distances(model.encoder, _normalised(model, images))  # (L, heads)
    first, last = values[0].mean(), values[-1].mean()
    return partial(
        _figure,
        _DISTANCE,
        partial(draw.distances, values),
        f"a dot a head; mean of the heads {first:.1f} pixels in the first block, {last:.1f} in the "
        "last",
        f"A dot is one head of one block, over {len(images)} images: how many pixels away it looks "
        "on average. Low dots look around themselves, as a convolution does; high ones over the "
        "whole image. Trained encoders have both in the first blocks; all dots at one height mean "
        "that heads look everywhere alike.",
    )


def _rollout(model: MaskedPatchModel, images: Tensor) -> Part:
    chosen = images[:: max(1, len(images) // _FOR_ROLLOUT)][:_FOR_ROLLOUT]
    masks = attention.rollout(model.encoder, _normalised(model, chosen))
    return partial(
        _figure,
        _ROLLOUT,
        partial(draw.rollout, chosen, masks),
        f"{len(chosen)} images, each beside itself darkened where little reaches the output",
        "Each image, and beside it how much of each place reaches the output through all layers: "
        "bright parts count most. It is scaled to the brightest place of each image, and says "
        "where the encoder looks, not what it makes of it.",
    )


_TITLES = {_distance: _DISTANCE, _rollout: _ROLLOUT}


@torch.no_grad()
def _normalised(model: MaskedPatchModel, images: Tensor) -> Tensor:
    return model.normalise(images)


def _no_images(title: str) -> Missing:
    return Missing(f"{title} and {_ROLLOUT.lower()}", "none without images")
