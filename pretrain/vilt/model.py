"""ViLT: a batch of captioned images -> the losses of its objectives, and what they mean.

The tokens of a caption and of an image go through one transformer. Matching reads a caption that
may be another's, masked words read the own one with gaps, and masked patches the own one whole:
each is a pass of its own, and all passes are rows of one batch.

Source: Kim et al. 2021, arXiv:2102.03334.
"""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from pretrain.encoder.blocks import select
from pretrain.encoder.tokens import embed, patch_tokens
from pretrain.objective.config import CorruptionConfig, TargetConfig
from pretrain.training.contract import Output, Sums
from pretrain.vilt import patches, statistics
from pretrain.vilt.config import LossConfig, TextConfig
from pretrain.vilt.masking import MaskedText, mask_words
from pretrain.vilt.pairs import Canvas, Fused, ImageTokens, PairEncoder, Pieces
from pretrain.vilt.patches import MaskedPatches
from pretrain.vilt.statistics import add_up_batch, add_up_matching, add_up_words
from pretrain.vilt.text import MatchingHead, Pooler, WordHead
from pretrain.vilt.transport import Transport, transport


class ViltModel(PairEncoder):
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
        super().__init__(encoder, pieces, max_tokens, text.dropout, canvas)
        self.masking, self.weights = text, loss
        width, eps = self.width, self.eps
        self.pooler = Pooler(width) if loss.matching else None
        self.matching = MatchingHead(width) if loss.matching else None
        self.words = WordHead(pieces.size, width, eps) if loss.words else None
        self.patches = MaskedPatches(encoder, *patches) if loss.patches and patches else None
        is_special = [piece in pieces.special for piece in range(pieces.size)]
        others = [piece for piece in range(pieces.size) if not is_special[piece]]
        self.register_buffer("is_special", torch.tensor(is_special), persistent=False)
        self.register_buffer("others", torch.tensor(others), persistent=False)

    # ---- what is read off the transformer

    def blank_tokens(self, batch: dict[str, Tensor]) -> ImageTokens:
        """Embed images of the mean colour in the place of a batch's own."""
        blank = torch.zeros_like(batch["image"], dtype=torch.float32)
        return self._place(embed(self.encoder, blank), batch)

    def match(self, fused: Fused) -> Tensor:
        """Return logits of pairs: (B, 2), of a caption that is another's, and that is the own."""
        assert self.pooler is not None, "loss.matching=0"
        assert self.matching is not None
        return self.matching(self.pooler(fused.text[:, 0]))

    def name_words(self, fused: Fused, places: Tensor) -> Tensor:
        """Return logits of pieces at places of the captions: int64 (B, K) -> (B, K, V)."""
        assert self.words is not None, "loss.words=0"
        return self.words(select(fused.text, places), self.text.words.weight)

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
        masked = corruption = None
        if self.matching is not None:
            passes["matching"] = batch["pair_tokens"], images
        if self.words is not None:
            masked = self._mask(batch)
            passes["words"] = masked.tokens, images
            if not self.training:
                passes["blank"] = masked.tokens, self.blank_tokens(batch)
        if self.patches is not None:
            corruption = self.patches.draw(batch["random_key"]).to(weight.device)
            corrupted = self._place(self.patches.corrupt(embeddings, corruption), batch)
            passes["patches"] = batch["tokens"], corrupted
        fused = self._fuse_all(passes)
        losses: list[Tensor] = []
        sums: Sums = {}
        if "matching" in fused:
            losses.append(self._matching_loss(batch, images, fused["matching"], sums))
        if masked is not None:
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
        images = [images for _, images in passes.values()]
        rows = ImageTokens(
            torch.cat([image.tokens for image in images]),
            torch.cat([image.is_token for image in images]),
        )
        fused, number = self.fuse(tokens, rows), len(passes)
        text, image = fused.text.chunk(number), fused.image.chunk(number)
        return {name: Fused(text[i], image[i]) for i, name in enumerate(passes)}

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
        wanted, is_predicted = batch["tokens"].gather(1, masked.places), masked.is_predicted
        logits = self.name_words(fused, masked.places)
        by_piece = F.cross_entropy(logits.float().mT, wanted, reduction="none")  # (B, K)
        losses = (by_piece * is_predicted).sum(1) / is_predicted.sum(1).clamp(min=1)
        sums |= add_up_words(logits, losses, wanted, is_predicted, batch["weight"])
        return (losses * batch["weight"]).sum()

    def summarise(self, sums: Sums) -> dict[str, float]:
        """Turn sums into figures; see `pretrain.vilt.statistics` and `pretrain.vilt.patches`."""
        return statistics.summarise(sums) | patches.summarise(sums)
