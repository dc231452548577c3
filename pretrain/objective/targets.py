"""Targets of corrupted patches: colour in classes, pixels, or a visual word.

Three targets are the paper's: the mean colour in 3 bits a channel (one of 8^3 = 512 classes), the
patch downsized to 4x4 cells (16 such classes), and all pixels by L2. The fourth is MAE's, pixels
normalised patch by patch. The fifth is the nearest of some patches that are learnt from the data
before training (`words.py`): classes as the mean colour's, of colour and structure. A target
is made once, from the configuration and the images' shape; a model asks it for answers, losses and
guesses, and never which kind it is.

Source: Dosovitskiy et al. 2021, section B.1.2; He et al. 2021, arXiv:2111.06377, section 3.
"""

import math
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from data.settings import require
from pretrain.objective.classes import ColourClasses
from pretrain.objective.config import TargetConfig
from pretrain.objective.pixels import Pixels
from pretrain.objective.words import Words

_MAX_CLASSES_BITS = 15  # 32,768 classes: 5 bits of each of three channels


class Target(Protocol):
    """A target as a model sees it. `M` patches are predicted, `G` colour cells are in each."""

    @property
    def num_outputs(self) -> int:
        """Outputs of the head for a patch."""
        ...

    @property
    def num_classes(self) -> int | None:
        """Classes `K` of each colour cell; None where values are asked for."""
        ...

    def answers(self, images: Tensor) -> Tensor:
        """Return what is true of each patch.

        Args:
            images: uint8 (B, C, H, W).

        Returns:
            Classes, int64 (B, N, G), or values, float32 (B, N, V), whatever autocast says.
        """
        ...

    def losses(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Return each patch's loss: nats a cell, or the mean squared error of its values.

        Args:
            outputs: (B, M, num_outputs) in any precision.
            answers: (B, M, G) or (B, M, V), those of the same patches.

        Returns:
            float32 (B, M).
        """
        ...

    def guesses(self, outputs: Tensor) -> Tensor:
        """Turn outputs (B, M, num_outputs) into what is likeliest, of the form of `answers`."""
        ...

    def scores(self, guesses: Tensor, answers: Tensor) -> Tensor:
        """Return each patch's fraction of cells that are right, or mean squared error: (B, M)."""
        ...

    def colours(self, guesses: Tensor, images: Tensor, is_visible: Tensor) -> Tensor:
        """Paint guesses, or answers, as pixels.

        Args:
            guesses: (B, N, G) or (B, N, V), of all patches.
            images: uint8 (B, C, H, W). Nothing but their visible patches is used.
            is_visible: bool (B, N), the patches that the model saw.

        Returns:
            uint8 (B, N, C, Ph, Pw).
        """
        ...


def make_target(
    config: TargetConfig,
    patch: tuple[int, int],
    channels: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Target:
    """Make the target that a configuration names, for images of one shape.

    Args:
        config: Which one.
        patch: Pixels of a patch, (height, width).
        channels: `C` of the images.
        mean: Channel means of pixels in 0..1.
        std: Channel deviations, likewise.

    Raises:
        UserError: There would be too many classes, or a patch is too small.
    """
    if config.kind in ("mean_colour", "colour_grid"):
        grid = config.grid if config.kind == "colour_grid" else 1
        _check_classes(config.bits, channels)
        require(
            grid <= min(patch),
            f"target.grid={grid} is more than a patch's {min(patch)} pixels a side; lower it",
        )
        return ColourClasses(patch, channels, config.bits, grid)
    if config.kind == "words":
        return Words(patch, channels, config.num_words)
    is_normalised = config.kind == "normalised_pixels"
    num_values = channels * math.prod(patch)
    require(
        num_values > 1 or not is_normalised,
        "target.kind=normalised_pixels needs two values a patch or more; set target.kind=pixels",
    )
    return Pixels(patch, mean, std, is_normalised)


def _check_classes(bits: int, channels: int) -> None:
    lower = "lower target.bits, or " if channels <= _MAX_CLASSES_BITS else ""
    require(
        bits * channels <= _MAX_CLASSES_BITS,
        f"target.bits={bits} with data.channels={channels} would be {1 << (bits * channels)} "
        f"classes, over {1 << _MAX_CLASSES_BITS}; {lower}set target.kind=pixels",
    )
