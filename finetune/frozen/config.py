"""The keys of the probe: k-NN, a linear probe, and heads that read patches."""

from dataclasses import dataclass
from typing import Any

from data.config import LabelledDataConfig
from data.settings import require, setting
from finetune.config import FrozenConfig, check_data
from pretrain.encoder import EncoderConfig
from pretrain.evaluation.config import EFFICIENT, NEIGHBOURS, PATCH_HEADS, PENALTIES

_DEFAULT_HEADS = ("linear", "knn")
_POOLED_HEADS = (*_DEFAULT_HEADS, "retrieval")
_READERS = {  # keys of the probe, and the heads that read them
    "poolings": _POOLED_HEADS,
    "neighbours": ("knn",),
    "penalties": ("linear",),
    "queries": (EFFICIENT,),
    **dict.fromkeys(("rates", "decays", "steps", "seed"), PATCH_HEADS),
}


@dataclass(frozen=True)
class ClassifiersConfig(FrozenConfig):
    """How k-NN, the linear probe and the heads that read patches are fitted."""

    group = "probe"

    heads: tuple[str, ...] = setting(
        _DEFAULT_HEADS, "linear, knn, retrieval read poolings; attentive, efficient all patches"
    )
    neighbours: int = setting(NEIGHBOURS, "nearest training images that vote in k-NN")
    penalties: tuple[float, ...] = setting(
        PENALTIES,
        "of the linear probe; a tenth of data.train chooses one",
    )
    queries: int = setting(32, "of efficient: learned queries, a divisor of the encoder's width")
    rates: tuple[float, ...] = setting(
        (1e-3, 3e-3, 1e-2, 3e-2),
        "learning rates of attentive and efficient; the same tenth chooses one",
    )
    decays: tuple[float, ...] = setting((1e-3, 1e-1), "their weight decays; it chooses one, too")
    steps: int = setting(2000, "their steps, of 256 images each")
    seed: int = setting(0, "of their first weights and of the order of the images")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_given("heads")
        for head in self.heads:
            require(
                head in _POOLED_HEADS + PATCH_HEADS,
                f"probe.heads={head} is not one of {', '.join(_POOLED_HEADS + PATCH_HEADS)}",
            )
        self._require_read(_READERS, self.heads)
        self._require_positive("neighbours", "queries", "steps")
        for key in ("penalties", "rates"):
            values = getattr(self, key)
            require(
                len(values) > 0 and min(values) > 0,
                f"probe.{key}={list(values)} must be numbers above 0; try [1e-3, 1e-2]",
            )
        require(
            len(self.decays) > 0 and min(self.decays) >= 0,
            f"probe.decays={list(self.decays)} must be numbers from 0; try [0, 0.1]",
        )

    @property
    def pooled(self) -> tuple[str, ...]:
        """The poolings that linear, knn and retrieval read."""
        return self.poolings if set(self.heads) & set(_POOLED_HEADS) else ()

    @property
    def patch_heads(self) -> tuple[str, ...]:
        """Heads that read patches, and pool them in their own way."""
        return tuple(head for head in self.heads if head in PATCH_HEADS)

    @property
    def about(self) -> dict[str, Any]:
        """What the heads were told, for `result.json`."""
        told = {key: getattr(self, key) for key in _READERS if self._is_read(key)}
        told.pop("poolings", None)  # each cell says its own
        return {key: list(of) if isinstance(of, tuple) else of for key, of in told.items()}

    def _is_read(self, key: str) -> bool:
        return any(head in _READERS[key] for head in self.heads)


@dataclass(frozen=True)
class LinearConfig:
    """Everything that k-NN and the linear probe are told."""

    data: LabelledDataConfig = setting(LabelledDataConfig, "the labelled images")
    encoder: EncoderConfig = setting(
        lambda: EncoderConfig(init=None), "the network, and where it comes from"
    )
    probe: ClassifiersConfig = setting(ClassifiersConfig, "the measure")

    def __post_init__(self) -> None:
        check_data(self.data)

    @property
    def frozen(self) -> FrozenConfig:
        """How features are read."""
        return self.probe
