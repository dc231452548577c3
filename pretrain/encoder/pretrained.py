"""Encoders that exist already: the timm model, and its weights or none; what does not fit is said.

Sources are our runs, folders that timm or transformers wrote, and timm's own pretrained models.
"""

import logging
from pathlib import Path
from typing import Any, cast

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from data.disks import one_line
from data.settings import UserError, is_out_of_memory, require
from pretrain.encoder.config import DEFAULT_NAME
from pretrain.encoder.extensions import rebuild, set_norm_eps
from pretrain.encoder.huggingface import Renamed, from_hf, is_vilt, of_vilt, read_hf_settings
from pretrain.encoder.positions import unbaked_state
from pretrain.encoder.saved import Saved, find_saved
from pretrain.encoder.timm_internals import update_model_args
from pretrain.encoder.timm_model import BARE, check_name, create_model, plain, transformer_names

logger = logging.getLogger(__name__)

_HUB = "hf-hub:"  # before a name there, whose kind is in its files


def load_pretrained(
    init: str, args: dict[str, Any], channels: int | None = None, source: str | None = None
) -> VisionTransformer:
    """Load what `encoder.init` names, as it was saved.

    Args:
        init: A run, a folder that timm or transformers wrote, or a timm name.
        args: Further arguments of timm's model.
        channels: Of the images; timm fits its own pretrained models to them.
        source: What messages call it; default: `encoder.init` and its value.

    Raises:
        UserError: There is none, it is of another kind, or weights are missing; they are named.
    """
    source = source or f"encoder.init={init}"
    saved = _find(init, source)
    if saved is None:
        return _create_named(init, args, channels, source, pretrained=True)
    encoder = _create_described(saved, args, source)
    _fill(encoder, source, _renamed(encoder, saved, source))
    return encoder


def begin_like(like: str, args: dict[str, Any], channels: int | None = None) -> VisionTransformer:
    """Create what `encoder.like` names, its weights drawn from torch's generator, without a head.

    That is what a run's encoder was before its first step, if the generator is as it was then.

    Args:
        like: A run, a folder that timm or transformers wrote, or a timm name.
        args: Rates of dropout; all else is as it was.
        channels: Of the images; a timm name is fitted to them.

    Raises:
        UserError: There is none, it is of another kind, or an argument asks for another encoder.
    """
    source = f"encoder.like={like}"
    saved = _find(like, source)
    _check_alike(args, saved, source)
    if saved is None:
        if not like.startswith(_HUB):
            check_name(like, transformer_names(), "VisionTransformer", source)
        return _create_named(like, args | BARE, channels, source)
    return _create_described(saved, args | BARE, source)


def _check_alike(args: dict[str, Any], saved: Saved | None, source: str) -> None:
    """Refuse arguments by which an encoder would not begin as another did."""
    own = {} if saved is None else saved.model_args
    for key, value in args.items():
        require(
            "drop" in key or (key in own and own[key] == value),
            f"encoder.args.{key}={value} with {source}, which says what the encoder is; leave the "
            "argument out, or give encoder.name and all sizes in place of encoder.like",
        )


def _create_named(
    name: str, args: dict[str, Any], channels: int | None, source: str, *, pretrained: bool = False
) -> VisionTransformer:
    fitted = args if channels is None else args | {"in_chans": channels}
    return plain(create_model(name, fitted, pretrained=pretrained, source=source), name, source)


def _create_described(saved: Saved, args: dict[str, Any], source: str) -> VisionTransformer:
    """Create the encoder that a folder's config.json describes, its weights at random."""
    if saved.is_transformers:
        return _create_hf(saved, args, source)
    if saved.extensions is not None:
        encoder = rebuild(saved, args)
    else:
        model = create_model(f"local-dir:{saved.folder}", args, source=source)
        encoder = plain(model, str(saved.folder), source)
    set_norm_eps(encoder, saved.norm_eps)
    return encoder


def _find(path: str, source: str) -> Saved | None:
    """Return the saved encoder, or None for what timm finds by its name."""
    saved = find_saved(path)
    if saved is not None:
        return saved
    is_name = timm.is_model(path.split(".")[0]) or path.startswith(_HUB)
    require(
        is_name and not Path(path).exists(),
        f"{source} is no run or folder with an encoder, and no timm name; "
        "a run has its first encoder after its first checkpoint",
    )
    return None


def _create_hf(saved: Saved, args: dict[str, Any], source: str) -> VisionTransformer:
    """Create timm's VisionTransformer of a ViT that transformers wrote, without a head."""
    settings = read_hf_settings(saved, source)
    encoder = plain(create_model(DEFAULT_NAME, settings.arguments | args | BARE), DEFAULT_NAME)
    set_norm_eps(encoder, settings.eps)
    size = (encoder.in_chans, *settings.arguments["img_size"])
    cast(dict[str, Any], encoder.pretrained_cfg).update(settings.data, input_size=size)
    for note in settings.notes:
        logger.info("%s: %s", source, note)
    return encoder


def _renamed(encoder: VisionTransformer, saved: Saved, source: str) -> Renamed:
    """Read a folder's weights under the encoder's own names."""
    own, tensors = encoder.state_dict(), saved.read_weights(source)
    if saved.is_transformers:
        return of_vilt(tensors, own) if is_vilt(saved) else from_hf(tensors, own)
    try:
        tensors = unbaked_state(encoder, tensors)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    state = {name: tensors[name] for name in own if name in tensors}
    missing, unused = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    return Renamed(state, sorted(missing), sorted(unused))


def _fill(encoder: VisionTransformer, source: str, weights: Renamed) -> None:
    """Put weights into an encoder; what it needs has to be there, and what else is there is said.

    Raises:
        UserError: One is missing, or of another shape.
    """
    missing, unused = ", ".join(weights.missing), ", ".join(weights.unused)
    require(
        not missing,
        f"{source} lacks {missing}; nothing is left at random: correct encoder.args, "
        "or start from another encoder",
    )
    if unused:
        logger.info("%s: not used: %s", source, unused)
    try:
        encoder.load_state_dict(weights.state)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{source} cannot be loaded: {one_line(error)}") from error


def make_bare(encoder: VisionTransformer, source: str) -> None:
    """Drop the head, pool by patch average, and say what is not used any more."""
    if not isinstance(encoder.fc_norm, nn.Identity):  # timm's place for it where it pools so
        encoder.norm, encoder.fc_norm = encoder.fc_norm, nn.Identity()
        logger.info("%s: fc_norm becomes norm, before pooling and not after", source)
    if encoder.pool_include_prefix:
        encoder.pool_include_prefix = False
        update_model_args(encoder, pool_include_prefix=False)  # what is saved as config.json
    before = encoder.state_dict().keys()
    encoder.reset_classifier(0, "avg")
    cast(dict[str, Any], encoder.pretrained_cfg).pop("label_names", None)
    if dropped := ", ".join(sorted(before - encoder.state_dict().keys())):
        logger.info("%s: not used: %s", source, dropped)
