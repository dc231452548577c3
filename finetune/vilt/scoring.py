"""Scores of images with captions: by the matching head, and by the captions' masked words.

An image's patches are embedded once. Then it goes through the transformer beside batches of
captions. What stands in a batch depends on the image and the captions alone: so a score is the same
on any number of ranks.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from finetune.vilt.gallery import Gallery
from pretrain.vilt.model import ViltModel
from pretrain.vilt.pairs import ImageTokens


class Scorer:
    """Scores one image with captions.

    Args:
        accelerator: What `start` gave.
        model: In evaluation mode, on its device, with the head of matching.
        gallery: The captions.
        batch_size: Captions a forward pass.

    Attributes:
        num_masks: How often `likelihood` passes a caption: as many words are masked at a time as
            in the model's training.
    """

    def __init__(
        self, accelerator: Accelerator, model: ViltModel, gallery: Gallery, batch_size: int
    ) -> None:
        self._accelerator: Any = accelerator
        self._model = model
        self._tokens = torch.from_numpy(gallery.tokens).to(accelerator.device)
        self._words = torch.from_numpy(gallery.words).to(accelerator.device)
        self._lengths = (gallery.tokens != model.pieces.pad).sum(1)
        self._batch_size = batch_size
        self.num_masks = round(1 / model.masking.ratio)

    @torch.no_grad()
    def embed(self, tensors: dict[str, Tensor]) -> ImageTokens:
        """Embed the images of a batch."""
        with self._accelerator.autocast():
            return self._model.image_tokens(tensors)

    def match(self, images: ImageTokens, slot: int) -> np.ndarray:
        """Return log odds that each caption is the own of an image of a batch: float32 (U,)."""
        every = np.arange(len(self._tokens))
        logits = [self._match(images, slot, part) for part in self._parts(every)]
        return torch.cat(logits).cpu().numpy()

    def likelihood(self, images: ImageTokens, slot: int, captions: np.ndarray) -> np.ndarray:
        """Return the log likelihood of some captions beside an image of a batch: float32 (n,).

        Each word is masked in one of `num_masks` passes and predicted from the others and the
        image; the logarithms of what its pieces are given add up.

        Args:
            images: Of the batch.
            slot: The image's place in it.
            captions: int64 (n,), numbers of the gallery, short captions first.

        Source: Salazar et al. 2020 (arXiv:1910.14659), pseudo-log-likelihood; there a pass masks
        one piece.
        """
        sums = [
            torch.stack([self._words_right(images, slot, part, k) for k in range(self.num_masks)])
            for part in self._parts(captions)
        ]
        return torch.cat([of_passes.sum(0) for of_passes in sums]).cpu().numpy()

    def seconds(self, images: ImageTokens) -> float:
        """Measure how long a caption takes beside an image, by a batch of middle length."""
        parts = list(self._parts(np.arange(len(self._tokens))))
        part = parts[len(parts) // 2]
        self._match(images, 0, part).sum().item()  # what is slow the first time
        begun = time.perf_counter()
        self._match(images, 0, part).sum().item()
        return (time.perf_counter() - begun) / len(part)

    def _parts(self, captions: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the numbers of captions by batches."""
        for start in range(0, len(captions), self._batch_size):
            yield captions[start : start + self._batch_size]

    @torch.no_grad()
    def _match(self, images: ImageTokens, slot: int, part: np.ndarray) -> Tensor:
        tokens = self._cut(self._tokens, part)
        with self._accelerator.autocast():
            logits = self._model.match(self._model.fuse(tokens, _repeat(images, slot, len(part))))
        other, own = logits.float().unbind(1)
        return own - other

    @torch.no_grad()
    def _words_right(self, images: ImageTokens, slot: int, part: np.ndarray, number: int) -> Tensor:
        """Return the log likelihood of the words that one of the passes masks: (n,)."""
        model = self._model
        tokens, words = self._cut(self._tokens, part), self._cut(self._words, part)
        is_masked = (words >= 0) & (words % self.num_masks == number)
        places = (~is_masked).long().argsort(dim=1, stable=True)
        places = places[:, : int(is_masked.sum(1).max())]
        with self._accelerator.autocast():
            shown = tokens.masked_fill(is_masked, model.pieces.mask)
            fused = model.fuse(shown, _repeat(images, slot, len(part)))
            logits = model.name_words(fused, places)  # (n, K, V)
        found = logits.float().log_softmax(2).gather(2, tokens.gather(1, places)[..., None])[..., 0]
        return (found * is_masked.gather(1, places)).sum(1)

    def _cut(self, rows: Tensor, part: np.ndarray) -> Tensor:
        """Return the rows of some captions, as long as the longest of them: (n, L)."""
        return rows[torch.from_numpy(part).to(rows.device), : int(self._lengths[part].max())]


def _repeat(images: ImageTokens, slot: int, number: int) -> ImageTokens:
    """Return one image of a batch so many times, without what fills it up."""
    tokens = images.tokens[slot, images.is_token[slot]].expand(number, -1, -1)  # (n, T, D)
    is_token = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return ImageTokens(tokens, is_token)
