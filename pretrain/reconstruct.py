"""Colour reconstructions: what a pretrained model predicts for patches that it cannot see.

In training a tenth of the corrupted patches stay as they are and a tenth become another patch.
Here all of them become the mask embedding, so that no prediction sees anything of its own patch.
"""

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data.loader import Request, Samples
from pretrain import corruption as corrupting
from pretrain.checkpoint import load_weights
from pretrain.corruption import CorruptionConfig
from pretrain.encoder import EncoderConfig, make_encoder, patch_size
from pretrain.model import MaskedPatchModel
from pretrain.targets import TargetConfig, class_colours, colour_classes

COLUMNS = ("input", "corrupted", "predicted", "true")
_TILE = 160  # pixels a side, at least about this much after magnifying
_GAP = 6
_HEADER = 24
_GREY = 122  # of the titles: readable on white and on black
_HATCH = (112, 150)


class Reconstruction(NamedTuple):
    """What was hidden, and what was predicted.

    Attributes:
        images: uint8 (B, 3, H, W).
        is_corrupted: bool (B, N), the hidden patches.
        predicted: int64 (B, N), the predicted colour class; -1 where nothing was hidden.
        true: int64 (B, N), the class of each patch.
    """

    images: Tensor
    is_corrupted: Tensor
    predicted: Tensor
    true: Tensor

    @property
    def num_hidden(self) -> int:
        """Hidden patches in all images."""
        return int(self.is_corrupted.sum())

    @property
    def num_right(self) -> int:
        """Hidden patches whose class was predicted."""
        return int((self.predicted == self.true).sum())


def load_model(
    checkpoint: Path, corruption: CorruptionConfig, target: TargetConfig
) -> MaskedPatchModel:
    """Rebuild a checkpoint's model, for evaluation on the CPU.

    The encoder is built from the checkpoint alone, whatever the run was started from.

    Raises:
        UserError: The checkpoint is one of another model.
    """
    encoder = make_encoder(EncoderConfig(init=str(checkpoint)))
    model = MaskedPatchModel(encoder, corruption, target)
    load_weights(model, checkpoint)
    return model.eval()


def pick(samples: Samples, num_images: int) -> tuple[Tensor, Tensor]:
    """Take images evenly spread over the shards, always the same ones.

    Args:
        samples: With evaluation crops.
        num_images: How many; fewer come back if there are fewer, or if some are bad.

    Returns:
        uint8 (B, 3, H, W), and their keys in epoch 0, int64 (B,).
    """
    total = samples.manifest.num_samples
    num = min(num_images, total)
    places = [number * total // num for number in range(num)]
    parts = [samples[Request(0, place, place + 1)].tensors for place in places]
    usable = [part for part in parts if part["weight"].item() > 0]
    if not usable:
        return torch.empty(0, 3, *samples.size, dtype=torch.uint8), torch.empty(0).long()
    images, keys = (torch.cat([part[name] for part in usable]) for name in ("image", "key"))
    return images, keys


@torch.no_grad()
def reconstruct(
    model: MaskedPatchModel, images: Tensor, keys: Tensor, ratio: float
) -> Reconstruction:
    """Hide patches of images, all behind the mask embedding, and predict their colour classes.

    Args:
        model: In evaluation mode.
        images: uint8 (B, 3, H, W).
        keys: int64 (B,); they decide which patches are hidden.
        ratio: Fraction of the patches to hide.
    """
    all_masked = CorruptionConfig(ratio=ratio, mask_ratio=1.0, random_ratio=0.0)
    counts = corrupting.count(all_masked, model.num_patches)
    corruption = corrupting.draw(keys, model.num_patches, counts)
    true = colour_classes(images, patch_size(model.encoder), model.target.bits)  # (B, N)
    answers = model.predict(images, corruption).argmax(-1)  # (B, M)
    predicted = torch.full_like(true, -1).scatter(1, corruption.patches, answers)
    return Reconstruction(images, corruption.is_corrupted, predicted, true)


# ---------------------------------------------------------------- pictures


def panels(result: Reconstruction, patch: tuple[int, int], bits: int) -> Tensor:
    """Paint the four columns: uint8 (B, 4, 3, H, W), in the order of `COLUMNS`.

    Visible patches show the image's own pixels everywhere. Hidden ones are hatched grey, of the
    predicted class's colour, and of the true class's colour.
    """
    images = result.images
    height, width = images.shape[2:]
    grid = (height // patch[0], width // patch[1])
    colours = class_colours(bits)
    is_hidden = _over_pixels(result.is_corrupted[..., None], grid, patch)  # (B, 1, H, W)
    fills = [
        _hatch(height, width, patch).expand_as(images),
        _over_pixels(colours[result.predicted.clamp(min=0)], grid, patch),
        _over_pixels(colours[result.true], grid, patch),
    ]
    return torch.stack([images, *(torch.where(is_hidden, fill, images) for fill in fills)], dim=1)


def _over_pixels(values: Tensor, grid: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """Spread each patch's value over its pixels: (B, N, C) -> (B, C, H, W)."""
    by_place = values.unflatten(1, grid).permute(0, 3, 1, 2)  # (B, C, rows, columns)
    return by_place.repeat_interleave(patch[0], 2).repeat_interleave(patch[1], 3)


def _hatch(height: int, width: int, patch: tuple[int, int]) -> Tensor:
    """Return diagonal stripes of two greys, a quarter of a patch wide: uint8 (1, H, W)."""
    stripe = max(1, min(patch) // 4)
    diagonal = torch.arange(height)[:, None] + torch.arange(width)
    dark, light = _HATCH
    return torch.where(diagonal // stripe % 2 == 0, dark, light).to(torch.uint8)[None]


def draw_grid(pictures: Tensor) -> bytes:
    """Lay panels out as a PNG, a row an image, magnified in whole pixels; the ground is clear.

    Args:
        pictures: uint8 (B, 4, 3, H, W), what `panels` gave.
    """
    num_rows, num_columns, _, height, width = pictures.shape
    zoom = max(1, round(_TILE / max(height, width)))
    step = (width * zoom + _GAP, height * zoom + _GAP)
    size = (num_columns * step[0] - _GAP, _HEADER + num_rows * step[1] - _GAP)
    sheet = Image.new("RGBA", size, (0, 0, 0, 0))
    _write_titles(sheet, step[0])
    for row in range(num_rows):
        for column in range(num_columns):
            pixels = pictures[row, column].permute(1, 2, 0).numpy()
            tile = Image.fromarray(pixels).resize(
                (width * zoom, height * zoom), Image.Resampling.NEAREST
            )
            sheet.paste(tile, (column * step[0], _HEADER + row * step[1]))
    content = BytesIO()
    sheet.save(content, "PNG", optimize=True)
    return content.getvalue()


def _write_titles(sheet: Image.Image, stride: int) -> None:
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for number, title in enumerate(COLUMNS):
        place = (number * stride + (stride - _GAP) // 2, _HEADER // 2 - 1)
        draw.text(place, title, fill=(_GREY, _GREY, _GREY, 255), font=font, anchor="mm")
