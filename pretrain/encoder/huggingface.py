"""Between timm's VisionTransformer and Hugging Face's ViT: names and settings, in both directions.

The image's half of a ViLT model is such a ViT too. What reads text there is no part of an encoder:
`pretrain/vilt/huggingface.py` knows it.

It knows the files that transformers writes, and needs no transformers: the names are those in
`model.safetensors`, which transformers 4 and 5 share.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.settings import require
from pretrain.encoder.saved import Saved, read_json
from pretrain.encoder.timm_model import EPS

_VILT = "vilt"
_MODEL_TYPES = ("vit", "vit_mae", _VILT)  # a masked autoencoder's encoder is the same ViT

# timm's parameter or module -> Hugging Face's, of which several are stacked; # is the block
_NAMES = {
    "cls_token": ("embeddings.cls_token",),
    "pos_embed": ("embeddings.position_embeddings",),
    "patch_embed.proj": ("embeddings.patch_embeddings.projection",),
    "blocks.#.norm1": ("encoder.layer.#.layernorm_before",),
    "blocks.#.attn.qkv": (
        "encoder.layer.#.attention.attention.query",
        "encoder.layer.#.attention.attention.key",
        "encoder.layer.#.attention.attention.value",
    ),
    "blocks.#.attn.proj": ("encoder.layer.#.attention.output.dense",),
    "blocks.#.norm2": ("encoder.layer.#.layernorm_after",),
    "blocks.#.mlp.fc1": ("encoder.layer.#.intermediate.dense",),
    "blocks.#.mlp.fc2": ("encoder.layer.#.output.dense",),
    "norm": ("layernorm",),
    "head": ("classifier",),
}
_BASE = "vit."  # before all names but the classifier's, where a model is more than the encoder
_VILT_BASE = "vilt."  # likewise

MODALITY = "embeddings.token_type_embeddings.weight"  # of ViLT, which all of its tokens get
TEXT, IMAGE = 0, 1  # its rows

ACTIVATIONS = {  # Hugging Face's -> timm's
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
_DEFAULTS = {  # transformers' own, for what a config.json leaves out
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}
_OF_VILT = {"image_size": 384, "patch_size": 32}
_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")


# ---------------------------------------------------------------- names


class Renamed(NamedTuple):
    """Weights under timm's names.

    Attributes:
        state: Those that timm's model has and the file too.
        missing: What the file lacks of the others, as the file would name it.
        unused: What else is in the file.
    """

    state: dict[str, Tensor]
    missing: list[str]
    unused: list[str]


def hf_names(name: str) -> list[str]:
    """Return Hugging Face's names of one of timm's parameters; none where its ViT has no such."""
    module, dot, kind = name, "", ""
    if name.endswith((".weight", ".bias")):
        module, dot, kind = name.rpartition(".")
    block = re.search(r"(?<=^blocks\.)\d+", module)
    number = block.group() if block else ""
    names = _NAMES.get(re.sub(r"^blocks\.\d+", "blocks.#", module), ())
    return [f"{hf.replace('#', number)}{dot}{kind}" for hf in names]


def to_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's parameters and cut those that it stacks; with a head, as a classifier's.

    Args:
        state: Parameters for all of which there are `hf_names`.
    """
    base = _BASE if "head.weight" in state else ""
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        names = hf_names(name)
        prefix = "" if name.startswith("head.") else base
        for hf, part in zip(names, value.chunk(len(names)), strict=True):
            tensors[prefix + hf] = part.contiguous()
    return tensors


def from_hf(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Renamed:
    """Rename Hugging Face's parameters and stack those that timm stacks.

    Args:
        tensors: The weights as transformers wrote them.
        names: The parameters that the timm model has.
    """
    base = base_of(tensors)
    parts = {name: [base + hf for hf in hf_names(name)] for name in names}
    missing = [hf for hfs in parts.values() for hf in hfs if hf not in tensors]
    state = {
        name: torch.cat([tensors[hf] for hf in hfs])
        for name, hfs in parts.items()
        if all(hf in tensors for hf in hfs)
    }
    used = {hf for hfs in parts.values() for hf in hfs}
    return Renamed(state, missing, sorted(tensors.keys() - used))


def base_of(tensors: Iterable[str]) -> str:
    """Return what stands before the names of the transformer's weights; it may be empty."""
    bases = (base for name in tensors for base in (_BASE, _VILT_BASE) if name.startswith(base))
    return next(bases, "")


def of_vilt(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Renamed:
    """Rename the image's half of a ViLT model; what else is in the file is left aside.

    Its modal-type embedding, which ViLT adds to all tokens of an image, becomes a part of the
    position embeddings: an equal function.

    Args:
        tensors: As `from_hf` takes them.
        names: Likewise.
    """
    base, absorbed = base_of(tensors), dict(tensors)
    [place] = (base + name for name in hf_names("pos_embed"))
    kinds = absorbed.get(base + MODALITY)
    if kinds is None:
        return Renamed({}, [base + MODALITY], [])
    if place in absorbed:
        absorbed[place] = absorbed[place] + kinds[IMAGE]
    return from_hf(absorbed, names)._replace(unused=[])


# ---------------------------------------------------------------- settings


@dataclass(frozen=True)
class HFSettings:
    """The settings of a ViT that transformers wrote.

    Attributes:
        arguments: Those of timm's VisionTransformer.
        eps: Of the layer norms.
        data: `mean` and `std`, where preprocessor_config.json has them.
        notes: What is not taken over as it is, one a line.
    """

    arguments: dict[str, Any]
    eps: float
    data: dict[str, tuple[float, ...]]
    notes: list[str]


def read_hf_settings(saved: Saved, source: str) -> HFSettings:
    """Read what kind of ViT a folder holds: of any head, of a masked autoencoder, or of ViLT.

    Args:
        saved: Of a folder that transformers wrote.
        source: How messages name it, such as `encoder.init=FOLDER`.

    Raises:
        UserError: It is another model, or has what timm's VisionTransformer lacks.
    """
    config: dict[str, Any] = _DEFAULTS | (_OF_VILT if is_vilt(saved) else {}) | saved.config
    kind = config["model_type"]
    require(
        kind in _MODEL_TYPES,
        f"{source}: model_type={kind} is not read; of transformers' models only "
        f"{', '.join(_MODEL_TYPES)} are",
    )
    seen = _read_processor(saved.folder)
    data = {key: tuple(seen[f"image_{key}"]) for key in ("mean", "std") if f"image_{key}" in seen}
    eps = config["layer_norm_eps"] if is_vilt(saved) else EPS
    return HFSettings(_arguments(config, source), eps, data, list(_notes(config)))


def is_vilt(saved: Saved) -> bool:
    """Tell whether it is a ViLT model that transformers wrote."""
    return saved.config.get("model_type") == _VILT


def _read_processor(folder: Path) -> dict[str, Any]:
    """Return the settings of a folder's image processor, which may stand within those of a pair."""
    alone, within = folder / "preprocessor_config.json", folder / "processor_config.json"
    if alone.is_file():
        return read_json(alone)
    return read_json(within).get("image_processor", {}) if within.is_file() else {}


def _arguments(config: dict[str, Any], source: str) -> dict[str, Any]:
    refused = {
        "hidden_act": config["hidden_act"] not in ACTIVATIONS,
        "layer_norm_eps": config["layer_norm_eps"] > EPS and config["model_type"] != _VILT,
    }
    for key, is_refused in refused.items():
        require(
            not is_refused,
            f"{source}: {key}={config[key]} is nothing that this project's encoders "
            "have; start from another one",
        )
    return {
        "img_size": _pair(config["image_size"]),
        "patch_size": _pair(config["patch_size"]),
        "in_chans": config["num_channels"],
        "embed_dim": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": _ratio(config["hidden_size"], config["intermediate_size"]),
        "qkv_bias": config["qkv_bias"],
        "act_layer": ACTIVATIONS[config["hidden_act"]],
    }


def _pair(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _ratio(width: int, hidden: int) -> float:
    """Return the ratio from which timm's `int(width * ratio)` gets the hidden width back."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _notes(config: dict[str, Any]) -> Iterator[str]:
    if config["model_type"] == _VILT:
        yield "the encoder is a ViLT model's image half; its words and heads are no part of it"
    elif config["layer_norm_eps"] != EPS:
        yield f"layer_norm_eps={config['layer_norm_eps']} becomes timm's {EPS}"
    for key in _DROPOUTS:
        if config.get(key):
            yield f"{key}={config[key]} is not used; see encoder.args.proj_drop_rate and its like"
