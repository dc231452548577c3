"""The configuration of the encoder: `encoder.*`."""

from dataclasses import dataclass
from typing import Any

from data.settings import UserError, require, setting

DEFAULT_NAME = "vit_base_patch16_224"
_SIZES = ("patch_size", "embed_dim", "depth", "num_heads")
_PATCHES = ("auto", "conv", "linear")
_FIXED_ARGS = {
    **dict.fromkeys(("img_size", "num_classes", "global_pool", "fc_norm"), "leave it out"),
    **dict.fromkeys(("pretrained", "patch_drop_rate"), "leave it out"),
    "in_chans": "set data.channels",
    "pos_embed": "set encoder.position",
}
POSITIONS = ("none", "learned_1d", "learned_2d", "relative", "sincos_2d")
POSITION_PLACES = ("stem", "every_layer", "every_layer_shared")


@dataclass(frozen=True)
class EncoderConfig:
    """Which encoder, and what it starts from."""

    name: str | None = setting(
        None, f"timm VisionTransformer; default: that of encoder.init or like, else {DEFAULT_NAME}"
    )
    init: str | None = setting(
        "none",
        "what to start from: none (random), a RUN, a FOLDER of timm or transformers, a timm name",
        is_path=True,
        knows_none=True,
    )
    patch_size: int | None = setting(None, "pixels a side of a patch; default: as named")
    embed_dim: int | None = setting(None, "width D; default: as named")
    depth: int | None = setting(None, "number of blocks; default: as named")
    num_heads: int | None = setting(
        None, "attention heads, a divisor of the width; default: as named"
    )
    like: str | None = setting(
        None,
        "random weights, and all else as the encoder of such a RUN, FOLDER or timm name began",
        is_path=True,
    )
    position: str | None = setting(
        None,
        f"positions: {', '.join(POSITIONS)}; default: learned_1d, or as loaded",
        knows_none=True,
    )
    position_at: str | None = setting(
        None, f"where they act: {', '.join(POSITION_PLACES)}; default: stem, or as loaded"
    )
    patch_embed: str = setting(
        "auto",
        "how patches are embedded, with equal outputs: conv, linear, or auto (linear on CUDA)",
        changes_result=False,
    )
    stem: str | None = setting(
        None, "timm CNN whose feature map is cut into patches, such as resnet26d; default: none"
    )
    stem_stride: int | None = setting(
        None, "pixels a cell of that map; default: the largest that divides the patch's side"
    )
    sees_masked: bool = setting(
        True, "false: mask embeddings enter a light decoder, not the encoder; pretraining only"
    )
    args: dict[str, Any] = setting(
        dict, "further arguments of timm's model, such as args.mlp_ratio=2 args.drop_path_rate=0.1"
    )

    def __post_init__(self) -> None:
        for key in _SIZES:
            value = getattr(self, key)
            require(value is None or value > 0, f"encoder.{key}={value} must be above 0")
        for key in _FIXED_ARGS.keys() & self.args.keys():
            raise UserError(f"encoder.args.{key} is set by this project; {_FIXED_ARGS[key]}")
        require(
            self.like is None or self.init in (None, "none"),
            f"encoder.like={self.like} begins with random weights, and encoder.init={self.init} "
            "with its own; leave one of them out",
        )
        check_position(*self.placement)
        if self.patch_embed not in _PATCHES:
            raise UserError(
                f"encoder.patch_embed={self.patch_embed} is not one of {', '.join(_PATCHES)}"
            )
        require(
            self.stem is not None or self.stem_stride is None,
            f"encoder.stem_stride={self.stem_stride} needs a CNN; set encoder.stem, as resnet26d",
        )

    @property
    def placement(self) -> tuple[str, str]:
        """The kind of its positions and where they act, if nothing is loaded."""
        return self.position or "learned_1d", self.position_at or "stem"

    @property
    def source(self) -> str | None:
        """The key that names a saved encoder, as typed: `encoder.init=…` or `encoder.like=…`."""
        if self.like is not None:
            return f"encoder.like={self.like}"
        return None if self.init in (None, "none") else f"encoder.init={self.init}"

    @property
    def has_weights(self) -> bool:
        """Whether it starts from weights that exist."""
        return self.source is not None and self.like is None

    @property
    def overrides(self) -> dict[str, Any]:
        """The arguments over timm's own, those left out omitted."""
        sizes = {key: getattr(self, key) for key in _SIZES if getattr(self, key) is not None}
        return sizes | self.args


def check_position(kind: str, at: str) -> None:
    """Raise `UserError` unless there are positions of this kind at this place."""
    require(kind in POSITIONS, f"encoder.position={kind} is not one of {', '.join(POSITIONS)}")
    require(
        at in POSITION_PLACES,
        f"encoder.position_at={at} is not one of {', '.join(POSITION_PLACES)}",
    )
    reasons = {
        "none": "there is nothing to add with encoder.position=none",
        "relative": "encoder.position=relative is in the attention of every layer as it is",
    }
    require(
        at == "stem" or kind not in reasons,
        f"encoder.position_at={at}: {reasons.get(kind)}; leave the key out",
    )
