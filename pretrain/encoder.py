"""The encoder: a timm VisionTransformer, built, loaded, saved and run in two halves.

The only file that touches timm's private parts. The class token gets no loss in masked patch
prediction, so every encoder pools by patch average, and `norm` stays inside `forward_features`
(`fc_norm=False`): what a head reads is what the colour head was trained on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from data.settings import UserError, require, setting
from pretrain.pretrained import (
    BARE,
    DEFAULT_NAME,
    check_name,
    create_model,
    load_pretrained,
    make_bare,
    plain,
)

_SIZES = ("patch_size", "embed_dim", "depth", "num_heads")
_FIXED_ARGS = {"img_size", "num_classes", "global_pool", "fc_norm", "pretrained", "patch_drop_rate"}


@dataclass(frozen=True)
class EncoderConfig:
    """Which encoder, and what it starts from."""

    name: str | None = setting(
        None, f"timm VisionTransformer; default: that of encoder.init, else {DEFAULT_NAME}"
    )
    init: str = setting(
        "none",
        "what to start from: none (random), a RUN, a FOLDER of timm or transformers, a timm name",
    )
    patch_size: int | None = setting(None, "pixels a side of a patch; default: as named")
    embed_dim: int | None = setting(None, "width D; default: as named")
    depth: int | None = setting(None, "number of blocks; default: as named")
    num_heads: int | None = setting(
        None, "attention heads, a divisor of the width; default: as named"
    )
    args: dict[str, Any] = setting(
        dict, "further arguments of timm's model, such as args.mlp_ratio=2 args.drop_path_rate=0.1"
    )

    def __post_init__(self) -> None:
        for key in _SIZES:
            value = getattr(self, key)
            require(value is None or value > 0, f"encoder.{key}={value} must be above 0")
        for key in _FIXED_ARGS & self.args.keys():
            raise UserError(f"encoder.args.{key} is set by this project; leave it out")

    @property
    def overrides(self) -> dict[str, Any]:
        """The arguments over timm's own, those left out omitted."""
        sizes = {key: getattr(self, key) for key in _SIZES if getattr(self, key) is not None}
        return sizes | self.args


# ---------------------------------------------------------------- building and loading


def make_encoder(
    config: EncoderConfig,
    size: tuple[int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> VisionTransformer:
    """Build the encoder, or load the one that `encoder.init` names, for images of one size.

    Position embeddings of a loaded encoder are interpolated in 2-D when the grid differs.

    Args:
        config: Which encoder.
        size: (H, W); None keeps the encoder's own.
        mean: Channel means of pixels in 0..1; None keeps the encoder's own.
        std: Channel deviations, likewise.

    Raises:
        UserError: The name or an argument is unknown, sizes do not fit, or nothing can be loaded.
    """
    encoder = _create(config, size) if config.init == "none" else _load(config)
    check_channels(encoder, f"encoder.init={config.init}")
    size = size or image_size(encoder)
    check_image_size(size, patch_size(encoder))
    encoder.set_input_size(size)
    describe_images(encoder, size, mean, std)
    return encoder


def describe_images(
    encoder: Any,
    size: tuple[int, int],
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> None:
    """Note in timm's record what a model will be fed; None keeps what is there."""
    values = {"input_size": (3, *size), "mean": mean, "std": std}
    image_data(encoder).update({key: value for key, value in values.items() if value is not None})
    image_data(encoder).pop("label_names", None)  # those of a head that is not kept


def load_encoder(path: str | Path, keep_head: bool = False) -> VisionTransformer:
    """Load an encoder alone.

    Args:
        path: A run's folder, a folder that timm or transformers wrote, or the name of a pretrained
            timm model.
        keep_head: Keep a fine-tuned run's classifier; `encoder(images)` then gives logits.

    Returns:
        A timm VisionTransformer: `encoder(images)` gives patch averages (B, D) and
        `encoder.forward_features(images)` all tokens (B, T, D), for float images (B, 3, H, W)
        normalised by `encoder.pretrained_cfg["mean"]` and `["std"]`.

    Raises:
        UserError: There is no encoder of that name.
    """
    return _load(EncoderConfig(init=str(path)), num_classes=None if keep_head else 0)


def _create(config: EncoderConfig, size: tuple[int, int] | None) -> VisionTransformer:
    name = config.name or DEFAULT_NAME
    check_name(name, timm.list_models(module="vision_transformer"), "VisionTransformer")
    default_patch = config.patch_size
    if size is not None and default_patch is not None:
        check_image_size(size, (default_patch, default_patch))
    arguments = config.overrides | {"img_size": size} | BARE
    return plain(create_model(name, arguments), name)


def _load(config: EncoderConfig, num_classes: int | None = 0) -> VisionTransformer:
    """Load what `encoder.init` names, as it was saved; with `num_classes=0` as a bare encoder."""
    encoder = load_pretrained(config.init, config.args)
    _check_asked(encoder, config)
    if num_classes == 0:
        make_bare(encoder, config.init)
    return encoder


def _check_asked(encoder: VisionTransformer, config: EncoderConfig) -> None:
    """Refuse keys that ask for another encoder than the one that was loaded."""
    architecture = image_data(encoder)["architecture"]
    require(
        (config.name or architecture).split(".")[0] == architecture,
        f"encoder.name={config.name}, but the encoder of encoder.init={config.init} is a "
        f"{architecture}; leave the key out",
    )
    held = {
        "patch_size": patch_size(encoder)[0],
        "embed_dim": encoder.embed_dim,
        "depth": len(encoder.blocks),
        "num_heads": cast(Any, encoder.blocks[0]).attn.num_heads,
    }
    for key, value in held.items():
        asked = getattr(config, key)
        require(
            asked in (None, value),
            f"encoder.{key}={asked}, but the encoder of encoder.init={config.init} has {value}; "
            "leave the key out",
        )


def check_image_size(size: tuple[int, int], patch: tuple[int, int]) -> None:
    """Raise `UserError` unless each side of (H, W) is a multiple of the patch's."""
    for side, patch_side in zip(size, patch, strict=True):
        near = max(1, round(side / patch_side)) * patch_side
        require(
            side % patch_side == 0,
            f"data.image_size={side} is not a multiple of encoder.patch_size={patch_side}; "
            f"try {near}",
        )


def check_channels(encoder: Any, what: str) -> None:
    """Raise `UserError` unless an encoder, which `what` names, takes RGB images."""
    first = image_data(encoder)["first_conv"]
    weight: Tensor = encoder.get_parameter(f"{first}.weight")
    require(
        weight.ndim != 4 or weight.shape[1] == 3,
        f"{what} takes images of {weight.shape[1]} channels, and images here are RGB, of 3; "
        "name another",
    )


def save_encoder(encoder: VisionTransformer, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` in timm's own format.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` loads it; image size, mean, std and
    the names of a classifier's classes come from `encoder.pretrained_cfg`.
    """
    data = {key: image_data(encoder)[key] for key in ("input_size", "mean", "std")}
    data |= {"interpolation": "bilinear", "crop_pct": 1.0}
    origin: dict[str, Any] = {"pretrained_cfg": {"tag": "masked_patch"}}  # not that of timm's own
    if names := image_data(encoder).get("label_names"):
        origin["label_names"] = names
    if problem := getattr(encoder, "problem_type", None):
        origin["problem_type"] = problem  # transformers' key; timm has none, and passes over it
    save_for_hf(encoder, str(folder), origin, safe_serialization=True, data_config=data)


# ---------------------------------------------------------------- what it is


def image_data(encoder: VisionTransformer) -> dict[str, Any]:
    """Return timm's record of what the encoder is fed: `input_size`, `mean`, `std` and more."""
    return cast(dict[str, Any], encoder.pretrained_cfg)


def patch_size(encoder: VisionTransformer) -> tuple[int, int]:
    """(height, width) of a patch in pixels."""
    return encoder.patch_embed.patch_size


def image_size(encoder: VisionTransformer) -> tuple[int, int]:
    """(H, W) of the images it takes."""
    _, height, width = image_data(encoder)["input_size"]
    return height, width


def grid_size(encoder: VisionTransformer) -> tuple[int, int]:
    """(rows, columns) of its patches; their product is `N`."""
    return encoder.patch_embed.grid_size


# ---------------------------------------------------------------- running it


class Normalise(nn.Module):
    """Pixels -> what an encoder takes: uint8 (B, 3, H, W) -> float (B, 3, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        # buffers, so that they follow .to(device); not saved, config.json holds them
        for key in ("mean", "std"):
            value = torch.tensor(image_data(encoder)[key], dtype=torch.float32)
            self.register_buffer(key, value.view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Subtract the mean and divide by the deviation."""
        return (images.float() - self.mean) / self.std


def choose_attention(encoder: VisionTransformer, device: torch.device, precision: str) -> None:
    """Take timm's plain attention where torch's fused kernel is slow: bf16 on a CPU without AMX.

    Forward and backward of an attention layer then take 1.2 to 2.1 times as long with the fused
    kernel (65 to 2,305 tokens, AMD EPYC with AVX-512 bf16, torch 2.15), at equal distance from
    fp32's result. In fp32 and on GPUs the fused kernel is the faster one. The price is memory: the
    backward pass keeps (B, heads, T, T) probabilities of each layer.

    Args:
        encoder: Its attention layers are told.
        device: Where it runs.
        precision: Accelerate's name: bf16, fp16 or no.
    """
    if device.type != "cpu" or precision != "bf16" or torch.cpu._is_amx_tile_supported():
        return
    for module in encoder.modules():
        if hasattr(module, "fused_attn"):
            cast(Any, module).fused_attn = False


def embed(encoder: VisionTransformer, images: Tensor) -> Tensor:
    """Images -> patch embeddings without positions: (B, 3, H, W) -> (B, N, D)."""
    return encoder.patch_embed(images)


def encode(encoder: VisionTransformer, embeddings: Tensor) -> Tensor:
    """Patch embeddings -> tokens: (B, N, D) -> (B, T, D), prefix tokens first.

    `encode(embed(images))` equals timm's `forward_features(images)`.
    """
    tokens = encoder.norm_pre(encoder._pos_embed(embeddings))
    return encoder.norm(encoder.blocks(tokens))


def patch_tokens(encoder: VisionTransformer, tokens: Tensor) -> Tensor:
    """Drop the prefix tokens: (B, T, D) -> (B, N, D)."""
    return tokens[:, encoder.num_prefix_tokens :]
