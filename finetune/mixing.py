"""Mixup and cutmix, timm's, where some slots of a batch hold no sample."""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from timm.data.mixup import Mixup
from torch import Tensor

from finetune.config import MixConfig

_Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Mixed(NamedTuple):
    """A batch after mixing: images (B, C, H, W), and probabilities of the classes (B, K)."""

    images: Tensor
    targets: Tensor


class Mixing:
    """Mixes a batch, drawing from NumPy's global generator, which the loop seeds for each pass.

    Args:
        config: What is on.
        num_classes: K.
        label_smoothing: Probability spread over all classes.
        is_multi_label: Labels are (B, K) of 0 and 1.
    """

    def __init__(
        self,
        config: MixConfig,
        num_classes: int,
        label_smoothing: float = 0.0,
        is_multi_label: bool = False,
    ) -> None:
        mixup = Mixup(
            config.mixup,
            config.cutmix,
            label_smoothing=label_smoothing,
            num_classes=num_classes,
            multi_label=is_multi_label,
        )
        # a compiled draw would be the same at each step
        self._mix = cast(_Mix, torch.compiler.disable(mixup.__call__))

    def __call__(self, images: Tensor, label: Tensor) -> Mixed:
        """Mix image i with image B - 1 - i; the float images are changed in place."""
        return Mixed(*self._mix(images, label))


def fill_empty_slots(images: Tensor, label: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat good samples in the slots of weight 0: else an image could be mixed with padding.

    A batch norm would count padding, too. The weights stay: what is repeated adds no loss.

    Args:
        images: (B, C, H, W).
        label: (B,) or (B, K).
        weight: (B,), 0 for padding and for what could not be read.
    """
    is_good = weight > 0
    slots = torch.arange(len(weight), device=weight.device)
    good_first = (~is_good).int().argsort(stable=True)
    source = good_first[slots % is_good.sum().clamp(min=1)]  # no wait for the device
    source = torch.where(is_good, slots, source)
    return images[source], label[source]
