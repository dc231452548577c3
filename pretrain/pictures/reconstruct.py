"""Reconstructions: what a pretrained model predicts for patches that it cannot see.

In training a tenth of the corrupted patches stay as they are and a tenth become another patch.
Here all of them are masked, so that no prediction sees anything of its own patch; and what is
painted follows from the prediction and the visible patches alone.
"""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data.batch import Batch, Request
from data.samples import Samples
from pretrain.config import PretrainConfig
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.encoder.facts import grid_size
from pretrain.objective import corruption as corrupting
from pretrain.objective.classes import ColourClasses
from pretrain.objective.config import CorruptionConfig
from pretrain.objective.model import MaskedPatchModel
from pretrain.objective.pixels import Pixels, to_images
from pretrain.objective.targets import Target
from pretrain.objective.words import Words
from pretrain.pictures.draw import rgb
from pretrain.training.state import load_weights

COLUMNS = ("input", "corrupted", "predicted", "true")
_TILE = 160  # pixels a side, at least about this much after magnifying
_GAP = 6
_HEADER = 24
_GREY = 122  # of the titles: readable on white and on black
_HATCH = (112, 150)


class Reconstruction(NamedTuple):
    """The patches that were hidden, and their predictions.

    Attributes:
        images: uint8 (B, C, H, W).
        is_corrupted: bool (B, N), the hidden patches.
        predicted: uint8 (B, C, H, W), the prediction in place of each hidden patch; the visible
            ones mean nothing.
        true: uint8 (B, C, H, W), the answer painted in the same way, of every patch.
        patch: Pixels of a patch, (height, width).
        num_cells: Colour cells in all hidden patches; 0 where values are predicted.
        num_right: Those whose class was predicted.
        error: Mean squared error of the predicted values; None where classes are.
        reading: How hidden patches are painted, as the end of a sentence.
    """

    images: Tensor
    is_corrupted: Tensor
    predicted: Tensor
    true: Tensor
    patch: tuple[int, int]
    num_cells: int
    num_right: int
    error: float | None
    reading: str

    @property
    def num_hidden(self) -> int:
        """Hidden patches in all images."""
        return int(self.is_corrupted.sum())

    @property
    def verdict(self) -> str:
        """How good the prediction is, as a sentence without its full stop."""
        hidden = f"{self.num_hidden:,} hidden patches"
        if self.error is not None:
            return f"The mean squared error over {hidden} is {self.error:.3f}"
        cells = f"{self.num_cells:,} cells of " if self.num_cells != self.num_hidden else ""
        return f"The predicted class is right for {self.num_right:,} of {cells}{hidden}"


def load_model(checkpoint: Path, config: PretrainConfig) -> MaskedPatchModel:
    """Rebuild a checkpoint's model, for evaluation on the CPU.

    The encoder is built from the checkpoint alone, whatever the run was started from.

    Args:
        checkpoint: Its folder.
        config: The run's.

    Raises:
        UserError: The checkpoint is one of another model.
    """
    own = EncoderConfig(init=str(checkpoint), sees_masked=config.encoder.sees_masked)
    model = MaskedPatchModel(
        make_encoder(own), config.corruption, config.target, config.light_decoder
    )
    load_weights(model, checkpoint)
    return model.eval()


def pick(samples: Samples, num_images: int) -> tuple[Tensor, Tensor]:
    """Take images evenly spread over the shards, always the same ones.

    Args:
        samples: With evaluation crops.
        num_images: How many; fewer come back if there are fewer, or if some are bad.

    Returns:
        uint8 (B, C, H, W), and their keys in epoch 0, int64 (B,).
    """
    usable = [batch.tensors for batch in pick_batches(samples, num_images)]
    if not usable:
        none = torch.empty(0, samples.channels, *samples.size, dtype=torch.uint8)
        return none, torch.empty(0).long()
    images, keys = (torch.cat([part[name] for part in usable]) for name in ("image", "random_key"))
    return images, keys


def pick_batches(samples: Samples, num_images: int) -> list[Batch]:
    """Take the samples of `pick`, each as a batch of its own with all that it has."""
    total = samples.manifest.num_samples
    num = min(num_images, total)
    places = (number * total // num for number in range(num))
    batches = (samples[Request(0, place, place + 1)] for place in places)
    return [batch for batch in batches if batch.places]


@torch.no_grad()
def reconstruct(
    model: MaskedPatchModel, images: Tensor, keys: Tensor, config: CorruptionConfig
) -> Reconstruction:
    """Hide patches of images, all of them masked, and predict them.

    Args:
        model: In evaluation mode.
        images: uint8 (B, C, H, W).
        keys: int64 (B,); they decide which patches are hidden.
        config: Which patches to hide, and how many; all are masked, whatever it says of that.
    """
    all_masked = replace(config, mask_ratio=1.0, random_ratio=0.0)
    grid = grid_size(model.encoder)
    corruption = corrupting.draw(keys, grid, all_masked)
    answers = model.target.answers(images)  # (B, N, .)
    guesses = model.target.guesses(model.predict(images, corruption))  # (B, M, .)
    hidden = corruption.patches[..., None].expand_as(guesses)
    predicted = torch.zeros_like(answers).scatter(1, hidden, guesses)
    is_visible = ~corruption.is_corrupted
    painted = [model.target.colours(part, images, is_visible) for part in (predicted, answers)]
    scores = model.target.scores(guesses, answers.gather(1, hidden))  # (B, M)
    num_cells = guesses.numel() if model.target.num_classes else 0
    return Reconstruction(
        images,
        corruption.is_corrupted,
        *(to_images(part, grid) for part in painted),
        patch=model.patch,
        num_cells=num_cells,
        num_right=round(float(scores.mean()) * num_cells),
        error=None if num_cells else float(scores.mean()),
        reading=_reading(model.target),
    )


def _reading(target: Target) -> str:
    if isinstance(target, Pixels) and target.is_normalised:
        return (
            "their normalised pixels, with the brightness and contrast of the image's visible "
            "patches: the target leaves out a patch's own, and the true ones would tell too much"
        )
    if isinstance(target, ColourClasses) and target.grid > 1:
        cells = f"{target.grid} x {target.grid} cells"
        return f"{cells}, each of the colour in the middle of its class"
    if isinstance(target, Words):
        return "the mean of the patches that its word was learnt from"
    return "their pixels" if isinstance(target, Pixels) else "the colour in the middle of its class"


# ---------------------------------------------------------------- pictures


def panels(result: Reconstruction) -> Tensor:
    """Paint the four columns: uint8 (B, 4, 3, H, W), in the order of `COLUMNS`.

    Visible patches show the image's own pixels everywhere. Hidden ones are hatched grey, as
    predicted, and as a right prediction would be.
    """
    images = rgb(result.images)
    height, width = images.shape[2:]
    grid = (height // result.patch[0], width // result.patch[1])
    is_hidden = _over_pixels(result.is_corrupted[..., None], grid, result.patch)  # (B, 1, H, W)
    hatch = _hatch(height, width, result.patch).expand_as(images)
    fills = [hatch, rgb(result.predicted), rgb(result.true)]
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
