"""Where a patch is: position embeddings of each kind, at each place, for timm's VisionTransformer.

timm itself adds a table of N embeddings at the stem (`learned_1d`), or none. All else is here. A
block that needs positions becomes a `PositionedBlock`, which takes over the parts of timm's, so
that their parameters keep their names. A table is added to the patch tokens at a block's input, on
the residual stream; prefix tokens get none. At the first block's that is at the stem.

Source: Dosovitskiy et al. 2021, Table 8 and appendix D.4.
"""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from timm.layers import Attention, get_device_dtype
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from data.settings import require
from pretrain.encoder.config import check_position
from pretrain.encoder.position_blocks import PositionedBlock, RelativeBlock, plain_block
from pretrain.encoder.position_tables import (
    Grid,
    Learned1D,
    Learned2D,
    Offsets,
    Positions,
    SinCos2D,
)
from pretrain.encoder.timm_internals import update_model_args

_TABLE = "pos_embed_table."  # before its parameters' names; timm's layer decay knows it so


class Placement(NamedTuple):
    """Which positions an encoder has, and where; `encoder.position` where they are ours."""

    kind: str
    at: str


_TABLES: dict[str, type[Learned1D | Learned2D | SinCos2D]] = {
    "learned_1d": Learned1D,
    "learned_2d": Learned2D,
    "sincos_2d": SinCos2D,
}


def is_timms(kind: str, at: str) -> bool:
    """Whether timm's own VisionTransformer holds such positions."""
    return (kind, at) == ("learned_1d", "stem") or kind == "none"


def install(encoder: VisionTransformer, kind: str, at: str) -> None:
    """Give an encoder positions, drawn from torch's generator; its other weights stay.

    Args:
        encoder: As timm created it: without `pos_embed`, unless the positions are timm's own.
        kind: One of `POSITIONS`.
        at: One of `POSITION_PLACES`. The fixed `sincos_2d` is one table for all layers in any case.

    Raises:
        UserError: There are no such positions, or they do not fit the encoder.
    """
    check_position(kind, at)
    assert (encoder.pos_embed is None) == ((kind, at) != ("learned_1d", "stem"))
    if is_timms(kind, at):
        return
    _check_fits(encoder, kind)
    if kind == "relative":
        _install_relative(encoder)
    else:
        _install_tables(encoder, kind, at)
    cast(Any, encoder).position = Placement(kind, at)


def _install_tables(encoder: VisionTransformer, kind: str, at: str) -> None:
    arguments = get_device_dtype(encoder)
    blocks, prefix = encoder.blocks, encoder.num_prefix_tokens

    def make() -> nn.Module:
        return _TABLES[kind](encoder.patch_embed.grid_size, encoder.embed_dim, **arguments)

    if at == "every_layer" and kind != "sincos_2d":
        for i, block in enumerate(cast(Any, blocks)):
            blocks[i] = PositionedBlock(block, make(), prefix, is_own=True)
        return
    # by this name timm's layer decay knows it as a part of the stem
    cast(Any, encoder).pos_embed_table = table = make()
    for i in range(1 if at == "stem" else len(blocks)):
        blocks[i] = PositionedBlock(cast(Block, blocks[i]), table, prefix, is_own=False)


def _install_relative(encoder: VisionTransformer) -> None:
    arguments = get_device_dtype(encoder)
    for i, block in enumerate(cast(Any, encoder.blocks)):
        offsets = Offsets(encoder.patch_embed.grid_size, block.attn.head_dim, **arguments)
        encoder.blocks[i] = RelativeBlock(block, offsets, encoder.num_prefix_tokens)


def _check_fits(encoder: VisionTransformer, kind: str) -> None:
    """Raise `UserError` for an encoder in which positions of ours would not be what they say."""
    blocks = cast(Any, encoder.blocks)
    remedy = "take encoder.position=learned_1d at the stem, or another encoder.name"
    what = f"encoder.position={kind}"
    require(
        all(type(block) is Block for block in blocks),
        f"{what} needs timm's plain Block, and this encoder has {type(blocks[0]).__name__}; "
        f"{remedy}",
    )
    require(
        kind != "relative" or all(type(block.attn) is Attention for block in blocks),
        f"{what} needs timm's plain Attention, and this encoder has "
        f"{type(blocks[0].attn).__name__}; {remedy}",
    )
    require(
        kind == "relative" or isinstance(encoder.norm_pre, nn.Identity),
        f"{what} is added in front of the first block, and this encoder has a norm there "
        f"(pre_norm); {remedy}",
    )
    require(
        not encoder.dynamic_img_size,
        f"{what} is for one image size; leave out encoder.args.dynamic_img_size",
    )
    require(
        encoder.pos_drop.p == 0,
        f"{what} is added without dropout; leave out encoder.args.pos_drop_rate",
    )


def described(encoder: VisionTransformer) -> Placement:
    """Return which positions an encoder has, and where."""
    position = getattr(encoder, "position", None)
    if isinstance(position, Placement):
        return position
    return Placement(
        "none" if getattr(encoder, "pos_embed", None) is None else "learned_1d", "stem"
    )


def resize(encoder: VisionTransformer, grid: Grid) -> None:
    """Interpolate the positions to (rows, columns) in 2-D; timm's own are `set_input_size`'s."""
    for module in encoder.modules():
        if isinstance(module, Positions):
            module.resize(grid)


def parameter_names(encoder: VisionTransformer) -> set[str]:
    """Return the names of the encoder's parameters that are positions of ours."""
    return {
        f"{prefix}.{name}"
        for prefix, module in encoder.named_modules()
        if isinstance(module, Positions)
        for name, _ in module.named_parameters()
    }


def tables(encoder: VisionTransformer) -> list[Tensor]:
    """Return what is added to patch tokens: float32 (N, D), detached, from the stem upwards.

    A table that several layers share is there once. There is none for `none` and `relative`.
    """
    if encoder.pos_embed is not None:
        tables_found: list[Any] = [encoder.pos_embed[0, -encoder.patch_embed.num_patches :]]
    else:
        modules = (m for m in encoder.modules() if isinstance(m, Positions))
        tables_found = [module() for module in modules if not isinstance(module, Offsets)]
    return [table.detach().float() for table in tables_found]


def is_bakeable(kind: str, at: str) -> bool:
    """Whether timm's `pos_embed` can hold such positions: a table of ours at the stem."""
    return kind in _TABLES and at == "stem" and not is_timms(kind, at)


def baked(encoder: VisionTransformer) -> VisionTransformer:
    """Return a copy that is timm's own, with the table as `pos_embed`; the outputs are equal.

    Its rows for prefix tokens are zero. An encoder whose positions are timm's is returned itself.

    Raises:
        UserError: The positions are more than a table at the stem.
    """
    kind, at = described(encoder)
    if is_timms(kind, at):
        return encoder
    where = "" if at == "stem" else f" with encoder.position_at={at}"
    require(
        is_bakeable(kind, at),
        f"encoder.position={kind}{where} cannot be held by timm's format, which has one table at "
        "the stem; keep this project's own, or train with learned_1d, learned_2d or sincos_2d at "
        "the stem",
    )
    plain: Any = copy.deepcopy(encoder)
    plain.blocks[0] = plain_block(plain.blocks[0])
    rows = _timm_rows(plain)
    del plain.pos_embed_table, plain.position
    plain.pos_embed = nn.Parameter(rows, requires_grad=kind != "sincos_2d")
    update_model_args(plain, pos_embed="learn")
    return plain


def _timm_rows(encoder: Any) -> Tensor:
    """Return the table at the stem as timm's `pos_embed`: (1, N or T, D), zero for prefixes."""
    num_prefix = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
    return F.pad(encoder.pos_embed_table().detach(), (0, 0, num_prefix, 0))[None].clone()


def baked_state(encoder: VisionTransformer) -> dict[str, Tensor]:
    """Return the weights under the names of `baked`, without a copy of the encoder."""
    state = encoder.state_dict()
    if not is_bakeable(*described(encoder)):
        return state
    kept = {name: value for name, value in state.items() if not name.startswith(_TABLE)}
    return kept | {"pos_embed": _timm_rows(encoder)}


def unbaked_state(encoder: VisionTransformer, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `baked_state`: take weights apart again for an encoder that has a table of ours.

    Raises:
        UserError: Its `pos_embed` is none that this kind of positions can be.
    """
    kind, at = described(encoder)
    if "pos_embed" not in state or not is_bakeable(kind, at):
        return dict(state)
    own: Positions = cast(Any, encoder).pos_embed_table
    rows = state["pos_embed"][0, -own().shape[0] :]
    parts = own.taken_apart(rows)
    require(
        torch.allclose(functional_call(own, parts), rows.to(own().dtype), atol=1e-3),
        f"its pos_embed was changed, and is none of encoder.position={kind}, which its config.json "
        'names; delete "additions" there to load it as learned_1d',
    )
    kept = {name: value for name, value in state.items() if name != "pos_embed"}
    return kept | {f"{_TABLE}{name}": part for name, part in parts.items()}
