"""The interfaces that the training loop needs: `Objective`, `Output`, `Evaluator`."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pretrain.records.bad_samples import Unusable

Sums = dict[str, Tensor]


class Output(NamedTuple):
    """A model's output for a batch.

    Attributes:
        loss: Sum over images of weight times the image's loss, in nats.
        sums: Sums over images from which `summarise` makes figures, of float64 where the device
            has it; detached.
        logits: A classifier's, (B, K).
    """

    loss: Tensor
    sums: Sums
    logits: Tensor | None = None


class Objective(Protocol):
    """A model as the training loop sees it."""

    encoder: VisionTransformer

    def summarise(self, sums: Sums) -> dict[str, float]:
        """Turn added-up sums into figures by name."""
        ...


class Measured(NamedTuple):
    """The result of an evaluation.

    Attributes:
        figures: By name; none where a split has nothing that can be used.
        unusable: What could not be used, of each split that was read.
    """

    figures: dict[str, float]
    unusable: tuple[Unusable, ...]


class Evaluator(NamedTuple):
    """A measure of the model as it is, which changes neither its training nor its stream.

    Attributes:
        name: Its figures are logged as NAME/figure.
        every: Steps between measurements; 0: only at the end.
        measure: The model with the weights that would be handed on -> what was found; called on all
            ranks.
        illustrate: That model -> pictures for the trackers, uint8 (H, W, 3) by name, at the same
            steps; None: there are none.
    """

    name: str
    every: int
    measure: Callable[[Any], Measured]
    illustrate: Callable[[Any], dict[str, Tensor]] | None = None
