"""Masked patches beside a caption: the image-only objective's corruption and targets.

The paper tried it and left it out, as it gained nothing; here it is a weight, 0 by default.

Source: Kim et al. 2021 (ViLT), section 4.5; Dosovitskiy et al. 2021, section B.1.2.
"""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from data.settings import require
from pretrain.encoder.facts import grid_size, image_data, num_channels, patch_size
from pretrain.encoder.stems import is_hybrid
from pretrain.objective import corruption as corrupting
from pretrain.objective import statistics
from pretrain.objective.config import CorruptionConfig, TargetConfig
from pretrain.objective.corruption import Corruption
from pretrain.objective.nearest import NearestVisible
from pretrain.objective.targets import Target, make_target
from pretrain.training.contract import Sums

_SUFFIX = "_patches"


class MaskedPatches(nn.Module):
    """The mask embedding and the head of masked patches.

    Args:
        encoder: The transformer.
        corruption: How much is corrupted, and in which way.
        target: What is asked for.

    Raises:
        UserError: Sizes do not fit together, or patches come from a CNN.
    """

    def __init__(
        self, encoder: VisionTransformer, corruption: CorruptionConfig, target: TargetConfig
    ) -> None:
        super().__init__()
        require(
            not is_hybrid(encoder),
            "loss.patches corrupts patch embeddings, which a CNN stem mixes; set loss.patches=0",
        )
        self.config, self.grid = corruption, grid_size(encoder)
        data = image_data(encoder)
        self.target: Target = make_target(
            target, patch_size(encoder), num_channels(encoder), data["mean"], data["std"]
        )
        self.draw(torch.zeros(1, dtype=torch.int64, device="cpu"))  # refuses what cannot be drawn
        self.mask_token = nn.Parameter(torch.empty(encoder.embed_dim))
        self.head = nn.Linear(encoder.embed_dim, self.target.num_outputs)
        self.nearest = NearestVisible(self.grid)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def draw(self, keys: Tensor) -> Corruption:
        """Draw each image's corruption from its key: int64 (B,)."""
        return corrupting.draw(keys, self.grid, self.config)

    def corrupt(self, patches: Tensor, corruption: Corruption) -> Tensor:
        """Corrupt patch embeddings (B, N, D), before positions are added."""
        return corrupting.apply(patches, self.mask_token, corruption)

    def losses(
        self, tokens: Tensor, images: Tensor, corruption: Corruption, weight: Tensor
    ) -> tuple[Tensor, Sums]:
        """Return each image's loss (B,), and the sums of the figures.

        Args:
            tokens: (B, N, D), the transformer's outputs for the patches.
            images: uint8 (B, C, H, W).
            corruption: What `draw` gave.
            weight: (B,).
        """
        answers = self.target.answers(images)
        outputs = self.head(corrupting.select(tokens, corruption.predicted))
        losses = self.target.losses(outputs, corrupting.select(answers, corruption.predicted))
        with torch.no_grad():
            sums = statistics.add_up(
                self.target,
                outputs,
                losses,
                answers,
                corruption,
                weight,
                self.nearest(corruption),
                has_distances=False,
            )
        return losses.mean(1), {f"{name}{_SUFFIX}": value for name, value in sums.items()}


def summarise(sums: Sums) -> dict[str, float]:
    """Turn sums into figures, as `pretrain.objective.statistics`; each name ends in `_patches`."""
    own = {k.removesuffix(_SUFFIX): v for k, v in sums.items() if k.endswith(_SUFFIX)}
    figures = statistics.summarise(own) if own else {}
    return {f"{name}{_SUFFIX}": value for name, value in figures.items()}
