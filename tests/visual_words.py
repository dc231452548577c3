"""Words for a target that nobody trains: learnt from noise, so that patches have different ones."""

import math

import torch

from pretrain.objective.targets import Target
from pretrain.objective.words import Words, fit


def learn_from_noise(target: Target) -> None:
    """Give a target of words its words; leave every other kind as it is."""
    if not isinstance(target, Words):
        return
    size = (2 * target.num_classes, target.channels * math.prod(target.patch))
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    target.load(fit(patches, target.num_classes, target.num_components, seed=0))
