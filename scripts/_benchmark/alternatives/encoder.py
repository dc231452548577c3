"""The part that all alternatives share: the plain encoder that they are given.

Each alternative trains the same timm encoder as our own objective does. Its own code masks, decodes
and judges; where it would run its own ViT, an adapter runs this one. So the encoder is held outside
of the alternative's parts: in the checkpoint it is there once, under timm's names.
"""

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from data.settings import require
from pretrain.encoder.facts import image_size, patch_size
from pretrain.encoder.recompute import recomputed
from scripts._export.hugging_face import encoder_settings, find_obstacles


def check_encoder(encoder: VisionTransformer, name: str) -> None:
    """Refuse what the alternatives' own ViTs have not, and they do not expect.

    Raises:
        UserError: The encoder has it.
    """
    obstacles = find_obstacles(encoder)
    require(
        not obstacles,
        f"alternative.name={name} takes a plain ViT, and this one has {', '.join(obstacles)}; "
        "leave encoder.position, encoder.stem, encoder.patch_embed and encoder.args out",
    )
    for key, (height, width) in (
        ("data.image_size", image_size(encoder)),
        ("encoder.patch_size", patch_size(encoder)),
    ):
        require(
            height == width,
            f"{key}={height}x{width}, but alternative.name={name} takes squares; try {height}",
        )


class Holder(nn.Module):
    """A part that uses the encoder and has no share in its parameters.

    Args:
        encoder: A plain one, as `check_encoder` has it.
    """

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        self._held = (encoder,)  # in a tuple torch does not find it; a copy's is the copy's own

    @property
    def encoder(self) -> Any:
        """The encoder that is trained."""
        return self._held[0]

    def encode(self, tokens: Tensor) -> Tensor:
        """Run the blocks and the last norm: tokens with positions, (B, T, D) -> (B, T, D)."""
        encoder = self.encoder
        run = recomputed(encoder, nn.Module.__call__)
        for block in encoder.blocks:
            tokens = run(block, tokens)
        return encoder.norm(tokens)


def transformers_settings(encoder: VisionTransformer) -> dict[str, Any]:
    """Return the arguments by which transformers' configurations describe the encoder."""
    own = {"image_size": image_size(encoder)[0], "patch_size": patch_size(encoder)[0]}
    return encoder_settings(encoder) | own
