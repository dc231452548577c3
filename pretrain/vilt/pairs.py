"""ViLT's transformer: pairs of a caption and an image -> their tokens, whatever is made of them.

The tokens of a caption and of an image go through one transformer. What a pair is asked for, in
pretraining or in fine-tuning, is the heads' matter.

Source: Kim et al. 2021, arXiv:2102.03334.
"""

from typing import Any, NamedTuple, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from data.settings import require
from pretrain.encoder.blocks import QueryBlock
from pretrain.encoder.extensions import extensions_of
from pretrain.encoder.facts import grid_size, patch_size
from pretrain.encoder.position_blocks import PositionedBlock
from pretrain.encoder.recompute import recomputed
from pretrain.encoder.tokens import Normalise, embed
from pretrain.training.examples import example_batch
from pretrain.vilt.images import choose_patches, tokens_of_any_aspect, tokens_of_one_size
from pretrain.vilt.text import TextEmbedding


class Pieces(NamedTuple):
    """The facts of a vocabulary that a model needs.

    Attributes:
        size: V.
        pad: The piece that fills captions up.
        mask: The mask's piece.
        special: Pieces that no random one is.
    """

    size: int
    pad: int
    mask: int
    special: frozenset[int]


class Canvas(NamedTuple):
    """How images of their own aspect come: see `data.long_side`.

    Attributes:
        side: Pixels a side of the square that each lies in.
        max_patches: Most patches of an image that enter the transformer while training.
    """

    side: int
    max_patches: int


class ImageTokens(NamedTuple):
    """An image's tokens.

    Attributes:
        tokens: (B, P + N, D), the prefix first.
        is_token: bool (B, P + N).
    """

    tokens: Tensor
    is_token: Tensor


class Fused(NamedTuple):
    """The transformer's output for pairs of a caption and an image.

    Attributes:
        text: (B, T, D), the text's class token first.
        image: (B, P + N, D), the image's prefix tokens first.
    """

    text: Tensor
    image: Tensor


class PairEncoder(nn.Module):
    """A transformer over captions and images.

    Args:
        encoder: A timm VisionTransformer, alone the image half.
        pieces: Of the vocabulary.
        max_tokens: L, most pieces of a caption, with the class and the end.
        dropout: Of the captions' embeddings.
        canvas: How images of their own aspect come; None: all are of the encoder's size.

    Raises:
        UserError: The encoder's positions act in its layers.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        pieces: Pieces,
        max_tokens: int,
        dropout: float = 0.0,
        canvas: Canvas | None = None,
    ) -> None:
        super().__init__()
        check_encoder(encoder)
        self.encoder = encoder
        self.normalise = Normalise(encoder)
        self.pieces, self.max_tokens = pieces, max_tokens
        self.canvas = canvas
        self.patch = patch_size(encoder)
        if canvas is not None:
            cast(Any, encoder.patch_embed).strict_img_size = False
        self.text = TextEmbedding(pieces.size, max_tokens, self.width, dropout, self.eps)

    @property
    def width(self) -> int:
        """D."""
        return self.encoder.embed_dim

    @property
    def eps(self) -> float:
        """Of the layer norms."""
        return cast(Any, self.encoder.norm).eps

    def example_batch(self, num_images: int) -> dict[str, Tensor]:
        """Make a batch of captions and black images, as `forward` takes it."""
        batch = example_batch(self.encoder, num_images)
        if self.canvas is not None:
            side = self.canvas.side
            batch["image"] = batch["image"].new_zeros(*batch["image"].shape[:2], side, side)
            batch["grid"] = torch.tensor([grid_size(self.encoder)]).expand(num_images, 2)
        texts = torch.zeros(num_images, self.max_tokens, dtype=torch.int64)
        ones = torch.ones(num_images, dtype=torch.int64)
        own = {"tokens": texts + self.pieces.mask, "words": texts, "pair_tokens": texts}
        return batch | own | {"is_match": ones, "num_cut": 0 * ones}

    def image_tokens(self, batch: dict[str, Tensor]) -> ImageTokens:
        """Embed a batch's images.

        Args:
            batch: `image` uint8 (B, C, H, W); of images of their own aspect also `grid` int64
                (B, 2) and `random_key` int64 (B,).
        """
        return self._place(self._embed(batch), batch)

    def _embed(self, batch: dict[str, Tensor]) -> Tensor:
        return embed(self.encoder, self.normalise(batch["image"]))

    def _place(self, patches: Tensor, batch: dict[str, Tensor]) -> ImageTokens:
        """Add positions and prefix tokens to patch embeddings of a batch's images."""
        if self.canvas is None:
            tokens = tokens_of_one_size(self.encoder, patches)
            return ImageTokens(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool))
        rows, columns = (self.canvas.side // side for side in self.patch)
        most = min(grid_size(self.encoder)) * max(rows, columns)  # of an image: one side is short
        if self.training:
            most = min(most, self.canvas.max_patches)
        grid, keys = batch["grid"], batch["random_key"]
        places = choose_patches(keys, grid, (rows, columns), most, is_random=self.training)
        tokens = tokens_of_any_aspect(self.encoder, patches, grid, (rows, columns), places)
        prefix = places.is_patch.new_ones(len(grid), self.encoder.num_prefix_tokens)
        return ImageTokens(tokens, torch.cat([prefix, places.is_patch], dim=1))

    def fuse(self, tokens: Tensor, images: ImageTokens) -> Fused:
        """Run the transformer over pairs.

        Args:
            tokens: int64 (B, T), captions.
            images: Of as many images.
        """
        text = self.text(tokens)
        is_token = torch.cat([tokens != self.pieces.pad, images.is_token], dim=1)
        x = torch.cat([text.to(images.tokens.dtype), images.tokens], dim=1)
        mask, run = is_token[:, None, None], recomputed(self.encoder, _run)
        for block in cast(Any, self.encoder.blocks):
            x = run(block, x, mask)
        x = self.encoder.norm(x)
        return Fused(*x.split([tokens.shape[1], images.tokens.shape[1]], dim=1))


def check_encoder(encoder: VisionTransformer) -> None:
    """Raise `UserError` for positions in the layers, which know of no words."""
    extensions = extensions_of(encoder)
    require(
        extensions.position_at == "stem" and extensions.position != "relative",
        f"encoder.position={extensions.position} with encoder.position_at="
        f"{extensions.position_at} acts in the layers, where captions are too; use learned_1d, "
        "learned_2d, sincos_2d or none, at the stem",
    )


def _run(block: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    if isinstance(block, PositionedBlock):  # its table has been added to the image's tokens
        return QueryBlock.forward(block, tokens, mask)
    return block(tokens, attn_mask=mask)
