"""A model without values, and a batch of zeros: what is counted of a pass without computing it."""

import copy
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pretrain.encoder.facts import image_size, num_channels

Batch = dict[str, Tensor]


def example_batch(encoder: Any, num_images: int) -> Batch:
    """Make a batch of zeros, as an objective on images takes it.

    Args:
        encoder: Says the size and channels of images.
        num_images: B.
    """
    shape = (num_images, num_channels(encoder), *image_size(encoder))
    return {
        "image": torch.zeros(shape, dtype=torch.uint8),
        "weight": torch.ones(num_images),
        "random_key": torch.zeros(num_images, dtype=torch.int64),
        "label": torch.zeros(num_images, dtype=torch.int64),
    }


def batch_of(model: Any, num_images: int) -> Batch:
    """Make a batch of zeros as a model takes it: its own where it takes more than images."""
    make = getattr(model, "example_batch", None)
    return make(num_images) if make else example_batch(model.encoder, num_images)


@contextmanager
def on_fake_tensors(model: nn.Module, device: torch.device) -> Generator[Any]:
    """Copy a model without its values, and leave all random generators as they were."""
    states = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002 - timm draws from it
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            fakes: dict[int, Any] = {}
            for tensor in [*model.parameters(), *model.buffers()]:
                fake = torch.empty_like(tensor, device=device)
                is_weight = isinstance(tensor, nn.Parameter)
                fakes[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_weight else fake
            yield copy.deepcopy(model, fakes)
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
