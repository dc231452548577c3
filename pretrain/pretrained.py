"""Encoders that exist already: the timm model and its weights; what does not fit is said.

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
from pretrain.additions import has_additions, rebuild
from pretrain.hf_vit import Renamed, from_hf, is_hf_folder, read_hf_settings
from pretrain.timm_model import BARE, DEFAULT_NAME, create_model, plain

logger = logging.getLogger(__name__)


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
    folder = _find_folder(init)
    if folder is not None and is_hf_folder(folder):
        return _load_from_hf(folder, init, args)
    if folder is None:
        fitted = args if channels is None else args | {"in_chans": channels}
        said = f"encoder.init={init}"
        return plain(create_model(init, fitted, pretrained=True, said=said), init)
    if has_additions(folder):
        encoder = rebuild(folder, args)
    else:
        encoder = plain(create_model(f"local-dir:{folder}", args), init)
    own, tensors = encoder.state_dict(), _read_weights(init, folder)
    missing, unused = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    state = {name: tensors[name] for name in own if name in tensors}
    _fill(encoder, init, Renamed(state, sorted(missing), sorted(unused)))
    return encoder


def encoder_folder(path: str | Path) -> Path | None:
    """Return the folder of a run's encoder, or of an encoder by itself; None if there is none."""
    folders = (Path(path, "encoder"), Path(path))
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def _find_folder(init: str) -> Path | None:
    """Return the folder that holds an encoder, or None for what timm finds by its name."""
    folder = encoder_folder(init)
    if folder is not None:
        return folder
    is_name = timm.is_model(init.split(".")[0]) or init.startswith("hf-hub:")
    require(
        is_name and not Path(init).exists(),
        f"encoder.init={init} is no run or folder with an encoder, and no timm name; "
        "a run has its first encoder after its first checkpoint",
    )
    return None


def _load_from_hf(folder: Path, init: str, args: dict[str, Any]) -> VisionTransformer:
    """Build timm's VisionTransformer of a ViT that transformers wrote; its head is left out."""
    settings = read_hf_settings(folder)
    encoder = plain(create_model(DEFAULT_NAME, settings.arguments | args | BARE), DEFAULT_NAME)
    size = (encoder.in_chans, *settings.arguments["img_size"])
    cast(dict[str, Any], encoder.pretrained_cfg).update(settings.data, input_size=size)
    for note in settings.notes:
        logger.info("encoder.init=%s: %s", init, note)
    tensors = _read_weights(init, folder)
    _fill(encoder, init, from_hf(tensors, encoder.state_dict()))
    return encoder


def _read_weights(init: str, folder: Path) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    require(
        path.is_file(),
        f"encoder.init={init}: the encoder in {folder} has no {path.name}; pickled weights are "
        "not read, since reading them can run code",
    )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"encoder.init={init}: {path} cannot be read: {explain(error)}") from error


def _fill(encoder: VisionTransformer, init: str, weights: Renamed) -> None:
    """Put weights into an encoder; what it needs has to be there, and what else is there is said.

    Raises:
        UserError: One is missing, or of another shape.
    """
    missing, unused = ", ".join(weights.missing), ", ".join(weights.unused)
    require(
        not missing,
        f"encoder.init={init} lacks {missing}; nothing is left at random: correct encoder.args, "
        "or start from another encoder",
    )
    if unused:
        logger.info("encoder.init=%s: not used: %s", init, unused)
    try:
        encoder.load_state_dict(weights.state)
    except RuntimeError as error:
        raise UserError(f"encoder.init={init} cannot be loaded: {one_line(error)}") from error


def make_bare(encoder: VisionTransformer, init: str) -> None:
    """Drop the head, pool by patch average, and say what is not used any more."""
    if not isinstance(encoder.fc_norm, nn.Identity):  # timm's place for it where it pools so
        encoder.norm, encoder.fc_norm = encoder.fc_norm, nn.Identity()
        logger.info("encoder.init=%s: fc_norm becomes norm, before pooling and not after", init)
    if encoder.pool_include_prefix:
        encoder.pool_include_prefix = False
        cast(Any, encoder)._model_args["pool_include_prefix"] = False  # what save_for_hf writes
    before = encoder.state_dict().keys()
    encoder.reset_classifier(0, "avg")
    cast(dict[str, Any], encoder.pretrained_cfg).pop("label_names", None)
    if dropped := ", ".join(sorted(before - encoder.state_dict().keys())):
        logger.info("encoder.init=%s: not used: %s", init, dropped)
