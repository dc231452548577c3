"""What a trained model answers about pairs: do they match, and which words are hidden."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from data.captions.vocabulary import Vocabulary
from pretrain.vilt.masking import mask_words
from pretrain.vilt.model import ViltModel
from pretrain.vilt.pairs import ImageTokens


class HiddenWord(NamedTuple):
    """A word that was hidden from the model, all pieces of it, and what it is taken for.

    Attributes:
        right: The word, as the vocabulary writes it.
        guess: With the image.
        blank: With an image of the mean colour in its place.
    """

    right: str
    guess: str
    blank: str


@torch.no_grad()
def match_ratios(model: ViltModel, batch: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Return how sure the model is that captions belong to images: float32 (B,) in 0..1.

    Args:
        model: In evaluation mode, with `loss.matching`.
        batch: `image` and, of images of their own aspect, `grid` and `random_key`.
        tokens: int64 (B, L), a caption for each image.
    """
    logits = model.match(model.fuse(tokens, model.image_tokens(batch)))
    return logits.float().softmax(1)[:, 1]


@torch.no_grad()
def guess_words(
    model: ViltModel, vocabulary: Vocabulary, batch: dict[str, Tensor]
) -> list[list[HiddenWord]]:
    """Hide words of captions and guess them: for each image its words, in order.

    They are those that training would choose from the same keys, and none of them stays in sight.

    Args:
        model: In evaluation mode, with `loss.words`.
        vocabulary: Of the captions.
        batch: `image`, `random_key`, `tokens` and `words`, and perhaps `grid`.
    """
    all_masked = replace(model.masking, mask_ratio=1.0, random_ratio=0.0)
    keys, tokens, words = batch["random_key"], batch["tokens"], batch["words"]
    masked = mask_words(keys, tokens, words, all_masked, model.pieces.mask, model.others)

    def guess(images: ImageTokens) -> Tensor:
        pieces = model.name_words(model.fuse(masked.tokens, images), masked.places).argmax(2)
        return tokens.scatter(1, masked.places, pieces)

    versions = torch.stack(
        [tokens, guess(model.image_tokens(batch)), guess(model.blank_tokens(batch))], dim=1
    )
    chosen = words.gather(1, masked.places).masked_fill(~masked.is_predicted, -1)
    return [
        [
            HiddenWord(*(vocabulary.text(row[own == number].tolist()) for row in rows))
            for number in sorted(set(hidden.tolist()) - {-1})
        ]
        for rows, own, hidden in zip(versions, words, chosen, strict=True)
    ]
