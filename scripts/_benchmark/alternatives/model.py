"""An alternative as the training loop sees a model: a batch -> the loss, and what it means."""

from typing import Any, cast

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pretrain.encoder.tokens import Normalise
from pretrain.training.contract import Output, Sums
from scripts._benchmark.alternatives.config import AlternativePretrainConfig
from scripts._benchmark.alternatives.encoder import check_encoder
from scripts._benchmark.alternatives.mae import Mae
from scripts._benchmark.alternatives.mpp import Mpp
from scripts._benchmark.alternatives.simmim import Simmim

_KINDS: dict[str, type[Any]] = {"mpp": Mpp, "mae": Mae, "simmim": Simmim}


class AlternativeModel(nn.Module):
    """An encoder and an alternative's own objective; a `pretrain.training.contract.Objective`.

    Args:
        encoder: What is trained.
        objective: Normalised pixels (B, C, H, W) and keys (B,) -> the mean loss of the batch. All
            images weigh alike in it, since as many patches are masked in each.
    """

    def __init__(self, encoder: VisionTransformer, objective: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.normalise = Normalise(encoder)
        self.objective = objective

    def forward(self, batch: dict[str, Tensor]) -> Output:
        """Give the alternative the images that are none of padding, nor damaged.

        Args:
            batch: `image` uint8 (B, C, H, W), `weight` (B,) of 0 and 1, `random_key` int64 (B,).
        """
        weight = batch["weight"]
        is_used = weight > 0
        if not is_used.any():
            is_used = ~is_used  # their loss counts 0 times
        images, keys = batch["image"][is_used], batch["random_key"][is_used]
        total = weight.sum()
        loss = self.objective(self.normalise(images), keys).float() * total
        sums = {"loss": loss.detach().double(), "weight": total.double()}
        return Output(loss, sums)

    def summarise(self, sums: Sums) -> dict[str, float]:
        """Turn sums into the mean loss, in the alternative's own unit."""
        return {"loss": float(sums["loss"] / sums["weight"])}


def make_alternative(
    config: AlternativePretrainConfig, encoder: VisionTransformer
) -> AlternativeModel:
    """Build the alternative that a configuration names around an encoder.

    Raises:
        UserError: Its package is not installed, or it cannot take the encoder.
    """
    name = config.alternative.name
    assert name is not None
    check_encoder(encoder, name)
    return AlternativeModel(encoder, cast(nn.Module, _KINDS[name](encoder, getattr(config, name))))
