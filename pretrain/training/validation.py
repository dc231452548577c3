"""The validation pass, and summaries of what an `Evaluator` measured."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from data.batch import Batch, LedgerEntry
from data.settings import RunStopped
from data.text import name_some
from pretrain.records.bad_samples import Unusable
from pretrain.training.contract import Measured, Objective, Output
from pretrain.training.device import Copies, Totals


@torch.no_grad()
def validate(
    accelerator: Accelerator,
    batches: Callable[[], Iterable[Batch]],
    split: str,
    num_samples: int,
    model: Any,
) -> Measured:
    """Return the model's figures over all ranks' batches; the same number on any number of ranks.

    Args:
        accelerator: What `start` gave.
        batches: Makes this rank's part.
        split: The key that names the shards.
        num_samples: All ranks' samples.
        model: An `Objective`, not wrapped.
    """
    model.eval()
    copy, totals = Copies(accelerator.device), Totals()
    bad: list[LedgerEntry] = []
    for batch in batches():
        with accelerator.autocast():
            output: Output = model(copy(batch.tensors))
        totals.add(output.sums)
        bad += batch.bad
    unusable = Unusable(split, num_samples, gather_object(bad))
    return Measured(summarise(accelerator, model, totals), (unusable,))


def summarise(accelerator: Accelerator, model: Objective, totals: Totals) -> dict[str, float]:
    """Turn sums over all ranks into figures; none where no sample could be used."""
    sums = totals.reduce(accelerator)
    return model.summarise(sums) if sums["weight"] > 0 else {}


def require_finite(figures: Mapping[str, float], what: str, kept: str = "") -> None:
    """Stop where a result is no number.

    Args:
        figures: By name.
        what: Of what, for the message.
        kept: What is kept, likewise.

    Raises:
        RunStopped: It names the figures; all ranks have to ask with the same ones.
    """
    odd = [name for name, value in figures.items() if not math.isfinite(value)]
    if odd:
        raise RunStopped(
            f"{what} is no finite number ({name_some(odd)}){kept}; try a lower optim.lr, a longer "
            "optim.warmup_steps, or run.precision=fp32",
            is_agreed=True,
        )
