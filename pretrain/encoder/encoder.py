"""The encoder: a timm VisionTransformer, built, loaded and saved.

The class token gets no loss in masked patch
prediction, so every encoder pools by patch average, and `norm` stays inside `forward_features`
(`fc_norm=False`): what a head reads is what the colour head was trained on.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from timm.models.vision_transformer import VisionTransformer

from data.config import check_values
from data.settings import require
from pretrain.encoder import positions
from pretrain.encoder.config import DEFAULT_NAME, EncoderConfig
from pretrain.encoder.extensions import Extensions, build, describe_extensions, extensions_of
from pretrain.encoder.facts import (
    check_channels,
    check_image_size,
    grid_size,
    image_data,
    image_size,
    num_channels,
    patch_size,
)
from pretrain.encoder.pretrained import begin_like, load_pretrained, make_bare
from pretrain.encoder.saved import write_saved
from pretrain.encoder.stems import flatten_patches
from pretrain.encoder.timm_internals import update_model_args
from pretrain.encoder.timm_model import BARE, HYBRIDS, check_name, transformer_names

# ---------------------------------------------------------------- building and loading


def make_encoder(
    config: EncoderConfig,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channels: int | None = None,
) -> VisionTransformer:
    """Build the encoder, or take that of `encoder.init` or `encoder.like`, for images of one size.

    Position embeddings of one that was taken are interpolated in 2-D when the grid differs.

    Args:
        config: Which encoder.
        size: (H, W); None keeps the encoder's own.
        mean: Channel means of pixels in 0..1; None keeps the encoder's own.
        std: Channel deviations, likewise.
        channels: Of the images; None keeps the encoder's own.

    Raises:
        UserError: The name or an argument is unknown, sizes do not fit, or nothing can be loaded.
    """
    source = config.source
    encoder = _create(config, size, channels) if source is None else _take(config, source, channels)
    check_channels(encoder, source or f"encoder.name={config.name}", channels)
    size = size or image_size(encoder)
    check_image_size(size, patch_size(encoder))
    set_image_size(encoder, size)
    flatten_patches(encoder, config.patch_embed)
    describe_images(encoder, size, mean, std)
    return encoder


def set_image_size(encoder: VisionTransformer, size: tuple[int, int]) -> None:
    """Let an encoder take images of (H, W); its position embeddings are interpolated in 2-D."""
    encoder.set_input_size(size)
    positions.resize(encoder, grid_size(encoder))


def keep_blocks(encoder: VisionTransformer, number: int) -> None:
    """Drop the blocks after the first `number`; norm and pooling then read the last that stays."""
    encoder.prune_intermediate_layers([number - 1], prune_head=False)
    update_model_args(encoder, depth=number)  # what is saved as config.json


def describe_images(
    encoder: Any,
    size: tuple[int, int],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> None:
    """Note in timm's record what a model will be fed; None keeps what is there.

    Where timm's own mean and deviation are those of RGB and the images are not, they become 0.5.

    Raises:
        UserError: There are more or fewer values than channels.
    """
    data, channels = image_data(encoder), num_channels(encoder)
    check_values(mean, std, channels)
    data["input_size"] = (channels, *size)
    for key, values in (("mean", mean), ("std", std)):
        if values is not None:
            data[key] = tuple(values)
        elif len(data[key]) != channels:
            data[key] = (0.5,) * channels
    data.pop("label_names", None)  # those of a head that is not kept


def load_encoder(path: str | Path, keep_head: bool = False) -> VisionTransformer:
    """Load an encoder alone.

    Args:
        path: A run's folder, a folder that timm or transformers wrote, or the name of a pretrained
            timm model.
        keep_head: Keep a fine-tuned run's classifier; `encoder(images)` then gives logits.

    Returns:
        A timm VisionTransformer: `encoder(images)` gives patch averages (B, D) and
        `encoder.forward_features(images)` all tokens (B, T, D), for float images (B, C, H, W)
        normalised by `encoder.pretrained_cfg["mean"]` and `["std"]`.

    Raises:
        UserError: There is no encoder of that name.
    """
    encoder = load_pretrained(str(path), {}, source=str(path))
    if not keep_head:
        make_bare(encoder, str(path))
    return encoder


def _create(
    config: EncoderConfig, size: tuple[int, int] | None, channels: int | None
) -> VisionTransformer:
    name = config.name or DEFAULT_NAME
    check_name(name, transformer_names(), "VisionTransformer")
    is_hybrid = name.split(".")[0] in transformer_names(HYBRIDS)
    require(
        not (is_hybrid and (config.patch_size or config.stem)),
        f"encoder.name={name} has a CNN stem and patches of its own; leave encoder.patch_size and "
        "encoder.stem out, or name a vit without _r",
    )
    if size is not None and config.patch_size is not None:
        check_image_size(size, (config.patch_size, config.patch_size))
    sizes = {"img_size": size, "in_chans": channels}
    given = {key: value for key, value in sizes.items() if value is not None}
    extensions = Extensions(*config.placement, config.stem, config.stem_stride)
    return build(name, config.overrides | given | BARE, extensions)


def _take(config: EncoderConfig, source: str, channels: int | None) -> VisionTransformer:
    """Take what `encoder.init` or `encoder.like` names, as it was, as a bare encoder."""
    if config.like is not None:
        encoder = begin_like(config.like, config.args, channels)
    else:
        assert config.init is not None
        encoder = load_pretrained(config.init, config.args, channels)
    _check_asked(encoder, config, source)
    make_bare(encoder, source)
    return encoder


def _check_asked(encoder: VisionTransformer, config: EncoderConfig, source: str) -> None:
    """Refuse keys that ask for another encoder than the one that was taken."""
    architecture = image_data(encoder)["architecture"]
    require(
        (config.name or architecture).split(".")[0] == architecture,
        f"encoder.name={config.name}, but the encoder of {source} is a {architecture}; "
        "leave the key out",
    )
    held = {
        "patch_size": patch_size(encoder)[0],
        "embed_dim": encoder.embed_dim,
        "depth": len(encoder.blocks),
        "num_heads": cast(Any, encoder.blocks[0]).attn.num_heads,
        **asdict(extensions_of(encoder)),
    }
    for key, value in held.items():
        given = getattr(config, key)
        require(
            given in (None, value),
            f"encoder.{key}={given}, but the encoder of {source} has {value}; leave the key out",
        )


def save_encoder(encoder: VisionTransformer, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` in timm's own format.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` loads it; image size, mean, std and
    the names of a classifier's classes come from `encoder.pretrained_cfg`. What timm cannot hold is
    written beside it, and then `load_encoder` alone loads it: see `pretrain.encoder.extensions`.
    """
    data = {key: image_data(encoder)[key] for key in ("input_size", "mean", "std")}
    data |= {"interpolation": "bilinear", "crop_pct": 1.0}
    origin: dict[str, Any] = {"pretrained_cfg": {"tag": "masked_patch"}}  # not that of timm's own
    if names := image_data(encoder).get("label_names"):
        origin["label_names"] = names
    if problem := getattr(encoder, "problem_type", None):
        origin["problem_type"] = problem  # transformers' key; timm has none, and passes over it
    origin |= describe_extensions(encoder)
    weights = positions.baked_state(encoder)
    is_baked = weights.keys() != encoder.state_dict().keys()
    args = {"pos_embed": "learn"} if is_baked else {}
    write_saved(folder, encoder, weights, origin, args, data)
