"""RandAugment, timm's, as a pure function of a crop and a seed.

Source: Cubuk et al. 2020 (arXiv:1909.13719).
"""

import random
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment
from torch import Tensor

from data.settings import UserError, require

_DEFAULT_FILL = (0.5, 0.5, 0.5)
_GREY, _RGB = 1, 3  # channels that its operations know


class RandAugment:
    """Change colours and shape of a training crop at random.

    Args:
        recipe: In timm's form, such as `rand-m9-mstd0.5-inc1`.
        size: (H, W) of the crops.
        mean: Channel means of pixels in 0..1: what fills the places that a shift uncovers. There
            are as many as channels: 3, or 1 of grey crops.

    Raises:
        UserError: timm does not know the recipe, or the crops are neither RGB nor grey.
    """

    def __init__(
        self, recipe: str, size: tuple[int, int], mean: tuple[float, ...] | None = None
    ) -> None:
        values = [round(255 * value) for value in mean or _DEFAULT_FILL]
        require(
            len(values) in (_GREY, _RGB),
            f"data.augment={recipe} changes RGB or grey images, data.channels={len(values)}; "
            "leave it out",
        )
        fill = tuple(values) if len(values) == _RGB else values[0]
        # as timm's create_transform has it
        settings = {"translate_const": int(min(size) * 0.45), "img_mean": fill}
        try:
            self._transform = auto_augment.rand_augment_transform(recipe, settings)
        except (AssertionError, ValueError, KeyError, NotImplementedError) as error:
            raise UserError(
                f"data.augment={recipe} is no RandAugment recipe of timm; try "
                "rand-m9-mstd0.5-inc1, or null for none"
            ) from error
        for operation in self._transform.ops:
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = _posterize

    def __call__(self, crop: Tensor, seed: int) -> Tensor:
        """Augment uint8 (C, H, W), depending on nothing but the crop and the seed of 32 bits."""
        random.seed(seed)  # timm draws from both
        np.random.seed(seed)  # noqa: NPY002
        pixels = crop[0] if len(crop) == _GREY else crop.permute(1, 2, 0)  # (H, W), or (H, W, 3)
        image = Image.fromarray(pixels.contiguous().numpy())
        augmented = np.atleast_3d(np.array(self._transform(image)))
        return torch.from_numpy(augmented).permute(2, 0, 1)


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep one bit where timm asks for none at full strength: Pillow 13 refuses that."""
    return auto_augment.posterize(image, max(1, bits))
