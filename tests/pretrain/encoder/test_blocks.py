"""Blocks that are asked for some tokens alone answer as if they had been asked for all."""

from typing import Any, cast

import pytest
import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer

from pretrain.encoder import EncoderConfig, make_encoder, positions
from pretrain.encoder.blocks import QueryBlock, answer, make_askable, select
from pretrain.encoder.tokens import encode, patch_tokens

NUM_TOKENS, WIDTH, HEADS = 13, 16, 2
OTHERS = ["vit_base_patch16_plus_240", "vit_small_patch16_36x1_224", "vit_small_patch16_18x2_224"]


def tokens_and_queries() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, NUM_TOKENS, WIDTH, generator=generator)
    order = torch.rand(3, NUM_TOKENS, generator=generator).argsort(dim=1)
    return tokens, order[:, :5]


def gradients(module: torch.nn.Module, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    module.zero_grad()
    (outputs * weights).sum().backward()
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def assert_answers_are_those_of_all(block: torch.nn.Module) -> None:
    tokens, queries = tokens_and_queries()
    asked = tokens.clone().requires_grad_()
    found = answer(block, asked, queries)
    found_gradients = gradients(block, found)
    whole = tokens.clone().requires_grad_()
    expected = select(block(whole), queries)
    expected_gradients = gradients(block, expected)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    assert asked.grad is not None
    torch.testing.assert_close(asked.grad, whole.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        {"qkv_bias": True},
        {"qkv_bias": False, "proj_bias": False, "init_values": 0.3},
        {"qkv_bias": True, "qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True},
        {"attn_layer": "diff"},
    ],
)
def test_a_plain_block(arguments: dict[str, Any], is_fused: bool) -> None:
    torch.manual_seed(0)
    block = Block(WIDTH, HEADS, **arguments)
    cast(Any, block.attn).fused_attn = is_fused
    blocks = torch.nn.Sequential(block)
    names = list(blocks.state_dict())
    make_askable(blocks)
    assert isinstance(blocks[0], QueryBlock)
    assert list(blocks.state_dict()) == names
    assert_answers_are_those_of_all(blocks[0])


def test_a_gate_is_of_the_tokens_that_ask() -> None:
    torch.manual_seed(0)
    block = Block(WIDTH, HEADS, qkv_bias=True)
    cast(Any, block.attn).gate = torch.nn.Linear(WIDTH, WIDTH)
    assert_answers_are_those_of_all(QueryBlock(block))


@pytest.mark.parametrize("kind", ["learned_1d", "learned_2d", "sincos_2d", "relative"])
def test_a_block_with_positions(kind: str) -> None:
    torch.manual_seed(0)
    arguments = {"img_size": (6, 8), "patch_size": 2, "embed_dim": WIDTH, "num_heads": HEADS}
    encoder = timm.create_model(
        "vit_tiny_patch16_224", pos_embed="none", depth=2, num_classes=0, **cast(Any, arguments)
    )
    assert isinstance(encoder, VisionTransformer)
    positions.install(encoder, kind, "stem" if kind == "relative" else "every_layer")
    assert encoder.num_prefix_tokens + encoder.patch_embed.num_patches == NUM_TOKENS
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name in positions.parameter_names(encoder):
                parameter.mul_(30)
    assert_answers_are_those_of_all(cast(Any, encoder.blocks)[-1])


@pytest.mark.parametrize("name", OTHERS)
def test_an_encoder_asked_for_some_patches(name: str) -> None:
    """Of whatever blocks it is made: those that cannot be asked are run for all."""
    torch.manual_seed(0)
    config = EncoderConfig(
        name=name, patch_size=4, embed_dim=WIDTH, depth=2, num_heads=HEADS, args={"reg_tokens": 2}
    )
    encoder = make_encoder(config, (12, 16))
    embeddings = torch.randn(3, 12, WIDTH)
    asked = torch.rand(3, 12).argsort(dim=1)[:, :5]
    with torch.no_grad():
        expected = select(patch_tokens(encoder, encode(encoder, embeddings)), asked)
        make_askable(encoder.blocks)
        found = encode(encoder, embeddings, queries=asked)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
