"""ViLT: a batch of captioned images -> the losses of its objectives, and what they mean.

The tokens of a caption and of an image go through one transformer. Matching reads a caption that
may be another's, masked words read the own one with gaps, and masked patches the own one whole:
each is a pass of its own, and all passes are rows of one batch.

Source: Kim et al. 2021, arXiv:2102.03334.
"""

from typing import Any, NamedTuple, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from data.settings import require
from pretrain.encoder.blocks import select
from pretrain.encoder.extensions import extensions_of
from pretrain.encoder.facts import grid_size, patch_size
from pretrain.encoder.recompute import recomputed
from pretrain.encoder.tokens import Normalise, embed, patch_tokens
from pretrain.objective.config import CorruptionConfig, TargetConfig
from pretrain.training.contract import Output, Sums
from pretrain.training.memory import example_batch
from pretrain.vilt import patches, statistics
from pretrain.vilt.config import LossConfig, TextConfig
from pretrain.vilt.images import choose_patches, tokens_of_any_aspect, tokens_of_one_size
from pretrain.vilt.masking import MaskedText, mask_words
from pretrain.vilt.patches import MaskedPatches
from pretrain.vilt.statistics import add_up_batch, add_up_matching, add_up_words
from pretrain.vilt.text import MatchingHead, Pooler, TextEmbedding, WordHead
from pretrain.vilt.transport import Transport, transport


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


class ViltModel(nn.Module):
    """A transformer over captions and images, with the heads of its objectives.

    Args:
        encoder: A timm VisionTransformer, alone the image half.
        pieces: Of the vocabulary.
        max_tokens: L, most pieces of a caption, with the class and the end.
        text: How captions are embedded and masked.
        loss: The objectives' weights; of those with 0 there is no head.
        patches: The corruption and the target of masked patches, where they have a weight.
        canvas: How images of their own aspect come; None: all are of the encoder's size.
    """

    others: Tensor
    is_special: Tensor

    def __init__(
        self,
        encoder: VisionTransformer,
        pieces: Pieces,
        max_tokens: int,
        text: TextConfig,
        loss: LossConfig,
        patches: tuple[CorruptionConfig, TargetConfig] | None = None,
        canvas: Canvas | None = None,
    ) -> None:
        super().__init__()
        check_encoder(encoder)
        self.encoder = encoder
        self.normalise = Normalise(encoder)
        self.pieces, self.max_tokens = pieces, max_tokens
        self.masking, self.weights = text, loss
        self.canvas = canvas
        self.patch = patch_size(encoder)
        if canvas is not None:
            cast(Any, encoder.patch_embed).strict_img_size = False
        width, eps = encoder.embed_dim, cast(Any, encoder.norm).eps
        self.text = TextEmbedding(pieces.size, max_tokens, width, text.dropout, eps)
        self.pooler = Pooler(width) if loss.matching else None
        self.matching = MatchingHead(width) if loss.matching else None
        self.words = WordHead(pieces.size, width, eps) if loss.words else None
        self.patches = MaskedPatches(encoder, *patches) if loss.patches and patches else None
        is_special = torch.tensor([piece in pieces.special for piece in range(pieces.size)])
        self.register_buffer("is_special", is_special, persistent=False)
        self.register_buffer("others", (~is_special).nonzero().flatten(), persistent=False)

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

    # ---- the transformer

    def image_tokens(self, batch: dict[str, Tensor]) -> ImageTokens:
        """Embed a batch's images.

        Args:
            batch: `image` uint8 (B, C, H, W); of images of their own aspect also `grid` int64
                (B, 2) and `random_key` int64 (B,).
        """
        return self._place(self._embed(batch), batch)

    def blank_tokens(self, batch: dict[str, Tensor]) -> ImageTokens:
        """Embed images of the mean colour in the place of a batch's own."""
        blank = torch.zeros_like(batch["image"], dtype=torch.float32)
        return self._place(embed(self.encoder, blank), batch)

    def _embed(self, batch: dict[str, Tensor]) -> Tensor:
        return embed(self.encoder, self.normalise(batch["image"]))

    def _place(self, patches: Tensor, batch: dict[str, Tensor]) -> ImageTokens:
        """Add positions and prefix tokens to patch embeddings of a batch's images."""
        if self.canvas is None:
            tokens = tokens_of_one_size(self.encoder, patches)
            return ImageTokens(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool))
        rows, columns = (self.canvas.side // side for side in self.patch)
        most = self.canvas.max_patches if self.training else rows * columns
        grid, keys = batch["grid"], batch["random_key"]
        places = choose_patches(
            keys, grid, (rows, columns), min(most, rows * columns), is_random=self.training
        )
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

    def match(self, fused: Fused) -> Tensor:
        """Return logits of pairs: (B, 2), of a caption that is another's, and that is the own."""
        assert self.pooler is not None, "loss.matching=0"
        assert self.matching is not None
        return self.matching(self.pooler(fused.text[:, 0]))

    def align(self, tokens: Tensor, images: ImageTokens, fused: Fused) -> Transport:
        """Transport the words of captions to patches; class tokens and ends are left out."""
        is_word = ~self.is_special[tokens]
        start = self.encoder.num_prefix_tokens
        is_patch = images.is_token[:, start:]
        return transport(fused.text, fused.image[:, start:], is_word, is_patch)

    # ---- the objectives

    def forward(self, batch: dict[str, Tensor]) -> Output:
        """Add up the losses of the objectives that have a weight.

        Args:
            batch: `image`, `weight`, `random_key`, `tokens`, `words`, `pair_tokens`, `is_match` and
                `num_cut`, and with images of their own aspect `grid`; see `CaptionedSamples`.
        """
        weight, embeddings = batch["weight"], self._embed(batch)
        images = self._place(embeddings, batch)
        passes: dict[str, tuple[Tensor, ImageTokens]] = {}
        masked, corruption = self._mask(batch), None
        if self.matching is not None:
            passes["matching"] = batch["pair_tokens"], images
        if self.words is not None:
            passes["words"] = masked.tokens, images
            if not self.training:
                passes["blank"] = masked.tokens, self.blank_tokens(batch)
        if self.patches is not None:
            corruption = self.patches.draw(batch["random_key"]).to(weight.device)
            corrupted = self._place(self.patches.corrupt(embeddings, corruption), batch)
            passes["patches"] = batch["tokens"], corrupted
        fused = self._fuse_all(passes)
        losses, sums = list[Tensor](), dict[str, Tensor]()
        if "matching" in fused:
            losses.append(self._matching_loss(batch, images, fused["matching"], sums))
        if "words" in fused:
            losses.append(self.weights.words * self._word_loss(batch, masked, fused["words"], sums))
        if "blank" in fused:
            blank: Sums = {}
            self._word_loss(batch, masked, fused["blank"], blank)
            sums["right_words_blank"] = blank["right_words"]
        if self.patches is not None and corruption is not None:
            tokens = patch_tokens(self.encoder, fused["patches"].image)
            own, found = self.patches.losses(tokens, batch["image"], corruption, weight)
            losses.append(self.weights.patches * (own * weight).sum())
            sums |= found
        loss = torch.stack(losses).sum()
        return Output(loss, sums | add_up_batch(batch, loss))

    def _mask(self, batch: dict[str, Tensor]) -> MaskedText:
        keys, tokens, words = batch["random_key"], batch["tokens"], batch["words"]
        return mask_words(keys, tokens, words, self.masking, self.pieces.mask, self.others)

    def _fuse_all(self, passes: dict[str, tuple[Tensor, ImageTokens]]) -> dict[str, Fused]:
        """Run all passes as the rows of one batch."""
        tokens = torch.cat([tokens for tokens, _ in passes.values()])
        images = ImageTokens(
            *(torch.cat(parts) for parts in zip(*(i for _, i in passes.values()), strict=True))
        )
        fused = self.fuse(tokens, images)
        parts = zip(*(part.chunk(len(passes)) for part in fused), strict=True)
        return {name: Fused(*part) for name, part in zip(passes, parts, strict=True)}

    def _matching_loss(
        self, batch: dict[str, Tensor], images: ImageTokens, fused: Fused, sums: Sums
    ) -> Tensor:
        """Return the loss of matching and alignment, and add what figures need to the sums."""
        logits, is_match, weight = self.match(fused), batch["is_match"], batch["weight"]
        losses = F.cross_entropy(logits.float(), is_match, reduction="none")
        loss = self.weights.matching * (losses * weight).sum()
        sums |= add_up_matching(logits, losses, is_match, weight)
        if self.weights.alignment:
            distance = self.align(batch["pair_tokens"], images, fused).distance
            distances = (distance * (2 * is_match - 1) * weight).sum()
            loss = loss + self.weights.alignment * distances
            sums["loss_alignment"] = distances.detach().to(sums["loss_matching"].dtype)
        return loss

    def _word_loss(
        self, batch: dict[str, Tensor], masked: MaskedText, fused: Fused, sums: Sums
    ) -> Tensor:
        """Return the loss of masked words, and add what figures need to the sums."""
        assert self.words is not None
        wanted, is_predicted = batch["tokens"].gather(1, masked.places), masked.is_predicted
        logits = self.words(select(fused.text, masked.places), self.text.words.weight)  # (B, K, V)
        by_piece = F.cross_entropy(logits.float().mT, wanted, reduction="none")  # (B, K)
        losses = (by_piece * is_predicted).sum(1) / is_predicted.sum(1).clamp(min=1)
        sums |= add_up_words(logits, losses, wanted, is_predicted, batch["weight"])
        return (losses * batch["weight"]).sum()

    def summarise(self, sums: Sums) -> dict[str, float]:
        """Turn sums into figures; see `pretrain.vilt.statistics` and `pretrain.vilt.patches`."""
        return statistics.summarise(sums) | patches.summarise(sums)


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
    return block(tokens, attn_mask=mask)
