"""Position embeddings of each kind at each place: what they add, and what holds them."""

import copy
import functools
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from timm.models import save_for_hf
from timm.models.vision_transformer import Block, VisionTransformer
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from data.settings import UserError
from pretrain.encoder import positions
from pretrain.encoder.config import POSITION_PLACES
from pretrain.encoder.position_blocks import PositionedBlock
from pretrain.encoder.position_tables import Offsets

GRID = (3, 4)
NUM_PATCHES, WIDTH, HEADS, DEPTH = 12, 16, 2, 3
TABLES = [
    (kind, at) for kind in ("learned_1d", "learned_2d", "sincos_2d") for at in POSITION_PLACES
]
PLACED = [*TABLES, ("relative", "stem")]
OURS = [pair for pair in PLACED if not positions.is_timms(*pair)]
BAKED = [("learned_2d", "stem"), ("sincos_2d", "stem")]


def create(name: str, **arguments: Any) -> VisionTransformer:
    encoder = timm.create_model(name, **arguments)
    assert isinstance(encoder, VisionTransformer)
    return encoder


def make(kind: str, at: str = "stem", seed: int = 0, **args: Any) -> VisionTransformer:
    """Make an encoder of 3 x 4 patches, whose outputs depend visibly on its positions."""
    torch.manual_seed(seed)
    is_learned = (kind, at) == ("learned_1d", "stem")
    arguments: dict[str, Any] = {
        "pos_embed": "learn" if is_learned else "none",
        "img_size": (6, 8),
        "patch_size": 2,
        "embed_dim": WIDTH,
        "depth": DEPTH,
        "num_heads": HEADS,
        "num_classes": 0,
        "global_pool": "avg",
        "fc_norm": False,
        "reg_tokens": 1,
    }
    encoder = create("vit_tiny_patch16_224", **(arguments | args))
    positions.install(encoder, kind, at)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name in positions.parameter_names(encoder) or name == "pos_embed":
                parameter.mul_(30)  # as if trained
            elif "qkv" in name or "fc" in name or "proj" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    return encoder.eval()


made = functools.cache(make)  # for those who change nothing


def embeddings(num_images: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(
        num_images, NUM_PATCHES, WIDTH, generator=torch.Generator().manual_seed(seed)
    )


def pixels(num_images: int = 2) -> Tensor:
    return torch.randn(num_images, 3, 6, 8, generator=torch.Generator().manual_seed(2))


def tokens_of(encoder: VisionTransformer, embedded: Tensor) -> Tensor:
    """Run the encoder from its patch embeddings on: (B, N, D) -> (B, T, D)."""
    return encoder.norm(encoder.blocks(encoder._pos_embed(embedded)))


def encode_visible(encoder: VisionTransformer, embedded: Tensor, places: Tensor) -> Tensor:
    """Encode some patches of each image alone, as mask-free pretraining does."""
    tokens = encoder._pos_embed(embedded)
    prefix = encoder.num_prefix_tokens
    visible = tokens[:, prefix:].gather(1, places[..., None].expand(-1, -1, WIDTH))
    tokens = torch.cat([tokens[:, :prefix], visible], dim=1)
    for block in encoder.blocks:
        is_placed = isinstance(block, PositionedBlock)
        tokens = block(tokens, places=places) if is_placed else block(tokens)
    return encoder.norm(tokens)


def block_of(encoder: VisionTransformer, index: int = 0) -> Any:
    return encoder.blocks[index]


# ---------------------------------------------------------------- what they are for


def moved(encoder: VisionTransformer) -> float:
    """How far tokens of permuted patches are from the permuted tokens."""
    order = torch.randperm(NUM_PATCHES, generator=torch.Generator().manual_seed(3))
    embedded, prefix = embeddings(), encoder.num_prefix_tokens
    with torch.no_grad():
        straight = tokens_of(encoder, embedded)[:, prefix:][:, order]
        permuted = tokens_of(encoder, embedded[:, order])[:, prefix:]
    return float((straight - permuted).abs().max())


def test_without_positions_an_encoder_does_not_see_where_a_patch_is() -> None:
    encoder = make("none")
    assert moved(encoder) < 1e-5
    assert positions.described(encoder) == ("none", "stem")
    assert positions.tables(encoder) == []


@pytest.mark.parametrize(("kind", "at"), PLACED)
def test_with_positions_it_does(kind: str, at: str) -> None:
    encoder = make(kind, at)
    assert moved(encoder) > 0.05
    assert positions.described(encoder) == (kind, at)


@pytest.mark.parametrize(("kind", "at"), OURS)
def test_the_weights_of_timm_keep_their_names_and_values(kind: str, at: str) -> None:
    plain, encoder = make("none").state_dict(), make(kind, at).state_dict()
    assert plain.keys() <= encoder.keys()
    torch.manual_seed(0)
    before = create("vit_tiny_patch16_224", depth=2, pos_embed="none", drop_path_rate=0.2)
    state = {name: value.clone() for name, value in before.state_dict().items()}
    positions.install(before, kind, at)
    assert all(torch.equal(before.state_dict()[name], state[name]) for name in state)
    assert block_of(before, 1).drop_path1.drop_prob == pytest.approx(0.2)


# ---------------------------------------------------------------- what is added


@pytest.mark.parametrize("args", [{}, {"reg_tokens": 0, "class_token": False}])
def test_learned_1d_every_layer_with_zeros_above_the_stem_is_timms(args: dict[str, Any]) -> None:
    ours, timms = make("learned_1d", "every_layer", **args), make("learned_1d", **args)
    with torch.no_grad():
        missing = timms.load_state_dict(ours.state_dict(), strict=False).missing_keys
        assert missing == ["pos_embed"]
        cast(Tensor, timms.pos_embed).zero_()
        table = positions.tables(ours)[0]
        cast(Tensor, timms.pos_embed)[0, timms.num_prefix_tokens :] = table
        for index in range(1, DEPTH):
            block_of(ours, index).position.table.zero_()
    torch.testing.assert_close(ours(pixels()), timms(pixels()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "at"), BAKED)
def test_a_table_at_the_stem_equals_timms_pos_embed(kind: str, at: str) -> None:
    encoder, timms = make(kind, at), make("learned_1d")
    table = positions.tables(encoder)[0]
    timms.load_state_dict(encoder.state_dict(), strict=False)
    with torch.no_grad():
        cast(Tensor, timms.pos_embed).zero_()
        cast(Tensor, timms.pos_embed)[0, timms.num_prefix_tokens :] = table
    torch.testing.assert_close(
        encoder.forward_features(pixels()), timms.forward_features(pixels()), rtol=1e-6, atol=1e-6
    )


def test_learned_2d_has_the_row_in_one_half_and_the_column_in_the_other() -> None:
    encoder = make("learned_2d")
    (table,) = positions.tables(encoder)
    by_place = table.view(*GRID, WIDTH)
    rows, columns = by_place.split(WIDTH // 2, dim=-1)
    held: Any = encoder.pos_embed_table
    for row in range(GRID[0]):
        for column in range(GRID[1]):
            assert torch.equal(rows[row, column], held.rows[row])
            assert torch.equal(columns[row, column], held.columns[column])


def test_sincos_2d_is_that_of_mae() -> None:
    """MAE's formula, in float64: the column's sines and cosines, then the row's."""
    (table,) = positions.tables(make("sincos_2d"))
    quarter = WIDTH // 4
    frequency = 1 / 10000 ** (np.arange(quarter) / quarter)
    for index, found in enumerate(table.numpy()):
        row, column = divmod(index, GRID[1])
        parts = [wave(side * frequency) for side in (column, row) for wave in (np.sin, np.cos)]
        np.testing.assert_allclose(found, np.concatenate(parts), atol=1e-6)


@pytest.mark.parametrize(("kind", "at"), TABLES)
def test_tables_are_given_from_the_stem_upwards(kind: str, at: str) -> None:
    encoder = make(kind, at)
    tables = positions.tables(encoder)
    is_own = at == "every_layer" and kind != "sincos_2d"
    assert len(tables) == (DEPTH if is_own else 1)
    assert len({table.sum().item() for table in tables}) == len(tables)
    assert all(table.shape == (NUM_PATCHES, WIDTH) for table in tables)
    assert not any(table.requires_grad for table in tables)
    if is_own:
        assert torch.equal(tables[1], block_of(encoder, 1).position())


def test_there_are_no_tables_of_offsets() -> None:
    assert positions.tables(make("relative")) == []


@pytest.mark.parametrize(("at", "used"), [("stem", 1), ("every_layer_shared", DEPTH)])
def test_a_shared_table_is_held_once_and_used_by_all(at: str, used: int) -> None:
    encoder = make("learned_1d", "every_layer_shared") if used > 1 else make("learned_2d", at)
    names = positions.parameter_names(encoder)
    assert names == {name for name in encoder.state_dict() if "pos_embed_table" in name}
    blocks = [block for block in encoder.blocks if isinstance(block, PositionedBlock)]
    assert len(blocks) == used
    assert all(block.position is encoder.pos_embed_table for block in blocks)


@pytest.mark.parametrize(("kind", "at"), OURS)
def test_gradients_reach_all_that_is_learned(kind: str, at: str) -> None:
    encoder = make(kind, at).train()
    encoder(pixels()).square().sum().backward()
    names = positions.parameter_names(encoder)
    assert bool(names) == (kind != "sincos_2d")
    for name in names:
        gradient = encoder.get_parameter(name).grad
        assert gradient is not None, name
        assert (gradient.flatten(0, -2).abs().sum(-1) > 0).all(), name  # each row of it


# ---------------------------------------------------------------- offsets


def slow_attention(encoder: VisionTransformer, index: int, x: Tensor) -> Tensor:
    """Compute one image's attention pair by pair in float64: (T, D) -> (T, D)."""
    attn: Any = copy.deepcopy(block_of(encoder, index).attn).double()
    head_dim, prefix = WIDTH // HEADS, encoder.num_prefix_tokens
    qkv = attn.qkv(x.double()).view(-1, 3, HEADS, head_dim)
    mixed = torch.zeros(len(x), HEADS, head_dim, dtype=torch.float64)
    for head in range(HEADS):
        q, k, v = qkv[:, :, head].unbind(1)
        logits = q @ k.T / head_dim**0.5
        for i in range(NUM_PATCHES):
            for j in range(NUM_PATCHES):
                row = i // GRID[1] - j // GRID[1] + GRID[0] - 1
                column = i % GRID[1] - j % GRID[1] + GRID[1] - 1
                extra = q[prefix + i] @ attn.position.table[row, column] / head_dim**0.5
                logits[prefix + i, prefix + j] += extra
        mixed[:, head] = logits.softmax(-1) @ v
    return attn.proj(mixed.flatten(1))


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("args", [{}, {"class_token": False, "reg_tokens": 0}])
def test_relative_attention_is_the_papers(is_fused: bool, args: dict[str, Any]) -> None:
    encoder = make("relative", **args)
    x = torch.randn(1, NUM_PATCHES + encoder.num_prefix_tokens, WIDTH)
    attn = block_of(encoder, 1).attn
    attn.fused_attn = is_fused
    with torch.no_grad():
        expected = slow_attention(encoder, 1, x[0])
        torch.testing.assert_close(attn(x)[0].double(), expected, rtol=1e-5, atol=1e-5)


def mask_of(kind: str) -> Tensor | None:
    generator = torch.Generator().manual_seed(4)
    mask = torch.randn(NUM_PATCHES + 2, NUM_PATCHES + 2, generator=generator)
    return {"none": None, "bool": (mask > 0) | torch.eye(len(mask)).bool(), "float": mask}[kind]


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("is_causal", [True, False])
def test_fused_and_plain_attention_agree(mask: str, is_causal: bool) -> None:
    encoder = make("relative", qk_norm=True)
    x = encoder._pos_embed(embeddings()).detach()
    found: list[Tensor] = []
    for is_fused in (True, False):
        block_of(encoder).attn.fused_attn = is_fused
        encoder.zero_grad()
        out = block_of(encoder)(x, attn_mask=mask_of(mask), is_causal=is_causal)
        out.square().sum().backward()
        found += [out.detach(), block_of(encoder).attn.position.table.grad.clone()]
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], found[3], rtol=1e-4, atol=1e-4)
    if is_causal:
        changed = x.clone()
        changed[:, 5:] += 1
        with torch.no_grad():
            after = block_of(encoder)(changed, is_causal=True)[:, :5]
        before = block_of(encoder)(x, is_causal=True)[:, :5]
        torch.testing.assert_close(after, before.detach())


def test_without_offsets_it_is_timms_attention() -> None:
    plain, encoder = make("none"), make("relative")
    plain.load_state_dict(encoder.state_dict(), strict=False)
    with torch.no_grad():
        for block in encoder.blocks:
            cast(Any, block).attn.position.table.zero_()
    torch.testing.assert_close(encoder(pixels()), plain(pixels()), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- some patches only


@pytest.mark.parametrize(("kind", "at"), OURS)
def test_all_places_are_no_places(kind: str, at: str) -> None:
    encoder, embedded = make(kind, at), embeddings()
    places = torch.arange(NUM_PATCHES).expand(2, -1)
    with torch.no_grad():
        torch.testing.assert_close(
            encode_visible(encoder, embedded, places), tokens_of(encoder, embedded)
        )


@pytest.mark.parametrize(("kind", "at"), OURS)
@pytest.mark.parametrize("num_visible", [1, 5, 11])
def test_patches_that_are_left_out_are_as_if_masked_from_attention(
    kind: str, at: str, num_visible: int
) -> None:
    """The slow way: all tokens enter, and nobody attends to those left out."""
    encoder, embedded = made(kind, at), embeddings()
    scores = torch.rand(2, NUM_PATCHES, generator=torch.Generator().manual_seed(num_visible))
    places = scores.argsort(dim=1)[:, :num_visible]  # of each image its own, in any order
    prefix = encoder.num_prefix_tokens
    is_seen = torch.ones(2, 1, 1, prefix + NUM_PATCHES, dtype=torch.bool)
    is_seen[..., prefix:] = torch.zeros(2, NUM_PATCHES).scatter(1, places, 1.0)[:, None, None] > 0
    tokens = encoder._pos_embed(embedded)
    with torch.no_grad():
        found = encode_visible(encoder, embedded, places)
        for block in encoder.blocks:
            tokens = block(tokens, attn_mask=is_seen.expand(-1, -1, tokens.shape[1], -1))
        tokens = encoder.norm(tokens)
    seen = tokens[:, prefix:].gather(1, places[..., None].expand(-1, -1, WIDTH))
    torch.testing.assert_close(found[:, :prefix], tokens[:, :prefix], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[:, prefix:], seen, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- other grids


@pytest.mark.parametrize(("kind", "at"), OURS)
def test_the_same_grid_changes_nothing(kind: str, at: str) -> None:
    encoder = make(kind, at)
    before = dict(encoder.named_parameters()), positions.tables(encoder)
    positions.resize(encoder, GRID)
    after = dict(encoder.named_parameters())
    assert all(after[name] is before[0][name] for name in before[0])
    assert all(map(torch.equal, positions.tables(encoder), before[1]))


@pytest.mark.parametrize(("kind", "at"), OURS)
def test_an_encoder_takes_another_grid(kind: str, at: str) -> None:
    encoder = make(kind, at)
    for name in positions.parameter_names(encoder):
        encoder.get_parameter(name).requires_grad_(False)
    encoder.set_input_size((10, 6))
    positions.resize(encoder, (5, 3))
    assert encoder.forward_features(torch.zeros(1, 3, 10, 6)).shape == (1, 17, WIDTH)
    assert all(table.shape == (15, WIDTH) for table in positions.tables(encoder))
    names = positions.parameter_names(encoder)
    assert not any(encoder.get_parameter(name).requires_grad for name in names)
    fresh = make(kind, at, img_size=(10, 6))
    fresh.load_state_dict(encoder.state_dict())  # the shapes are those of an encoder made so


@pytest.mark.parametrize("kind", ["learned_1d", "learned_2d"])
@pytest.mark.parametrize("grid", [(6, 8), (2, 2), (3, 5)])
def test_tables_are_interpolated_in_2d_as_timm_does(kind: str, grid: tuple[int, int]) -> None:
    encoder = make(kind, "every_layer")
    before = positions.tables(encoder)
    positions.resize(encoder, grid)
    for old, new in zip(before, positions.tables(encoder), strict=True):
        expected = resample_abs_pos_embed(old[None], list(grid), list(GRID), 0)[0]
        torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-5)


def test_the_fixed_table_is_computed_for_the_new_grid() -> None:
    encoder = make("sincos_2d", "every_layer_shared")
    positions.resize(encoder, (5, 3))
    (table,) = positions.tables(make("sincos_2d", img_size=(10, 6)))
    assert torch.equal(positions.tables(encoder)[0], table)


@pytest.mark.parametrize("grid", [(6, 8), (2, 3), (3, 1)])
def test_offsets_that_rise_evenly_still_do(grid: tuple[int, int]) -> None:
    """The embedding of no offset stays in the middle, and opposite ones stay opposite."""
    offsets = Offsets(GRID, 2)
    steps = [torch.arange(-side + 1.0, side) for side in GRID]
    with torch.no_grad():
        offsets.table.copy_(torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1))
    offsets.resize(grid)
    table = offsets.table.detach()
    assert table.shape == (2 * grid[0] - 1, 2 * grid[1] - 1, 2)
    torch.testing.assert_close(table, -table.flip(0, 1), rtol=1e-5, atol=1e-5)
    assert (table[..., 0].diff(dim=0) >= 0).all()
    assert (table[..., 1].diff(dim=1) >= 0).all()


# ---------------------------------------------------------------- timm's own format


@pytest.mark.parametrize(("kind", "at"), BAKED)
@pytest.mark.parametrize("no_embed_class", [True, False])
def test_a_table_at_the_stem_is_baked(
    kind: str, at: str, no_embed_class: bool, tmp_path: Path
) -> None:
    encoder = make(kind, at, no_embed_class=no_embed_class)
    baked = positions.baked(encoder)
    assert {type(block) for block in baked.blocks} == {Block}
    assert positions.described(baked) == ("learned_1d", "stem")
    torch.testing.assert_close(baked(pixels()), encoder(pixels()), rtol=1e-6, atol=1e-6)
    assert positions.described(encoder) == (kind, at)  # as it was
    cast(Any, baked.pretrained_cfg).update(input_size=(3, 6, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    save_for_hf(baked, str(tmp_path), {}, safe_serialization=True)
    loaded = create(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(loaded(pixels()), encoder(pixels()), rtol=1e-6, atol=1e-6)
    assert torch.equal(positions.tables(loaded)[0], positions.tables(encoder)[0])


@pytest.mark.parametrize("kind", ["none", "learned_1d"])
def test_timms_own_needs_no_baking(kind: str) -> None:
    encoder = make(kind)
    assert positions.baked(encoder) is encoder


@pytest.mark.parametrize(("kind", "at"), [pair for pair in OURS if pair not in BAKED])
def test_what_is_more_than_a_table_at_the_stem_is_not(kind: str, at: str) -> None:
    with pytest.raises(UserError, match=f"encoder.position={kind} .*held by timm's format"):
        positions.baked(make(kind, at))


# ---------------------------------------------------------------- copies, files, graphs


@pytest.mark.parametrize(("kind", "at"), OURS)
def test_copies_are_independent(kind: str, at: str) -> None:
    encoder = make(kind, at)
    copied = ModelEmaV3(encoder, decay=0.5).module
    before = encoder(pixels()).detach()
    assert torch.equal(copied(pixels()), before)
    assert positions.described(cast(VisionTransformer, copied)) == (kind, at)
    with torch.no_grad():
        for module in copied.modules():
            if isinstance(module, positions.Positions):
                for tensor in [*module.parameters(), *module.buffers()]:
                    tensor.add_(torch.randn(tensor.shape))
    assert torch.equal(encoder(pixels()), before)
    assert not torch.allclose(copied(pixels()), before)  # it uses its own


@pytest.mark.parametrize(("kind", "at"), [pair for pair in OURS if pair[0] != "sincos_2d"])
def test_the_average_follows_positions(kind: str, at: str) -> None:
    encoder = make(kind, at)
    average = ModelEmaV3(encoder, decay=0.5)
    name = sorted(positions.parameter_names(encoder))[0]
    before = encoder.get_parameter(name).detach().clone()
    with torch.no_grad():
        encoder.get_parameter(name).add_(1.0)
    average.update(encoder)
    found = cast(VisionTransformer, average.module).get_parameter(name)
    torch.testing.assert_close(found.detach(), before + 0.5)


@pytest.mark.parametrize(("kind", "at"), OURS)
def test_a_file_holds_all_that_is_learned(kind: str, at: str, tmp_path: Path) -> None:
    encoder, other = make(kind, at), make(kind, at, seed=1)
    save_file(encoder.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(encoder(pixels()), other(pixels()))


@pytest.mark.parametrize(("kind", "at"), OURS)
def test_an_encoder_built_without_memory_is_filled_later(kind: str, at: str) -> None:
    encoder = make(kind, at)
    with torch.device("meta"):
        empty = make(kind, at)
    empty.to_empty(device="cpu")
    for module in empty.modules():
        if isinstance(module, positions.Positions):
            module.reset_parameters()
    empty.load_state_dict(encoder.state_dict())
    assert torch.equal(encoder(pixels()), empty(pixels()))


@pytest.mark.parametrize(("kind", "at"), OURS)
def test_timms_other_ways_to_run_it(kind: str, at: str) -> None:
    encoder = make(kind, at)
    features = encoder.forward_features(pixels())
    last, layers = encoder.forward_intermediates(pixels(), output_fmt="NLC")
    torch.testing.assert_close(last, features)
    assert len(layers) == DEPTH
    encoder.set_grad_checkpointing(True)
    torch.testing.assert_close(encoder.train().forward_features(pixels()), features)


@pytest.mark.parametrize(("kind", "at"), OURS)
@pytest.mark.parametrize("is_fused", [True, False])
def test_tokens_keep_their_type_in_low_precision(kind: str, at: str, is_fused: bool) -> None:
    encoder = make(kind, at)
    x = encoder._pos_embed(embeddings()).detach()
    block_of(encoder).attn.fused_attn = is_fused
    expected = block_of(encoder)(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        found = block_of(encoder)(x.bfloat16())
        assert block_of(encoder)(x).dtype == torch.float32
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.15)


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        ("relative", "stem"),
        ("learned_1d", "every_layer"),
        ("learned_2d", "every_layer_shared"),
        ("sincos_2d", "stem"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_an_exported_graph_holds_positions(kind: str, at: str) -> None:
    encoder = make(kind, at, depth=2)
    graph = torch.export.export(encoder, (pixels(),))
    torch.testing.assert_close(graph.module()(pixels()), encoder(pixels()), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "at"), [("relative", "stem"), ("learned_2d", "every_layer_shared")]
)
def test_a_compiled_encoder_is_the_same(kind: str, at: str) -> None:
    encoder = make(kind, at, depth=1)
    compiled: Any = torch.compile(encoder, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixels()), encoder(pixels()), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- what does not go


@pytest.mark.parametrize(
    ("kind", "at", "message"),
    [
        ("learned_3d", "stem", "encoder.position=learned_3d is not one of none, learned_1d,"),
        ("learned_1d", "top", "encoder.position_at=top is not one of stem, every_layer,"),
        ("none", "every_layer", "encoder.position_at=every_layer: there is nothing to add"),
        ("relative", "every_layer", "encoder.position=relative is in the attention of every"),
        ("relative", "every_layer_shared", "encoder.position_at=every_layer_shared: .*leave the"),
    ],
)
def test_a_placement_that_there_is_not(kind: str, at: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(kind, at)


@pytest.mark.parametrize(
    ("kind", "args", "message"),
    [
        ("learned_2d", {"pre_norm": True}, "this encoder has a norm there"),
        ("sincos_2d", {"embed_dim": 18}, "encoder.embed_dim=18 is not a multiple of 4.* try 16"),
        ("learned_2d", {"embed_dim": 9, "num_heads": 3}, "encoder.embed_dim=9 has no two halves"),
        ("learned_2d", {"pos_drop_rate": 0.1}, "leave out encoder.args.pos_drop_rate"),
        ("relative", {"dynamic_img_size": True}, "leave out encoder.args.dynamic_img_size"),
        ("relative", {"attn_layer": "diff"}, "plain Attention, and this .* has DiffAttention"),
    ],
)
def test_an_encoder_that_they_do_not_fit(kind: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(kind, **args)


def test_blocks_that_are_not_timms_plain_ones() -> None:
    encoder = create("vit_small_patch16_36x1_224", depth=1, pos_embed="none")
    positions.install(encoder, "relative", "stem")  # plain ones, by another name
    parallel = create("vit_small_patch16_18x2_224", depth=1, pos_embed="none")
    with pytest.raises(UserError, match=r"learned_2d needs .* ParallelThingsBlock"):
        positions.install(parallel, "learned_2d", "stem")
