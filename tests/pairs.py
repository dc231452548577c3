"""An untrained model of pairs, its vocabulary, and a batch: of one size, or of their own aspect."""

import torch
from torch import Tensor

from data.captions.vocabulary import Vocabulary
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.vilt.config import LossConfig, TextConfig
from pretrain.vilt.model import ViltModel
from pretrain.vilt.pairs import Canvas, Pieces

LENGTH = 12
CAPTIONS = ["a redish block", "blue, blue: the qqq!", "red"]
KNOWN = ["a red fish", "the blue block: red!", "a wish, the block"] * 3
GRIDS = [[2, 5], [5, 2], [3, 3]]  # of images of their own aspect, on a canvas of 5 x 5


def make_vocabulary() -> Vocabulary:
    """Learn words: `redish` is none of them, but of their pieces, and the q is unknown."""
    return Vocabulary.learn(KNOWN, 100)


def make_model(vocabulary: Vocabulary, *, has_aspect: bool) -> ViltModel:
    """Make a model whose attention is far from even, for images of 3 x 5 patches or a canvas."""
    torch.manual_seed(0)
    config = EncoderConfig("vit_tiny_patch16_224", "none", 4, 24, 2, 3)
    encoder = make_encoder(config, (12, 20))
    pieces = Pieces(vocabulary.size, vocabulary.pad, vocabulary.mask, frozenset(vocabulary.special))
    canvas = Canvas(20, 4) if has_aspect else None
    model = ViltModel(encoder, pieces, LENGTH, TextConfig(), LossConfig(), canvas=canvas)
    for parameter in model.parameters():
        parameter.data *= 4
    return model.eval()


def make_batch(vocabulary: Vocabulary, *, has_aspect: bool) -> dict[str, Tensor]:
    """Make three pairs of `CAPTIONS` and noise."""
    texts = [vocabulary.encode(caption, LENGTH) for caption in CAPTIONS]
    generator = torch.Generator().manual_seed(1)
    size = (20, 20) if has_aspect else (12, 20)
    batch = {
        "image": torch.randint(256, (3, 3, *size), generator=generator, dtype=torch.uint8),
        "tokens": torch.stack([torch.from_numpy(text.tokens) for text in texts]),
        "words": torch.stack([torch.from_numpy(text.words) for text in texts]),
        "random_key": torch.arange(3),
    }
    return batch | {"grid": torch.tensor(GRIDS)} if has_aspect else batch
