"""Encoders that exist already: the timm model, and its weights or none; what does not fit is said.

Sources are our runs, folders that timm or transformers wrote, and timm's own pretrained models.
"""

import logging
from pathlib import Path
from typing import Any, cast

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from data.disks import explain, one_line
from data.settings import UserError, require
from pretrain.encoder.config import DEFAULT_NAME
from pretrain.encoder.extensions import has_additions, rebuild
from pretrain.encoder.huggingface import Renamed, from_hf, is_hf_folder, read_hf_settings, read_json
from pretrain.encoder.positions import unbaked_state
from pretrain.encoder.timm_model import BARE, check_name, create_model, plain, transformer_names

logger = logging.getLogger(__name__)

_HUB = "hf-hub:"  # before a name there, whose kind is in its files


def load_pretrained(
    init: str, args: dict[str, Any], channels: int | None = None
) -> VisionTransformer:
    """Load what `encoder.init` names, as it was saved.

    Args:
        init: A run, a folder that timm or transformers wrote, or a timm name.
        args: Further arguments of timm's model.
        channels: Of the images; timm fits its own pretrained models to them.

    Raises:
        UserError: There is none, it is of another kind, or weights are missing; they are named.
    """
    said = f"encoder.init={init}"
    folder = _find_folder(init, said)
    if folder is None:
        return _create_named(init, args, channels, said, pretrained=True)
    encoder = _create_described(folder, args, said)
    _fill(encoder, said, _renamed(encoder, _read_weights(said, folder), folder, said))
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
    said = f"encoder.like={like}"
    folder = _find_folder(like, said)
    _check_alike(args, folder, said)
    if folder is None:
        if not like.startswith(_HUB):
            check_name(like, transformer_names(), "VisionTransformer", said)
        return _create_named(like, args | BARE, channels, said)
    return _create_described(folder, args | BARE, said)


def _check_alike(args: dict[str, Any], folder: Path | None, said: str) -> None:
    """Refuse arguments by which an encoder would not begin as another did."""
    saved = {} if folder is None else read_json(folder / "config.json").get("model_args", {})
    for key, value in args.items():
        require(
            "drop" in key or (key in saved and saved[key] == value),
            f"encoder.args.{key}={value} with {said}, which says what the encoder is; leave the "
            "argument out, or give encoder.name and all sizes in place of encoder.like",
        )


def _create_named(
    name: str, args: dict[str, Any], channels: int | None, said: str, *, pretrained: bool = False
) -> VisionTransformer:
    fitted = args if channels is None else args | {"in_chans": channels}
    return plain(create_model(name, fitted, pretrained=pretrained, said=said), name, said)


def _create_described(folder: Path, args: dict[str, Any], said: str) -> VisionTransformer:
    """Create the encoder that a folder's config.json describes, its weights at random."""
    if is_hf_folder(folder):
        return _create_hf(folder, args, said)
    if has_additions(folder):
        return rebuild(folder, args)
    return plain(create_model(f"local-dir:{folder}", args, said=said), str(folder), said)


def encoder_folder(path: str | Path) -> Path | None:
    """Return the folder of a run's encoder, or of an encoder by itself; None if there is none."""
    folders = (Path(path, "encoder"), Path(path))
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def _find_folder(path: str, said: str) -> Path | None:
    """Return the folder that holds an encoder, or None for what timm finds by its name."""
    folder = encoder_folder(path)
    if folder is not None:
        return folder
    is_name = timm.is_model(path.split(".")[0]) or path.startswith(_HUB)
    require(
        is_name and not Path(path).exists(),
        f"{said} is no run or folder with an encoder, and no timm name; "
        "a run has its first encoder after its first checkpoint",
    )
    return None


def _create_hf(folder: Path, args: dict[str, Any], said: str) -> VisionTransformer:
    """Create timm's VisionTransformer of a ViT that transformers wrote, without a head."""
    settings = read_hf_settings(folder, said)
    encoder = plain(create_model(DEFAULT_NAME, settings.arguments | args | BARE), DEFAULT_NAME)
    size = (encoder.in_chans, *settings.arguments["img_size"])
    cast(dict[str, Any], encoder.pretrained_cfg).update(settings.data, input_size=size)
    for note in settings.notes:
        logger.info("%s: %s", said, note)
    return encoder


def _renamed(
    encoder: VisionTransformer, tensors: dict[str, Tensor], folder: Path, said: str
) -> Renamed:
    """Give a folder's weights the encoder's own names."""
    own = encoder.state_dict()
    if is_hf_folder(folder):
        return from_hf(tensors, own)
    try:
        tensors = unbaked_state(encoder, tensors)
    except UserError as error:
        raise UserError(f"{said}: {error}") from error
    state = {name: tensors[name] for name in own if name in tensors}
    missing, unused = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    return Renamed(state, sorted(missing), sorted(unused))


def _read_weights(said: str, folder: Path) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    require(
        path.is_file(),
        f"{said}: the encoder in {folder} has no {path.name}; pickled weights are "
        "not read, since reading them can run code",
    )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{said}: {path} cannot be read: {explain(error)}") from error


def _fill(encoder: VisionTransformer, said: str, weights: Renamed) -> None:
    """Put weights into an encoder; what it needs has to be there, and what else is there is said.

    Raises:
        UserError: One is missing, or of another shape.
    """
    missing, unused = ", ".join(weights.missing), ", ".join(weights.unused)
    require(
        not missing,
        f"{said} lacks {missing}; nothing is left at random: correct encoder.args, "
        "or start from another encoder",
    )
    if unused:
        logger.info("%s: not used: %s", said, unused)
    try:
        encoder.load_state_dict(weights.state)
    except RuntimeError as error:
        raise UserError(f"{said} cannot be loaded: {one_line(error)}") from error


def make_bare(encoder: VisionTransformer, said: str) -> None:
    """Drop the head, pool by patch average, and say what is not used any more."""
    if not isinstance(encoder.fc_norm, nn.Identity):  # timm's place for it where it pools so
        encoder.norm, encoder.fc_norm = encoder.fc_norm, nn.Identity()
        logger.info("%s: fc_norm becomes norm, before pooling and not after", said)
    if encoder.pool_include_prefix:
        encoder.pool_include_prefix = False
        cast(Any, encoder)._model_args["pool_include_prefix"] = False  # what save_for_hf writes
    before = encoder.state_dict().keys()
    encoder.reset_classifier(0, "avg")
    cast(dict[str, Any], encoder.pretrained_cfg).pop("label_names", None)
    if dropped := ", ".join(sorted(before - encoder.state_dict().keys())):
        logger.info("%s: not used: %s", said, dropped)
