"""What is fine-tuned: our encoder or, as a baseline, any image model of timm."""

import difflib
import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models.vision_transformer import VisionTransformer
from torch.utils.flop_counter import FlopCounterMode

from data.settings import UserError, require
from pretrain.encoder import (
    DEFAULT_NAME,
    EncoderConfig,
    Normalise,
    check_channels,
    describe_images,
    encoder_folder,
    image_size,
    load_encoder,
    make_encoder,
)
from pretrain.hf_vit import is_hf_folder


def make_backbone(
    config: EncoderConfig,
    size: tuple[int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Any:
    """Build a timm model without a head, for images of one size.

    Args:
        config: `init=none` with the name of any timm model is a baseline; the rest is an encoder.
        size: (H, W); None keeps the model's own.
        mean: Channel means of pixels in 0..1; None keeps the model's own.
        std: Channel deviations, likewise.

    Raises:
        UserError: The name or an argument is unknown, or sizes do not fit.
    """
    name = config.name or DEFAULT_NAME
    if config.init != "none" or _is_plain_transformer(name):
        return make_encoder(config, size, mean, std)
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean {near[0]}?" if near else "see timm.list_models()"
        raise UserError(f"encoder.name={name} is no model that timm knows; {hint}")
    arguments: dict[str, Any] = config.overrides | {"num_classes": 0}
    if name.split(".")[0] in timm.list_models(module="vision_transformer_hybrid"):
        arguments |= {"global_pool": "avg", "fc_norm": False}  # as in our encoders
    if timm.get_pretrained_cfg_value(name, "fixed_input_size"):
        arguments |= {"img_size": size}
    try:
        model: Any = timm.create_model(name, pretrained=False, **arguments)
    except (TypeError, AssertionError, ValueError, LookupError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"encoder.name={name} with {arguments}: timm says: {reason}") from error
    check_channels(model, f"encoder.name={name}")
    describe_images(model, size or image_size(model), mean, std)
    _check_size(model, name)
    return model


def _is_plain_transformer(name: str) -> bool:
    return name.split(".")[0] in timm.list_models(module="vision_transformer")


def _check_size(model: Any, name: str) -> None:
    """Raise `UserError` where a model cannot take its images; timm says so in its own words."""
    size = image_size(model)
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, *size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"encoder.name={name} cannot take data.image_size={list(size)}: {reason}; "
            "try a multiple of 32"
        ) from error


def load_as_saved(path: str | Path) -> Any:
    """Load a model with its head and pooling.

    Args:
        path: A run's folder, or a folder in timm's format.

    Raises:
        UserError: There is no model.
    """
    folder = encoder_folder(path)
    if folder is None or is_hf_folder(folder):
        raise UserError(f"{path} is no run with a checkpoint and no folder in timm's format")
    architecture = json.loads((folder / "config.json").read_text()).get("architecture", "")
    if _is_plain_transformer(architecture):
        return load_encoder(path, keep_head=True)
    require(
        (folder / "model.safetensors").is_file(),
        f"{folder} has no model.safetensors; pickled weights are not read",
    )
    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} cannot be loaded: {reason}; copy it anew") from error


def is_transformer(model: Any) -> bool:
    """Tell whether a model has blocks and patch tokens."""
    return isinstance(model, VisionTransformer)


@torch.no_grad()
def flops_per_image(model: Any) -> int:
    """Count the floating-point operations of a forward pass, a multiply-add as two.

    Convolutions and matrix products are counted, as torch's `FlopCounterMode` does.
    """
    image = torch.zeros((1, 3, *image_size(model)), dtype=torch.uint8)
    device = next(model.parameters()).device
    normalised = Normalise(model).to(device)(image.to(device))
    with FlopCounterMode(display=False) as counter:
        model.eval()(normalised)
    return counter.get_total_flops()
