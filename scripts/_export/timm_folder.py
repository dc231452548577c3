"""timm's own format: config.json and model.safetensors."""

from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from data.images.limits import MODES
from pretrain.encoder import save_encoder
from pretrain.encoder.extensions import norm_eps
from pretrain.encoder.timm_model import EPS
from scripts._export.format import HUB, Format, Outputs
from scripts._export.source import Source, refuse_other_heads, tokens_name


def _check(source: Source) -> None:
    refuse_other_heads(source, "timm")
    source.timm_encoder("timm")


def _write(source: Source, folder: Path) -> None:
    save_encoder(source.encoder, folder)


@torch.no_grad()
def _run(folder: Path, images: Tensor) -> Outputs:
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    prepared = _prepare(model, images)
    tokens = model.forward_features(prepared)
    last = "logits" if model.num_classes else "features"
    return {tokens_name(model): tokens, last: model(prepared)}


def _prepare(model: Any, images: Tensor) -> Tensor:
    """Do to uint8 images (B, C, H, W) what the usage does to one."""
    if images.shape[1] in MODES:
        transform: Any = create_transform(**resolve_model_data_config(model))
        return torch.stack([torch.as_tensor(transform(to_pil_image(image))) for image in images])
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    return (images / 255 - mean) / std


def _usage(source: Source, place: str) -> str:
    where = place if place.startswith(HUB) else f"local-dir:{place}"
    what = "logits (1, K)" if source.classifier else "features (1, D)"
    load = f'model = timm.create_model("{where}", pretrained=True).eval()'
    return f"""{_read_photo(source, load)}
with torch.inference_mode():
    output = model(image[None])  # {what}
    tokens = model.forward_features(image[None])  # before pooling"""


def _read_photo(source: Source, load: str) -> str:
    """Return Python that loads the model and makes `image`, which timm prepares if it is one."""
    if source.channels in MODES:
        return f'''import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

{load}
transform = create_transform(**resolve_model_data_config(model))
image = transform(Image.open("photo.jpg").convert("{MODES[source.channels]}"))'''
    shape = ", ".join(map(str, (*source.size, source.channels)))
    return f"""import numpy as np
import timm
import torch

{load}
mean, std = (torch.tensor(model.pretrained_cfg[key]) for key in ("mean", "std"))
image = torch.from_numpy(np.load("image.npy"))  # uint8 ({shape})
image = ((image / 255 - mean) / std).permute(2, 0, 1)"""


def _describe(source: Source) -> list[str]:
    rows, columns = source.size
    lines = [
        f"images {rows}x{columns}, {source.colours}; mean, deviation and resizing are in "
        "config.json"
    ]
    if source.classifier:
        lines.append("class names are in config.json, label_names")
    eps = norm_eps(source.encoder)
    if eps != EPS:
        lines.append(f"its layer norms have an eps of {eps:g} here and of {EPS:g} in timm")
    return lines


FORMAT = Format("timm", "timm", (), _write, _run, _usage, _describe, _check)
