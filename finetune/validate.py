"""The validation pass: a classifier's figures over a whole split, on all ranks."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from data.loader import LedgerEntry, Samples
from data.stream import Share, evaluation_batches
from finetune.metrics import Figures, Scores
from pretrain.evaluate import say_unusable
from pretrain.transfer import Copies


class Validation:
    """Measures a classifier; the same numbers on any number of ranks.

    Args:
        accelerator: What `start` gave.
        samples: The split, labelled.
        part: This rank's.
        workers: Loader processes a rank.

    Attributes:
        figures: Of the last pass, None before the first.
    """

    def __init__(
        self, accelerator: Accelerator, samples: Samples, part: Share, workers: int
    ) -> None:
        self._accelerator = accelerator
        self._samples = samples
        self._part = part
        self._workers = workers
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
        bad: list[LedgerEntry] = []
        copy = Copies(accelerator.device)
        for batch in evaluation_batches(self._samples, self._part, self._workers):
            tensors = copy(batch.tensors)
            with accelerator.autocast():
                output = model(tensors)
            scores.update(output.logits, tensors["label"], tensors["weight"])
            bad += batch.bad
        all_bad: list[LedgerEntry] = gather_object(bad)
        if self.figures is None:  # they are the same in each pass
            say_unusable(all_bad, self._samples.manifest.num_samples, "data.val")
        self.figures = scores.compute()
        return self.figures.scalars
