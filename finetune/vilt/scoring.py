"""Scores of images with captions by the matching head: each image with all captions.

An image's patches are embedded once. Then it goes through the transformer beside batches of
captions, which are the same for all images: so a score is the same on any number of ranks.
"""

import time
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from pretrain.vilt.model import ViltModel
from pretrain.vilt.pairs import ImageTokens


class Scorer:
    """Scores one image with all captions.

    Args:
        accelerator: What `start` gave.
        model: In evaluation mode, on its device, with the head of matching.
        captions: int64 (U, L), the distinct captions, short ones first.
        batch_size: Captions a forward pass.
    """

    def __init__(
        self, accelerator: Accelerator, model: ViltModel, captions: np.ndarray, batch_size: int
    ) -> None:
        self._accelerator: Any = accelerator
        self._model = model
        self._num_captions = len(captions)
        parts = torch.from_numpy(captions).split(batch_size)
        pad = model.pieces.pad
        self._parts = [
            part[:, : int((part != pad).sum(1).max())].to(accelerator.device) for part in parts
        ]

    @torch.no_grad()
    def embed(self, tensors: dict[str, Tensor]) -> ImageTokens:
        """Embed the images of a batch."""
        with self._accelerator.autocast():
            return self._model.image_tokens(tensors)

    def score(self, images: ImageTokens, slot: int) -> np.ndarray:
        """Return the scores of one image of a batch with all captions: float32 (U,)."""
        scores = [self._score(images, slot, part) for part in self._parts]
        return torch.cat(scores).cpu().numpy()

    @torch.no_grad()
    def _score(self, images: ImageTokens, slot: int, captions: Tensor) -> Tensor:
        tokens = images.tokens[slot, images.is_token[slot]]  # (T, D), without what fills up
        tokens = tokens.expand(len(captions), -1, -1)
        is_token = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        with self._accelerator.autocast():
            logits = self._model.match(self._model.fuse(captions, ImageTokens(tokens, is_token)))
        other, own = logits.float().unbind(1)
        return own - other

    def seconds_an_image(self, images: ImageTokens) -> float:
        """Measure how long `score` takes, by a batch of captions of middle length."""
        part = self._parts[len(self._parts) // 2]
        self._score(images, 0, part).sum().item()  # what is slow the first time
        begun = time.perf_counter()
        self._score(images, 0, part).sum().item()
        return (time.perf_counter() - begun) * self._num_captions / len(part)
