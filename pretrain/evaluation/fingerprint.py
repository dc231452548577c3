"""What frozen features depend on, as a hash: the encoder, the images, and what is read."""

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from data.samples import Samples
from pretrain.encoder.facts import image_data
from pretrain.evaluation.features import View

_FORMAT = 2  # of files of features, and of how images are decoded and cropped
_SCALARS = (bool, int, float, str, tuple)


def fingerprint(
    encoder: VisionTransformer, samples: Samples, views: Sequence[View], precision: str
) -> str:
    """Return the sha256 (hex) over all that features depend on, but for rounding."""
    pixels = {key: image_data(encoder)[key] for key in ("mean", "std")}
    facts = {
        "format": _FORMAT,
        "encoder": identity(encoder),
        "samples": samples.manifest.fingerprint,
        "size": samples.size,
        **pixels,
        "views": list(views),
        "precision": precision,
    }
    if samples.numbering is not None:
        facts["numbering"] = samples.numbering.fingerprint
    return sha256(json.dumps(facts).encode()).hexdigest()


def identity(encoder: VisionTransformer) -> str:
    """Return the sha256 (hex) over an encoder's weights, and over its modules' settings.

    Weights alone do not tell the number of heads, nor which activation lies between them.
    """
    digest = sha256()
    for name, module in encoder.named_modules():
        digest.update(json.dumps([name, type(module).__name__, _settings(module)]).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _settings(module: nn.Module) -> list[Any]:
    """List a module's own settings; whether it trains is none."""
    return [
        [name, value]
        for name, value in sorted(vars(module).items())
        if isinstance(value, _SCALARS) and name != "training" and not name.startswith("_")
    ]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
