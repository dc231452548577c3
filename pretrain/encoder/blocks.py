"""timm's blocks, which can be asked for some tokens' outputs alone, or look at other tokens.

In the last block before a loss, a token for which there is no loss is of use as key and value only:
its query, its share of the projection and its MLP are left out.
"""

import copy
from typing import cast

from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F


class QueryBlock(Block):
    """A block of timm's with outputs for all tokens, or for those asked for.

    Args:
        block: timm's, whose parts and settings it takes over.
    """

    def __init__(self, block: Block) -> None:
        adopt(self, block)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        queries: Tensor | None = None,
    ) -> Tensor:
        """Run timm's block: (B, T, D) -> (B, T, D), or (B, Q, D) where queries are given.

        Args:
            x: Tokens.
            attn_mask: timm's; not with queries.
            is_causal: timm's; not with queries.
            queries: int64 (B, Q), the tokens whose outputs are wanted; None: all, in order.
        """
        if queries is None:
            return super().forward(x, attn_mask, is_causal)
        normed = self.norm1(x)
        if type(self.attn) is Attention:
            attended = _attend(self.attn, select(normed, queries), normed)
        else:
            attended = select(self.attn(normed), queries)
        x = select(x, queries) + self.drop_path1(self.ls1(attended))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class CrossBlock(nn.Module):
    """A block of timm's whose tokens attend to others and not to each other.

    Args:
        block: timm's plain one, without layer scale and dropped paths, whose parts it takes over.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.attn = cast(Attention, block.attn)

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Let tokens (B, Q, D) attend to others (B, T, D), and run the MLP: (B, Q, D)."""
        tokens = tokens + _attend(self.attn, self.norm1(tokens), self.norm1(memory))
        return tokens + self.mlp(self.norm2(tokens))


def make_askable(blocks: nn.Sequential) -> None:
    """Put a `QueryBlock` in the last one's place where that is timm's plain block."""
    last = blocks[-1]
    if type(last) is Block:
        blocks[-1] = QueryBlock(last)


def answer(block: nn.Module, tokens: Tensor, queries: Tensor) -> Tensor:
    """Run a block of any kind for the outputs of some tokens: (B, T, D) -> (B, Q, D)."""
    if isinstance(block, QueryBlock):
        return block(tokens, queries=queries)
    return select(block(tokens), queries)


def _attend(attention: Attention, queries: Tensor, x: Tensor) -> Tensor:
    """Let tokens (B, Q, D) attend to others (B, T, D), as timm's `Attention.forward` does."""
    width = attention.attn_dim
    weights = attention.qkv.weight.split([width, 2 * width])
    bias = cast(Tensor | None, attention.qkv.bias)
    biases = (None, None) if bias is None else bias.split([width, 2 * width])
    heads = (attention.num_heads, attention.head_dim)
    q = F.linear(queries, weights[0], biases[0]).unflatten(2, heads).transpose(1, 2)
    k, v = F.linear(x, weights[1], biases[1]).unflatten(2, (2, *heads)).permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm(q), attention.k_norm(k)
    attended = attention.norm(mix(attention, q, k, v).transpose(1, 2).flatten(2))
    if attention.gate is not None:
        attended = attended * attention.gate(queries).sigmoid()
    return attention.proj_drop(attention.proj(attended))


def mix(
    attention: Attention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Average values by queries and keys, by the kernel that `attention` is set to.

    Args:
        attention: timm's.
        q: (B, heads, Q, d).
        k: (B, heads, T, d).
        v: (B, heads, T, d).
        bias: (B, heads, Q, T), added to the logits.

    Returns:
        (B, heads, Q, d).
    """
    if attention.fused_attn:
        dropout = attention.attn_drop.p if attention.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    logits = (q * attention.scale) @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    return attention.attn_drop(logits.softmax(dim=-1)) @ v


def adopt(module: nn.Module, other: nn.Module) -> None:
    """Give a new module all that another is made of: parts, parameters, hooks and settings."""
    for name, value in vars(other).items():
        vars(module)[name] = copy.copy(value) if isinstance(value, dict) else value


def select(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick tokens of each image: (B, N, D), int64 (B, M) -> (B, M, D)."""
    return tokens.gather(1, _over_width(index, tokens))


def _over_width(index: Tensor, tokens: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, tokens.shape[-1])
