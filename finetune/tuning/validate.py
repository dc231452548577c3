"""The validation pass: a classifier's figures over a whole split, on all ranks."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from data.batch import LedgerEntry
from data.samples import Samples
from data.stream import Share, evaluation_batches
from finetune.tuning.metrics import Figures, Scores
from pretrain.records.bad_samples import Unusable, say_unusable
from pretrain.training.contract import Measured
from pretrain.training.device import Copies
from pretrain.training.validation import require_finite


class Validation:
    """Measures a classifier; the same numbers on any number of ranks.

    Args:
        accelerator: What `start` gave.
        samples: The split, labelled.
        part: This rank's.
        workers: Loader processes a rank.
        key: The key that chooses the split.

    Attributes:
        figures: Of the last pass, None before the first.
    """

    def __init__(
        self, accelerator: Accelerator, samples: Samples, part: Share, workers: int, key: str
    ) -> None:
        self._accelerator = accelerator
        self._samples = samples
        self._part = part
        self._workers = workers
        self._key = key
        self.figures: Figures | None = None

    @torch.no_grad()
    def __call__(self, model: Any) -> Measured:
        """Return the figures of one number each, and what of the split could not be used.

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
        unusable = Unusable(self._key, self._samples.manifest.num_samples, gather_object(bad))
        self.figures = scores.compute()
        return Measured({} if unusable.is_all else self.figures.scalars, (unusable,))


def judge_result(measured: Measured, max_bad_ratio: float) -> None:
    """Stop where the images or the result of a validation are too bad, as the loop does.

    Raises:
        RunStopped: They are.
    """
    for split in measured.unusable:
        say_unusable(split)
        split.judge(max_bad_ratio)
    require_finite(measured.figures, "the validation's result")
