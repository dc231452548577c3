"""Pictures of what an encoder has learnt: nearest images, filters, positions, attention."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from data.settings import UserError
from data.text import count
from pretrain.objective.model import MaskedPatchModel
from pretrain.pictures import attention, draw, weights
from pretrain.pictures.neighbours import nearest_images
from pretrain.vilt.pairs import PairEncoder
from scripts._report.drawing import drawn
from scripts._report.figures import Figure, Section

Take = Callable[[int], tuple[Tensor, Tensor]]
_Model = MaskedPatchModel | PairEncoder
_Part = Figure | str  # or why there is none

_FOR_DISTANCE, _FOR_ROLLOUT, _FOR_NEIGHBOURS = 128, 6, 256  # images
_NUM_QUERIES, _NUM_NEAREST = 6, 4
_NEIGHBOURS = "Nearest images"
_FILTERS = "Principal filters of the patch embedding"
_POSITIONS = "Similarity of position embeddings"
_DISTANCE = "Mean attention distance"
_ROLLOUT = "Attention rollout"


def learnt(model: _Model, untrained: VisionTransformer, take: Take | None) -> Section:
    """Draw what an encoder has learnt; notes say what cannot be drawn.

    Args:
        model: In evaluation mode, on the CPU.
        untrained: Its encoder with random weights.
        take: How many images -> that many at most, uint8 (B, C, H, W), and their keys; None
            where there are none.
    """
    parts = [
        _neighbours(model.encoder, untrained, take),
        _filters(model.encoder),
        _positions(model.encoder),
        *_attention(model, take),
    ]
    figures = tuple(part for part in parts if isinstance(part, Figure))
    notes = tuple(part for part in parts if isinstance(part, str))
    return Section("What the encoder has learnt", figures=figures, notes=notes)


# ---------------------------------------------------------------- from the weights


def _filters(encoder: VisionTransformer) -> _Part:
    components = weights.principal_filters(encoder)
    if components is None:
        return f"{_FILTERS}: none, since the patches are cut from a CNN's feature map."
    channels = components.shape[1]
    grey = "" if channels == 3 else f" The mean over the {channels} channels is drawn, in grey."
    return drawn(
        _FILTERS,
        partial(draw.filters, components),
        f"{len(components)} small pictures of weights, the strongest first",
        "What the first layer looks at in a patch, the strongest component top left, row by row, "
        "each stretched to its full range. Smooth blobs, stripes and colour gradients are a good "
        f"sign; noise means that the filters have learnt little yet.{grey}",
    )


def _positions(encoder: VisionTransformer) -> _Part:
    table = weights.position_similarity(encoder)
    if table is None:
        return (
            f"{_POSITIONS}: none, since the encoder has no table of position embeddings "
            "(encoder.position is none or relative)."
        )
    rows, columns = table.shape[1:]
    return drawn(
        _POSITIONS,
        partial(draw.similarity, table),
        f"a map of {rows} x {columns} patches for each patch, yellow where alike",
        "A map for each patch, laid out as the patches are in the image: how alike its position "
        "embedding is to all others, yellow for the same, dark for the opposite. A bright spot at "
        "the patch's own place that fades with the distance means that the encoder knows where "
        "patches are; speckle means that it has not learnt that yet.",
    )


# ---------------------------------------------------------------- from images


def _neighbours(
    encoder: VisionTransformer, untrained: VisionTransformer, take: Take | None
) -> _Part:
    if take is None:
        return f"{_NEIGHBOURS}: none without images."
    try:
        images, _ = take(_FOR_NEIGHBOURS)
    except (UserError, OSError) as error:
        return f"{_NEIGHBOURS}: none: {error}."
    if len(images) < 2:
        return f"{_NEIGHBOURS}: none among {count(len(images), 'image')}."
    queries = torch.arange(len(images))[:: max(1, len(images) // _NUM_QUERIES)][:_NUM_QUERIES]
    num = min(_NUM_NEAREST, len(images) - 1)
    found = {
        name: nearest_images(of, images, queries, num)
        for name, of in (("pretrained", encoder), ("untrained", untrained))
    }
    figure = drawn(
        _NEIGHBOURS,
        partial(draw.neighbours, images, queries, found),
        f"{count(len(queries), 'image')}, each beside its {num} nearest of {len(images)}, by the "
        "pretrained encoder and by the same one untrained",
        f"Each row begins with an image. Beside it are the {num} of {len(images) - 1} others that "
        "the encoder finds most alike: in the first group as pretrained here, in the second with "
        "the random weights of an untrained one. Pretraining has helped where the first group "
        "shows more of the same thing. The rows are evenly spread over the images, not chosen.",
    )
    return replace(figure, is_wide=True)


def _attention(model: _Model, take: Take | None) -> Iterator[_Part]:
    if take is None:
        yield f"{_DISTANCE} and {_ROLLOUT.lower()}: none without images."
        return
    try:
        images, _ = take(_FOR_DISTANCE)
    except (UserError, OSError) as error:
        yield f"{_DISTANCE}: none: {error}."
        return
    for title, make in ((_DISTANCE, _distance), (_ROLLOUT, _rollout)):
        try:
            yield make(model, images)
        except UserError as error:
            yield f"{title}: none: {error}."


def _distance(model: _Model, images: Tensor) -> _Part:
    values = attention.distances(model.encoder, model.normalise(images))  # (L, heads)
    first, last = values[0].mean(), values[-1].mean()
    return drawn(
        _DISTANCE,
        partial(draw.distances, values),
        f"a dot a head; mean of the heads {first:.1f} pixels in the first block, {last:.1f} in the "
        "last",
        f"A dot is one head of one block, over {len(images)} images: how many pixels away it looks "
        "on average. Low dots look around themselves, as a convolution does; high ones over the "
        "whole image. Trained encoders have both in the first blocks; all dots at one height mean "
        "that heads look everywhere alike.",
    )


def _rollout(model: _Model, images: Tensor) -> _Part:
    chosen = images[:: max(1, len(images) // _FOR_ROLLOUT)][:_FOR_ROLLOUT]
    masks = attention.rollout(model.encoder, model.normalise(chosen))
    return drawn(
        _ROLLOUT,
        partial(draw.rollout, chosen, masks),
        f"{len(chosen)} images, each beside itself darkened where little reaches the output",
        "Each image, and beside it how much of each place reaches the output through all layers: "
        "bright parts count most. It is scaled to the brightest place of each image, and says "
        "where the encoder looks, not what it makes of it.",
    )
