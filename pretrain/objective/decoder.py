"""The light decoder of mask-free encoding: encoded visible patches -> a token for every patch.

Patches that would become the mask embedding do not enter the encoder; here the mask embedding takes
their places. Source: He et al. 2022 (arXiv:2111.06377), section 3; there the target is pixels.

With cross-attention, masked patches look at visible ones and not at each other, of which they could
learn nothing but places. Source: CrossMAE, Fu et al. 2024 (arXiv:2401.14391), section 3.2.
"""

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from data.settings import require
from pretrain.encoder.blocks import CrossBlock, answer, make_askable
from pretrain.objective.config import DecoderConfig


class Decoder(nn.Module):
    """Blocks over all patches, or from some to the visible ones; fixed sine-cosine positions.

    Args:
        config: How many blocks of which width.
        encoder_width: `D` of the tokens that come in.
        encoder_heads: The encoder's attention heads.
        grid: (rows, columns) of the patches.

    Raises:
        UserError: The width does not fit the heads or the positions.
    """

    positions: Tensor

    def __init__(
        self, config: DecoderConfig, encoder_width: int, encoder_heads: int, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.width = config.width or encoder_width
        num_heads = config.num_heads or encoder_heads
        require(
            self.width % num_heads == 0 and self.width % 4 == 0,
            f"decoder.width={self.width} must be a multiple of decoder.num_heads={num_heads} and "
            "of 4; set both",
        )
        self.embed = nn.Linear(encoder_width, self.width)
        self.mask_token = nn.Parameter(torch.empty(self.width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.is_cross = config.attention == "cross"
        blocks = [Block(self.width, num_heads, qkv_bias=True) for _ in range(config.depth)]
        self.blocks = nn.Sequential(*(map(CrossBlock, blocks) if self.is_cross else blocks))
        make_askable(self.blocks)
        self.norm = nn.LayerNorm(self.width, eps=1e-6)
        for module in [self.embed, *self.blocks.modules()]:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)  # as in MAE's code
                nn.init.zeros_(module.bias)
        table = build_sincos2d_pos_embed(list(grid), self.width)
        self.register_buffer("positions", table, persistent=False)

    def forward(self, tokens: Tensor, visible: Tensor, queries: Tensor) -> Tensor:
        """Decode the visible patches' tokens into those asked for: (B, V, D) -> (B, M, width).

        Args:
            tokens: (B, V, D).
            visible: int64 (B, V), which patches they are of.
            queries: int64 (B, M), the patches to be told of.
        """
        embedded = self.embed(tokens)  # (B, V, width)
        positions = self.positions.to(embedded.dtype)  # (N, width)
        if self.is_cross:
            memory = embedded + positions[visible]
            tokens = self.mask_token.to(embedded.dtype) + positions[queries]  # (B, M, width)
            for block in self.blocks:
                tokens = block(tokens, memory)
            return self.norm(tokens)
        everywhere = self.mask_token.to(embedded.dtype).expand(len(tokens), len(self.positions), -1)
        index = visible[..., None].expand(-1, -1, self.width)
        filled = everywhere.scatter(1, index, embedded)  # (B, N, width)
        tokens = filled + positions
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens)
        return self.norm(answer(last, tokens, queries))
