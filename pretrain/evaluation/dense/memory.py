"""What dense evaluation holds in memory, told before the first image is read."""

from collections.abc import Sequence

import torch

from data.settings import require
from data.text import count
from pretrain.evaluation.dense.patches import Layer
from pretrain.machine.free_memory import free_bytes


def count_bytes(
    layers: Sequence[Layer],
    num_train: int,
    num_val: int,
    size: tuple[int, int],
    most_patches: int,
) -> int:
    """Return a lower bound of what the main process holds at its peak.

    That is the features of all layers and the masks, a second time those of the widest layer's
    training images while settings are chosen, and the patches that heads keep, in float64.

    Args:
        layers: What is read.
        num_train: Training images.
        num_val: Validation images.
        size: (H, W).
        most_patches: That are kept for logistic regression and k-NN; 0: neither is fitted.
    """
    per_image = [4 * of.grid[0] * of.grid[1] * of.width for of in layers]
    mask = size[0] * size[1]
    held = (num_train + num_val) * (sum(per_image) + mask)
    kept = [8 * of.width * min(most_patches, num_train * of.grid[0] * of.grid[1]) for of in layers]
    return held + num_train * (max(per_image) + mask) + max(kept)


def check_memory(needed: int, num_images: int) -> None:
    """Raise `UserError` where more is needed than the machine has free."""
    free = free_bytes(torch.device("cpu"))
    require(
        free is None or needed <= free,
        f"dense.layers: the patch features of {count(num_images, 'image')} and what is fitted on "
        f"them take {needed / 2**30:,.1f} GiB or more, and {(free or 0) / 2**30:,.1f} GiB are "
        "free; name fewer layers, or lower data.fraction, data.image_size or dense.max_patches",
    )
