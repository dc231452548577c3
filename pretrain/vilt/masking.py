"""Which words of a caption are masked, a function of the sample's key and the caption alone.

Words are taken in a random order as long as their pieces are no more than `round(ratio * n)` of the
caption's `n` pieces, and one word at least. A word is masked whole: with one of its pieces in sight
the others can often be guessed without the image.

Source: Devlin et al. 2019 (BERT's whole word masking); Kim et al. 2021 (ViLT), section 3.3.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from data.devices import exact_device
from data.randomness import combine, uniform
from pretrain.vilt.config import TextConfig

_CHOICE, _KIND, _PIECE = 21, 22, 23  # purposes of a sample's random numbers
_FEWEST = 8  # places for predicted pieces, where the ratio gives fewer: one long word has as many


class MaskedText(NamedTuple):
    """Captions with masked words.

    Attributes:
        tokens: int64 (B, L), the pieces that the model sees.
        places: int64 (B, K), where the predicted pieces are; what is left of K is filled up.
        is_predicted: bool (B, K), false where a place only fills up.
    """

    tokens: Tensor
    places: Tensor
    is_predicted: Tensor

    def to(self, device: torch.device) -> "MaskedText":
        """Move it to a device."""
        return MaskedText(*(tensor.to(device) for tensor in self))


def num_places(config: TextConfig, max_tokens: int) -> int:
    """Return K, the most predicted pieces of a caption of `max_tokens`."""
    return min(max_tokens, max(_FEWEST, round(config.ratio * max_tokens)))


def mask_words(
    keys: Tensor, tokens: Tensor, words: Tensor, config: TextConfig, mask: int, others: Tensor
) -> MaskedText:
    """Mask words of captions.

    For keys on a device without float64 it is drawn on the CPU, so that choices are the same.

    Args:
        keys: int64 (B,), one a sample.
        tokens: int64 (B, L), the pieces.
        words: int64 (B, L), each piece's word from 0; -1 for what is no word.
        config: How many.
        mask: The mask's piece.
        others: int64 (P,), the pieces of which random ones are drawn.
    """
    device, exact = tokens.device, exact_device(tokens.device)
    keys, tokens, words, others = (t.to(exact) for t in (keys, tokens, words, others))
    is_word, word = words >= 0, words.clamp(min=0)
    is_chosen = is_word & _choose(keys, words, config.ratio).gather(1, word)
    kind = uniform(combine(keys, _KIND), tokens.shape[1]).gather(1, word)  # one for each word
    is_masked = is_chosen & (kind < config.mask_ratio)
    is_random = is_chosen & ~is_masked & (kind < config.mask_ratio + config.random_ratio)
    numbers = uniform(combine(keys, _PIECE), tokens.shape[1]) * others.numel()
    shown = torch.where(is_random, others[numbers.long()], tokens.masked_fill(is_masked, mask))
    places = (~is_chosen).long().argsort(dim=1, stable=True)
    places = places[:, : num_places(config, tokens.shape[1])]
    return MaskedText(shown, places, is_chosen.gather(1, places)).to(device)


def _choose(keys: Tensor, words: Tensor, ratio: float) -> Tensor:
    """Choose words: int64 (B,), int64 (B, L) -> bool (B, L), by the words' numbers."""
    is_piece = words >= 0
    sizes = torch.zeros_like(words).scatter_add(1, words.clamp(min=0), is_piece.long())
    scores = uniform(combine(keys, _CHOICE), words.shape[1]).masked_fill(sizes == 0, 2.0)
    order = scores.argsort(dim=1, stable=True)  # numbers without a word come last
    taken = sizes.gather(1, order).cumsum(1)
    most = (is_piece.sum(1, keepdim=True) * ratio + 0.5).floor()
    is_within = taken <= most
    is_within[:, 0] = True
    is_chosen = torch.zeros_like(is_piece).scatter(1, order, is_within)
    return is_chosen & (sizes > 0)
