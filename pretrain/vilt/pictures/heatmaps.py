"""Where the words of a caption lie in its image, by the transport plan and by attention.

Source: Kim et al. 2021 (ViLT), figure 4: the plan between words and patches.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from data.captions.vocabulary import Vocabulary
from pretrain.encoder.facts import grid_size
from pretrain.pictures import attention
from pretrain.pictures.attention import evaluating, watched
from pretrain.pictures.draw import rgb
from pretrain.vilt.model import ViltModel
from pretrain.vilt.pairs import ImageTokens

_HEAT = (214, 39, 40)  # red
_MOST = 0.75  # of the heat's colour, over the image
_FADED = 0.5  # of the image's own contrast
_PEAK = 3  # times its mean: a map that rises no higher is not shown as if it did


class WordMaps(NamedTuple):
    """Maps of a caption's words over the patches of its image.

    Attributes:
        words: Each as it is written; one of several pieces is joined.
        plan: float32 (W, rows, columns), each word's row of the transport plan: which part of it
            goes to each patch. A word's parts sum to 1.
        attention: float32 (W, rows, columns), how much attention the word's token gives to each
            patch in the last block, the mean over heads. A word's sum is below 1, as words and
            class tokens get some too.
    """

    words: list[str]
    plan: Tensor
    attention: Tensor


@torch.no_grad()
def word_maps(model: ViltModel, vocabulary: Vocabulary, batch: dict[str, Tensor]) -> list[WordMaps]:
    """Map the words of captions, one image after the other.

    Args:
        model: Left in the mode in which it was.
        vocabulary: Of the captions.
        batch: `image`, `tokens`, `words` and, of images of their own aspect, `grid` and
            `random_key`, on the model's device.

    Raises:
        UserError: The encoder's blocks have no attention maps of timm's usual kind.
    """
    attention.check(model.encoder)
    with evaluating(model):
        images = model.image_tokens(batch)
        plan, looks = _plan_and_attention(model, batch["tokens"], images)
    grids = batch["grid"].tolist() if model.canvas is not None else []
    grids = grids or [list(grid_size(model.encoder))] * len(plan)
    is_piece = ((batch["words"] >= 0) & ~model.is_special[batch["tokens"]]).cpu()
    words, tokens = batch["words"].cpu(), batch["tokens"].cpu()
    return [
        _of_image(vocabulary, tokens[i], words[i].masked_fill(~is_piece[i], -1), maps, grid)
        for i, (maps, grid) in enumerate(zip(torch.stack([plan, looks], 1), grids, strict=True))
    ]


def _plan_and_attention(
    model: ViltModel, tokens: Tensor, images: ImageTokens
) -> tuple[Tensor, Tensor]:
    """Return both maps of each piece over the patches that entered: (B, L, N), on the CPU."""
    is_token = torch.cat([tokens != model.pieces.pad, images.is_token], dim=1)
    last = len(model.encoder.blocks) - 1
    parts: list[Tensor] = []

    def look(layer: int, chunks: Iterator[tuple[int, Tensor]]) -> None:
        if layer == last:
            for _, logits in chunks:
                seen = logits.masked_fill(~is_token[:, None, None], -torch.inf)
                parts.append(seen.softmax(3).mean(1))

    with watched(model.encoder, look):
        fused = model.fuse(tokens, images)
    plan = model.align(tokens, images, fused).plan
    start = tokens.shape[1] + model.encoder.num_prefix_tokens
    looks = torch.cat(parts, dim=1)[:, : tokens.shape[1], start:]
    return plan.cpu(), looks.cpu()


def _of_image(
    vocabulary: Vocabulary, tokens: Tensor, words: Tensor, maps: Tensor, grid: list[int]
) -> WordMaps:
    """Join the maps of one caption's pieces (2, L, N) to those of its words."""
    numbers = words[words >= 0].unique()
    rows, columns = grid
    of_word = words == numbers[:, None]  # (W, L)
    mean = of_word / of_word.sum(1, keepdim=True)
    plan, looks = (mean @ maps)[..., : rows * columns].unflatten(2, (rows, columns))
    plan = plan / plan.sum((1, 2), keepdim=True).clamp(min=1e-30)
    return WordMaps([vocabulary.text(tokens[own].tolist()) for own in of_word], plan, looks)


def choose_words(found: Sequence[WordMaps], number: int) -> list[list[int]]:
    """Return, for each caption, the places of the words that the fewest of the captions have.

    Args:
        found: Maps of captions.
        number: Words of each, at most; signs are left out, and a word counts once.
    """
    commonness = Counter(word for maps in found for word in set(maps.words))
    chosen: list[list[int]] = []
    for maps in found:
        first = {word: maps.words.index(word) for word in dict.fromkeys(maps.words)}
        spoken = [word for word in first if any(letter.isalnum() for letter in word)]
        rarest = sorted(spoken, key=lambda word: (commonness[word], -len(word)))
        chosen.append(sorted(first[word] for word in rarest[:number]))
    return chosen


def paint(image: Tensor, maps: Tensor, patch: tuple[int, int]) -> Tensor:
    """Lay maps over their image, the hotter the redder, each up to its own highest value.

    An even map is pale. The image itself is faded, so that its own red is no heat.

    Args:
        image: uint8 (C, H, W); what lies beside the maps' patches is cut off.
        maps: (W, rows, columns), at least 0.
        patch: Pixels of a patch, (height, width).

    Returns:
        uint8 (W, 3, H, W).
    """
    highest, mean = maps.amax((1, 2), keepdim=True), maps.mean((1, 2), keepdim=True)
    heat = maps / torch.maximum(highest, _PEAK * mean).clamp(min=1e-30)
    heat = heat.repeat_interleave(patch[0], 1).repeat_interleave(patch[1], 2)
    below = rgb(image[None, :, : heat.shape[1], : heat.shape[2]].float())
    below = below.lerp(torch.tensor(255.0), _FADED)
    colour = torch.tensor(_HEAT).float()[:, None, None]
    return below.lerp(colour, _MOST * heat[:, None]).round().to(torch.uint8)
