"""The configuration of the objective: `corruption.*`, `target.*` and `decoder.*`."""

from dataclasses import dataclass

from data.settings import require, setting

CORRUPTIONS = ("random", "block", "coarse")
_UNIT, MIN_BLOCK = 2, 16  # SimMIM's 32 of 16 pixels; BEiT's
TARGETS = ("mean_colour", "colour_grid", "pixels", "normalised_pixels", "words")
_READERS = {
    "bits": ("mean_colour", "colour_grid"),
    "grid": ("colour_grid",),
    "num_words": ("words",),
}
ATTENTIONS = ("self", "cross")


@dataclass(frozen=True)
class CorruptionConfig:
    """Which patches are corrupted, how many, and in which way.

    In a grid so small that fewer than `min_block` patches are corrupted, the default is cut to
    those; a value of the user's is refused by `count`.
    """

    kind: str = setting("random", "shape: random (the paper), block (BEiT), coarse (SimMIM)")
    ratio: float = setting(0.5, "fraction of an image's patches that are corrupted")
    mask_ratio: float = setting(0.8, "fraction of those that become the mask embedding")
    random_ratio: float = setting(0.1, "fraction of those that become another patch; the rest stay")
    unit: int = setting(_UNIT, "kind=coarse: patches a side of the squares")
    min_block: int = setting(MIN_BLOCK, "kind=block: fewest patches of a block")
    predicted_ratio: float = setting(1.0, "fraction of the corrupted patches that are predicted")

    def __post_init__(self) -> None:
        require(
            self.kind in CORRUPTIONS,
            f"corruption.kind={self.kind} is not one of {', '.join(CORRUPTIONS)}",
        )
        for key in ("ratio", "predicted_ratio", "mask_ratio", "random_ratio"):
            value = getattr(self, key)
            require(0 <= value <= 1, f"corruption.{key}={value} is not in 0..1")
        for key, usual in (("ratio", 0.5), ("predicted_ratio", 1)):
            value = getattr(self, key)
            require(
                value > 0,
                f"corruption.{key}={value} leaves nothing to predict; the paper has {usual}",
            )
        total = self.mask_ratio + self.random_ratio
        require(
            total <= 1 + 1e-9,
            f"corruption.mask_ratio + corruption.random_ratio = {total:g} is over 1; "
            "the paper has 0.8 + 0.1",
        )
        self._check_shape("unit", _UNIT, "coarse")
        self._check_shape("min_block", MIN_BLOCK, "block")

    def _check_shape(self, key: str, default: int, kind: str) -> None:
        value = getattr(self, key)
        require(value >= 1, f"corruption.{key}={value} is under 1 patch; the default is {default}")
        require(
            value == default or self.kind == kind,
            f"corruption.{key}={value} is of corruption.kind={kind}, and corruption.kind="
            f"{self.kind} would ignore it; set corruption.kind={kind} or leave it out",
        )


@dataclass(frozen=True)
class TargetConfig:
    """The target: what is predicted, and how finely."""

    kind: str = setting("mean_colour", f"{', '.join(TARGETS[:-1])} or {TARGETS[-1]}")
    bits: int = setting(3, "bits a channel of mean_colour and colour_grid: 2^(bits*C) classes")
    grid: int = setting(4, "of colour_grid: cells a side into which a patch is downsized")
    num_words: int = setting(512, "of words: how many, learnt from the first training images")

    def __post_init__(self) -> None:
        require(self.kind in TARGETS, f"target.kind={self.kind} is none of {', '.join(TARGETS)}")
        require(1 <= self.bits <= 8, f"target.bits={self.bits} is not in 1..8; the paper has 3")
        require(self.grid > 0, f"target.grid={self.grid} must be above 0; the paper has 4")
        require(self.num_words > 1, f"target.num_words={self.num_words} must be above 1; try 512")
        for key, kinds in _READERS.items():
            default, value = getattr(TargetConfig, key), getattr(self, key)
            require(
                self.kind in kinds or value == default,
                f"target.{key}={value} has no effect with target.kind={self.kind}; leave it out, "
                f"or set target.kind={kinds[-1]}",
            )


@dataclass(frozen=True)
class DecoderConfig:
    """How light the decoder is; only with encoder.sees_masked=false."""

    depth: int = setting(1, "blocks of the decoder of encoder.sees_masked=false")
    width: int | None = setting(None, "its width; default: the encoder's")
    num_heads: int | None = setting(None, "its attention heads; default: the encoder's")
    attention: str = setting("self", "self: over all patches; cross: from masked to visible ones")

    def __post_init__(self) -> None:
        require(
            self.attention in ATTENTIONS,
            f"decoder.attention={self.attention} is none of {', '.join(ATTENTIONS)}",
        )
        for key in ("depth", "width", "num_heads"):
            value = getattr(self, key)
            require(value is None or value > 0, f"decoder.{key}={value} must be above 0")
