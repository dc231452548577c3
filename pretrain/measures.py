"""What is measured of a model in between: by an `Evaluator`, such as the validation pass."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from data.loader import Batch
from pretrain.model import Output
from pretrain.totals import Totals
from pretrain.transfer import Copies


class Evaluator(NamedTuple):
    """A measure of the model as it is, which changes neither its training nor its stream.

    Attributes:
        name: Its figures are logged as NAME/figure.
        every: Steps between measurements; 0: only at the end.
        measure: The model with the weights that would be handed on -> figures; called on all ranks.
        illustrate: That model -> pictures for the trackers, uint8 (H, W, 3) by name, at the same
            steps; None: there are none.
    """

    name: str
    every: int
    measure: Callable[[Any], dict[str, float]]
    illustrate: Callable[[Any], dict[str, Tensor]] | None = None


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, batches: Callable[[], Iterable[Batch]], model: Any
) -> dict[str, float]:
    """Return the model's figures over all ranks' batches; the same number on any number of ranks.

    Args:
        accelerator: What `start` gave.
        batches: Makes this rank's part.
        model: An `Objective`, not wrapped.
    """
    model.eval()
    copy, totals = Copies(accelerator.device), Totals()
    for batch in batches():
        with accelerator.autocast():
            output: Output = model(copy(batch.tensors))
        totals.add(output.sums)
    return model.summarise(totals.reduce(accelerator))
