"""The text's half of ViLT beside the transformer: embeddings, and the head of masked words.

Source: Kim et al. 2021 (ViLT), section 3.1; both parts are BERT's (Devlin et al. 2019).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STD = 0.02


class TextEmbedding(nn.Module):
    """Pieces -> tokens: word, position and modal-type embeddings.

    The image's modal-type embedding is a part of the encoder's position embeddings and class token,
    to all of which it would be added: the same function, with an encoder that stands alone.

    Args:
        num_pieces: Of the vocabulary.
        max_tokens: L.
        width: D.
        dropout: Of the embeddings.
        eps: Of the layer norm.
    """

    def __init__(
        self, num_pieces: int, max_tokens: int, width: int, dropout: float, eps: float
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(num_pieces, width)
        self.positions = nn.Parameter(torch.empty(max_tokens, width))
        self.modality = nn.Parameter(torch.empty(width))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)
        for weight in (self.words.weight, self.positions, self.modality):
            nn.init.normal_(weight, std=_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed pieces: int64 (B, T), T at most L -> (B, T, D)."""
        embeddings = self.words(tokens) + self.positions[: tokens.shape[1]]
        return self.dropout(self.norm(embeddings)) + self.modality


class WordHead(nn.Module):
    """Tokens -> logits of pieces, by the embeddings of the pieces themselves.

    Args:
        num_pieces: V.
        width: D.
        eps: Of the layer norm.
    """

    def __init__(self, num_pieces: int, width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(num_pieces))
        nn.init.normal_(self.dense.weight, std=_STD)
        nn.init.zeros_(self.dense.bias)

    def forward(self, tokens: Tensor, words: Tensor) -> Tensor:
        """Return logits: (B, K, D), the pieces' embeddings (V, D) -> (B, K, V)."""
        return F.linear(self.norm(F.gelu(self.dense(tokens))), words, self.bias)


class Pooler(nn.Module):
    """The text's class token -> the vector of the pair: (B, D) -> (B, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        nn.init.normal_(self.dense.weight, std=_STD)
        nn.init.zeros_(self.dense.bias)

    def forward(self, token: Tensor) -> Tensor:
        """Pool."""
        return self.dense(token).tanh()


class MatchingHead(nn.Linear):
    """The vector of a pair -> logits: (B, D) -> (B, 2), of another's caption and of the own."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 2)
        nn.init.normal_(self.weight, std=_STD)
        nn.init.zeros_(self.bias)
