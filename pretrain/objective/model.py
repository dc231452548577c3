"""Masked patch prediction: a batch -> the loss, and what the loss means.

The forward pass returns sums over images, not means: the loop adds them over micro-batches and
ranks, so that a step's figures are those of its global batch, however it was cut.

Source: Dosovitskiy et al. 2021, section B.1.2.
"""

from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pretrain.encoder.blocks import make_askable
from pretrain.encoder.facts import grid_size, image_data, num_channels, patch_size
from pretrain.encoder.stems import is_hybrid
from pretrain.encoder.tokens import Normalise, embed, encode, patch_tokens
from pretrain.objective import corruption as corrupting
from pretrain.objective.config import CorruptionConfig, DecoderConfig, TargetConfig
from pretrain.objective.corruption import Corruption
from pretrain.objective.decoder import Decoder
from pretrain.objective.nearest import NearestVisible
from pretrain.objective.statistics import add_up, summarise
from pretrain.objective.targets import Target, make_target
from pretrain.training.contract import Output, Sums


class MaskedPatchModel(nn.Module):
    """An encoder, the mask embedding and the head that answers for corrupted patches.

    Patch embeddings are corrupted. Behind a CNN stem it is pixels, since the stem's receptive field
    reaches over its neighbours: an embedding that replaces a patch's own leaves the patch's pixels
    in those around it, and the answer with them.

    Args:
        encoder: A timm VisionTransformer.
        corruption: How much is corrupted, and in which way.
        target: What is asked for.
        decoder: Takes the mask embeddings, which then do not enter the encoder; None: there is no
            decoder, and the encoder sees them, as in the paper.

    Raises:
        UserError: Sizes do not fit together.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        corruption: CorruptionConfig,
        target: TargetConfig,
        decoder: DecoderConfig | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.normalise = Normalise(encoder)
        self.corruption = corruption
        self.patch = patch_size(encoder)
        self.grid = grid_size(encoder)
        self.num_patches = encoder.patch_embed.num_patches
        # refuses now what could not be drawn in the first step
        corrupting.draw(torch.zeros(1, dtype=torch.int64, device="cpu"), self.grid, corruption)
        channels, data = num_channels(encoder), image_data(encoder)
        self.target: Target = make_target(target, self.patch, channels, data["mean"], data["std"])
        self.is_hybrid = is_hybrid(encoder)
        self.mask_token = self._make_mask(channels, has_decoder=decoder is not None)
        self.decoder, width = None, encoder.embed_dim
        if decoder is None:
            make_askable(encoder.blocks)
        else:
            num_heads = cast(Any, encoder.blocks[0]).attn.num_heads
            self.decoder = Decoder(decoder, width, num_heads, self.grid)
            width = self.decoder.width
        self.head = nn.Linear(width, self.target.num_outputs)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.nearest = NearestVisible(self.grid)

    def _make_mask(self, channels: int, has_decoder: bool) -> nn.Parameter | None:
        """Make the mask embedding (D,), or the mask's pixels (C, Ph, Pw) where those are hidden."""
        if self.is_hybrid:
            shape: tuple[int, ...] = (channels, *self.patch)
        elif has_decoder:
            return None
        else:
            shape = (self.encoder.embed_dim,)
        mask = nn.Parameter(torch.empty(shape))
        nn.init.normal_(mask, std=0.02)
        return mask

    def forward(self, batch: dict[str, Tensor]) -> Output:
        """Predict corrupted patches, each from its own token.

        Args:
            batch: `image` uint8 (B, C, H, W), `weight` (B,), `random_key` int64 (B,).
        """
        corruption = corrupting.draw(batch["random_key"], self.grid, self.corruption)
        corruption = corruption.to(batch["image"].device)  # without float64, keys are elsewhere
        answers = self.target.answers(batch["image"])  # (B, N, G) or (B, N, V)
        predicted = corruption.predicted  # (B, P)
        outputs = self.predict(batch["image"], corruption, predicted)  # (B, P, num_outputs)
        losses = self.target.losses(outputs, corrupting.select(answers, predicted))
        loss = (losses.mean(1) * batch["weight"]).sum()
        with torch.no_grad():
            sums = add_up(
                self.target,
                outputs,
                losses,
                answers,
                corruption,
                batch["weight"],
                self.nearest(corruption),
                has_distances=not self.training,
            )
        return Output(loss, sums)

    def predict(
        self, images: Tensor, corruption: Corruption, queries: Tensor | None = None
    ) -> Tensor:
        """Return the outputs for corrupted patches: (B, M, num_outputs), or (B, P, num_outputs).

        Args:
            images: uint8 (B, C, H, W).
            corruption: Of their patches.
            queries: int64 (B, P), the patches wanted; None: all that are corrupted.
        """
        queries = corruption.patches if queries is None else queries
        pixels = self.normalise(images)
        if self.is_hybrid:
            pixels = corrupting.apply_to_pixels(pixels, self.mask_token, corruption, self.patch)
            embeddings = embed(self.encoder, pixels)
        else:
            embeddings = embed(self.encoder, pixels)
            embeddings = corrupting.apply(embeddings, self.mask_token, corruption)
        if self.decoder is None:
            return self.head(encode(self.encoder, embeddings, queries=queries))
        visible = corruption.visible
        tokens = patch_tokens(self.encoder, encode(self.encoder, embeddings, visible))
        return self.head(self.decoder(tokens, visible, queries))

    def summarise(self, sums: Sums) -> dict[str, float]:
        """Turn sums into figures; see `pretrain.objective.statistics.summarise`."""
        return summarise(sums)
