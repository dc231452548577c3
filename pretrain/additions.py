"""What an encoder may have that timm's own VisionTransformer has not, and how that is written down.

Such an encoder is saved in timm's layout, under an architecture that timm does not know, with the
key `additions`: timm refuses it, and `load_encoder` builds it again. All else is timm's own format.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from timm.models.vision_transformer import VisionTransformer

from data.settings import UserError, require
from pretrain import positions
from pretrain.stems import install_stem, stem_of
from pretrain.timm_model import create_model, plain

_PREFIX = "masked_patch."  # of the architecture: no name of timm's begins so


@dataclass(frozen=True)
class Additions:
    """What is added to timm's encoder.

    Attributes:
        position: Kind of position embedding, one of `positions.KINDS`.
        position_at: Where it acts, one of `positions.PLACES`.
        stem: A timm CNN from whose feature map the patches are cut, or None.
        stem_stride: Pixels a cell of that map, or None.
    """

    position: str = "learned_1d"
    position_at: str = "stem"
    stem: str | None = None
    stem_stride: int | None = None

    @property
    def is_none(self) -> bool:
        """Whether timm's own format holds such an encoder."""
        return self.stem is None and positions.is_timms(self.position, self.position_at)


def build(name: str, arguments: dict[str, Any], additions: Additions) -> VisionTransformer:
    """Create an encoder, its weights at random.

    Args:
        name: Of a timm VisionTransformer.
        arguments: Of timm's model.
        additions: What it gets besides.

    Raises:
        UserError: The name or an argument is unknown, or does not go with the additions.
    """
    kind, place = additions.position, additions.position_at
    positions.check(kind, place)
    if (kind, place) != ("learned_1d", "stem"):
        arguments = arguments | {"pos_embed": "none"}
    encoder = plain(create_model(name, arguments), name)
    if additions.stem is not None:
        install_stem(encoder, additions.stem, additions.stem_stride)
    positions.install(encoder, kind, place)
    return encoder


def additions_of(encoder: VisionTransformer) -> Additions:
    """Return what an encoder has that timm's has not."""
    stem = stem_of(encoder)
    return Additions(*positions.described(encoder), *(stem or (None, None)))


def timm_format(encoder: VisionTransformer, what: str) -> VisionTransformer:
    """Return an encoder as timm's own VisionTransformer, equal in its outputs.

    A table that is added at the stem is put into `pos_embed`.

    Args:
        encoder: Any.
        what: That cannot hold the rest, for the message, such as `--to timm`.

    Raises:
        UserError: It has more than timm's format can hold.
    """
    additions = additions_of(encoder)
    require(
        additions.stem is None,
        f"{what} cannot hold encoder.stem={additions.stem}: timm has no such model; it is kept in "
        "the run's own format, and in --to onnx and --to torch",
    )
    if additions.is_none:
        return encoder
    try:
        return positions.baked(encoder)
    except UserError as error:
        raise UserError(
            f"{what} cannot hold encoder.position={additions.position} with "
            f"encoder.position_at={additions.position_at}: timm's format has one table at the "
            "stem; it is kept in the run's own format, and in --to onnx and --to torch"
        ) from error


def describe_additions(encoder: VisionTransformer) -> dict[str, Any]:
    """Return what config.json states of the additions: nothing where timm's own format will do."""
    additions = additions_of(encoder)
    if additions.is_none:
        return {}
    data = cast(dict[str, Any], encoder.pretrained_cfg)
    return {"architecture": _PREFIX + data["architecture"], "additions": asdict(additions)}


def has_additions(folder: Path) -> bool:
    """Whether a folder holds an encoder in our own format."""
    return "additions" in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def rebuild(folder: Path, args: dict[str, Any]) -> VisionTransformer:
    """Create the encoder that config.json describes; its weights are still at random.

    Args:
        folder: Where `has_additions`.
        args: Arguments over the saved ones.

    Raises:
        UserError: The description is not one that this version knows.
    """
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        name, additions = saved["architecture"].removeprefix(_PREFIX), saved["additions"]
        known, data = Additions(**additions), saved["pretrained_cfg"]
        size = {"img_size": tuple(data["input_size"][1:]), "num_classes": saved["num_classes"]}
        arguments = saved.get("model_args", {}) | size | args
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder}/config.json describes an encoder that this version does not know ({error}); "
            "use the version that wrote it"
        ) from error
    encoder = build(name, arguments, known)
    kept = {key: saved[key] for key in ("label_names",) if key in saved}
    cast(dict[str, Any], encoder.pretrained_cfg).update(data | kept)
    encoder.problem_type = saved.get("problem_type")
    return encoder
