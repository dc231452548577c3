"""timm's blocks, with positions added to what they are given, or in their attention."""

from typing import cast

from timm.layers import Attention, maybe_add_mask, resolve_self_attn_mask
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.encoder.blocks import QueryBlock, adopt, mix, select
from pretrain.encoder.position_tables import Offsets


class PositionedBlock(QueryBlock):
    """A block of timm's that adds a table to the patch tokens it is given.

    Args:
        block: timm's, whose parts and settings it takes over.
        position: The table.
        num_prefix: Tokens before the patches, which get no position.
        is_own: Whether the table is a part of this block; if not, the encoder has it.
    """

    position: nn.Module
    num_prefix: int

    def __init__(self, block: Block, position: nn.Module, num_prefix: int, *, is_own: bool) -> None:
        super().__init__(block)
        self.num_prefix = num_prefix
        if is_own:
            self.position = position
        else:
            # no part of this one, or the encoder would hold it several times; a deep copy of the
            # encoder follows it nevertheless
            vars(self)["position"] = position

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        queries: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Add positions and run the block: (B, T, D) -> (B, T, D), or (B, Q, D).

        Args:
            x: Tokens, prefix tokens first.
            attn_mask: timm's.
            is_causal: timm's.
            queries: As `QueryBlock`.
            places: int64 (B, V), which patches the tokens after the prefix are; None: all N.
        """
        table: Tensor = self.position().to(x.dtype)  # (N, D)
        if places is not None:
            table = table[places]  # (B, V, D)
        x = x + F.pad(table, (0, 0, self.num_prefix, 0))
        return super().forward(x, attn_mask, is_causal, queries)


class RelativeBlock(PositionedBlock):
    """A block of timm's with positions in its attention."""

    def __init__(self, block: Block, position: Offsets, num_prefix: int) -> None:
        adopt(self, block)
        self.attn = RelativeAttention(cast(Attention, block.attn), position, num_prefix)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        queries: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Run the block; as `PositionedBlock`. All tokens attend: offsets are between all."""
        attended = self.attn(self.norm1(x), attn_mask, is_causal, places)
        if queries is not None:
            x, attended = select(x, queries), select(attended, queries)
        x = x + self.drop_path1(self.ls1(attended))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class RelativeAttention(Attention):
    """timm's attention, with query times embedding of the offset added to query times key.

    The fused kernel gets these logits as a mask, (B, heads, T, T), which it alone would not need.

    Args:
        attention: timm's, whose parts and settings it takes over.
        position: Embeddings of the offsets.
        num_prefix: Tokens before the patches, to and from which there is no offset.
    """

    def __init__(self, attention: Attention, position: Offsets, num_prefix: int) -> None:
        adopt(self, attention)
        self.position = position
        self.num_prefix = num_prefix

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        places: Tensor | None = None,
    ) -> Tensor:
        """Attend: (B, T, D) -> (B, T, D); arguments as `PositionedBlock`."""
        batch, num_tokens, _ = x.shape
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        qkv = self.qkv(x).view(batch, num_tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, T, d) each
        q, k = self.q_norm(q), self.k_norm(k)
        bias = self.position(q[:, :, self.num_prefix :] * self.scale, places)
        bias = F.pad(bias, (self.num_prefix, 0, self.num_prefix, 0)).to(q.dtype)
        bias = maybe_add_mask(
            bias, resolve_self_attn_mask(num_tokens, bias, attn_mask, is_causal)
        )  # (B, heads, T, T)
        x = mix(self, q, k, v, bias).transpose(1, 2).flatten(2)
        x = self.norm(x)
        return self.proj_drop(self.proj(x if gate is None else x * gate))


def plain_block(block: PositionedBlock) -> Block:
    """Return timm's block that a table was added to, without it; its parts are shared."""
    plain = Block.__new__(Block)
    adopt(plain, block)
    for name in ("position", "num_prefix"):
        del vars(plain)[name]
    return plain
