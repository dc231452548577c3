"""The validation pass: a classifier's figures over a whole split, on all ranks."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator

from data.loader import Batch
from finetune.metrics import Figures, Scores
from pretrain.loop import to_device


class Validation:
    """Measures a classifier; the same numbers on any number of ranks.

    Args:
        accelerator: What `start` gave.
        batches: Makes this rank's part of the split.

    Attributes:
        figures: Of the last pass, None before the first.
    """

    def __init__(self, accelerator: Accelerator, batches: Callable[[], Iterable[Batch]]) -> None:
        self._accelerator = accelerator
        self._batches = batches
        self.figures: Figures | None = None

    @torch.no_grad()
    def __call__(self, model: Any) -> dict[str, float]:
        """Return the figures of one number each.

        Args:
            model: A `Classifier`, also one that is cut over the ranks.
        """
        accelerator: Any = self._accelerator
        model.eval()
        scores = Scores(model.num_classes, model.is_multi_label, accelerator.device)
        for batch in self._batches():
            tensors = to_device(batch.tensors, accelerator.device)
            with accelerator.autocast():
                output = model(tensors)
            scores.update(output.logits, tensors["label"], tensors["weight"])
        self.figures = scores.compute()
        return self.figures.scalars
