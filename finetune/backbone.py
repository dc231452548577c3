"""The model that is fine-tuned: our encoder or, as a baseline, any image model of timm."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from data.disks import first_line
from data.settings import UserError, is_out_of_memory, require
from pretrain.encoder import EncoderConfig, load_encoder, make_encoder
from pretrain.encoder.config import DEFAULT_NAME
from pretrain.encoder.encoder import describe_images
from pretrain.encoder.facts import check_channels, image_size, num_channels
from pretrain.encoder.saved import find_saved
from pretrain.encoder.timm_model import check_name, create_model, transformer_names
from pretrain.encoder.tokens import Normalise
from pretrain.machine.operations import count_flops

logger = logging.getLogger(__name__)


def check_start(config: EncoderConfig) -> EncoderConfig:
    """Return an encoder's keys with what it starts from filled in.

    A name alone means random weights, which is said.

    Raises:
        UserError: None of `encoder.init`, `encoder.like` and `encoder.name` is given.
    """
    require(
        config.init is not None or config.like is not None or config.name is not None,
        "encoder.init is missing; give encoder.init=RUN to start from its weights, "
        "encoder.like=RUN for random weights in the same encoder, or encoder.init=none with "
        f"encoder.name for random weights in any other ({DEFAULT_NAME} without a name)",
    )
    if config.init is None and config.like is None:
        logger.info("encoder.name=%s without encoder.init: random weights", config.name)
    return replace(config, init=config.init or "none")


def make_backbone(
    config: EncoderConfig,
    size: tuple[int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    channels: int | None = None,
) -> Any:
    """Build a timm model without a head, for images of one size.

    Args:
        config: The name alone of any timm model, or what one was saved in, is a baseline; the rest
            is an encoder.
        size: (H, W); None keeps the model's own.
        mean: Channel means of pixels in 0..1; None keeps the model's own.
        std: Channel deviations, likewise.
        channels: Of the images; None keeps the model's own.

    Raises:
        UserError: The name or an argument is unknown, or sizes do not fit.
    """
    refuse_masking(config)
    name, own = config.name or DEFAULT_NAME, _find_other(config)
    if own is None and (config.source is not None or _is_encoder(name)):
        return make_encoder(config, size, mean, std, channels)
    what = f"encoder.name={name}" if own is None else f"encoder.init={config.init}"
    if own is None:
        check_name(name, timm.list_models(), "model")
    require(
        own is None or config.name is None,
        f"encoder.name={config.name} with {what}, which says what the model is; leave it out",
    )
    _refuse_additions(config, what)
    arguments = config.overrides | {"num_classes": 0}
    if channels is not None and (own is None or own == config.init):  # timm fits its own weights
        arguments |= {"in_chans": channels}
    if own is None and timm.get_pretrained_cfg_value(name, "fixed_input_size"):
        arguments |= {"img_size": size}
    model = create_model(own or name, arguments, pretrained=own is not None, source=what)
    check_channels(model, what, channels)
    describe_images(model, size or image_size(model), mean, std)
    _check_size(model, what)
    return model


def _find_other(config: EncoderConfig) -> str | None:
    """Return timm's name of the weights that `encoder.init` names if they are of another model.

    None of a VisionTransformer, and where nothing is named: `make_encoder` loads, or says what is
    wrong.
    """
    init = config.init
    if init is None or init == "none":
        return None
    saved = find_saved(init)
    if saved is None:
        name = init.split(".")[0]
        return init if timm.is_model(name) and not _is_encoder(name) else None
    is_own = saved.extensions is not None or saved.is_transformers
    if is_own or not timm.is_model(saved.architecture) or _is_encoder(saved.architecture):
        return None
    return f"local-dir:{saved.folder}"


def refuse_masking(config: EncoderConfig) -> None:
    """Raise `UserError` for a key that only pretraining follows."""
    require(
        config.sees_masked,
        "encoder.sees_masked=false is for pretraining, and no patch is masked here; leave it out",
    )


def _refuse_additions(config: EncoderConfig, what: str) -> None:
    own = EncoderConfig()
    for key in ("position", "position_at", "patch_embed", "stem", "stem_stride"):
        value = getattr(config, key)
        require(
            value == getattr(own, key),
            f"encoder.{key}={value} needs a VisionTransformer, not {what}; leave it out",
        )


def _is_encoder(name: str) -> bool:
    return name.split(".")[0] in transformer_names()


def _check_size(model: Any, what: str) -> None:
    """Raise `UserError` where a model cannot take its images; timm says so in its own words."""
    size = image_size(model)
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, num_channels(model), *size))
    except (RuntimeError, AssertionError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        reason = first_line(error)
        raise UserError(
            f"{what} cannot take data.image_size={list(size)}: {reason}; try a multiple of 32"
        ) from error


def load_as_saved(path: str | Path) -> Any:
    """Load a model with its head and pooling.

    Args:
        path: A run's folder, or a folder in timm's format.

    Raises:
        UserError: There is no model.
    """
    saved = find_saved(path)
    if saved is None or saved.is_transformers:
        raise UserError(f"{path} is no run with a checkpoint and no folder in timm's format")
    if saved.extensions is not None or _is_encoder(saved.architecture):
        return load_encoder(path, keep_head=True)
    require(
        (saved.folder / "model.safetensors").is_file(),
        f"{saved.folder} has no model.safetensors; pickled weights are not read",
    )
    return create_model(f"local-dir:{saved.folder}", {}, pretrained=True, source=str(path))


def is_transformer(model: Any) -> bool:
    """Tell whether a model has blocks and patch tokens."""
    return isinstance(model, VisionTransformer)


@torch.no_grad()
def flops_per_image(model: Any) -> int:
    """Count the floating-point operations of a forward pass, a multiply-add as two."""
    image = torch.zeros((1, num_channels(model), *image_size(model)), dtype=torch.uint8)
    device = next(model.parameters()).device
    normalised = Normalise(model).to(device)(image.to(device))
    return count_flops(lambda: model.eval()(normalised))
