"""The keys of fine-tuning, and of measuring a frozen encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from data.config import LabelledDataConfig
from data.settings import require, setting
from finetune.tuning.config import TunedRunConfig, check_smoothing
from pretrain.encoder import EncoderConfig
from pretrain.evaluation.config import PENALTY, check_shots
from pretrain.training.config import OptimConfig

TIMM_POOLINGS = {"average": "avg", "class": "token"}
_POOLINGS = (*TIMM_POOLINGS, "both")
_KINDS = ("linear", "mlp")
_INITS = ("zeros", "probe")


@dataclass(frozen=True)
class HeadConfig:
    """The head: what it reads, what it is, and what is trained with it."""

    pooling: str = setting(
        "average", "average over patches, class (the token), or both side by side"
    )
    kind: str = setting(
        "linear", "linear, or mlp: one hidden layer (tanh), for training from scratch"
    )
    init: str = setting(
        "zeros", "zeros, or probe: a linear probe on data.train, fitted before the first step"
    )
    tuned_blocks: int | None = setting(
        None, "last blocks that are trained with the head; 0: the head alone; default: everything"
    )
    label_smoothing: float = setting(0.0, "probability spread over all classes")

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        for key, known in (("pooling", _POOLINGS), ("kind", _KINDS), ("init", _INITS)):
            value = getattr(self, key)
            require(value in known, f"head.{key}={value} is not one of {', '.join(known)}")
        require(
            self.init == "zeros" or (self.kind == "linear" and self.pooling in TIMM_POOLINGS),
            f"head.init={self.init} needs head.kind=linear and head.pooling=average or class; "
            "use head.init=zeros",
        )
        require(
            self.tuned_blocks is None or self.tuned_blocks >= 0,
            f"head.tuned_blocks={self.tuned_blocks} is below 0; 0 trains the head alone",
        )


@dataclass(frozen=True)
class MixConfig:
    """How images of a training batch are mixed with each other, and their labels with them.

    Source: Zhang et al. 2018 (arXiv:1710.09412), Yun et al. 2019 (arXiv:1905.04899). Where both are
    on, each micro-batch takes one of them, with equal probability.
    """

    mixup: float = setting(0.0, "alpha of mixup, which blends two images; 0 is off, often 0.8")
    cutmix: float = setting(0.0, "alpha of cutmix, which pastes a part; 0 is off, often 1")

    def __post_init__(self) -> None:
        for key in ("mixup", "cutmix"):
            value = getattr(self, key)
            require(value >= 0, f"mix.{key}={value} is below 0; 0 is off")

    @property
    def is_on(self) -> bool:
        """Whether anything is mixed."""
        return self.mixup > 0 or self.cutmix > 0


def _paper_optim() -> OptimConfig:
    """Dosovitskiy et al. 2021, Table 4, but for the length and the batch."""
    return OptimConfig(algorithm="sgd", lr=0.01, weight_decay=0.0)


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that a fine-tuning run is told."""

    run: TunedRunConfig = setting(TunedRunConfig, "where, how long between saves, on what")
    data: LabelledDataConfig = setting(LabelledDataConfig, "the labelled images")
    encoder: EncoderConfig = setting(
        lambda: EncoderConfig(init=None), "the network, and where it comes from"
    )
    head: HeadConfig = setting(HeadConfig, "the classifier")
    mix: MixConfig = setting(MixConfig, "mixing of training images")
    optim: OptimConfig = setting(_paper_optim, "the steps")

    def __post_init__(self) -> None:
        self.data.require_splits()
        require(
            self.head.init == "zeros" or not self.data.multi_label,
            f"head.init={self.head.init} with data.multi_label=true, but a linear probe gives one "
            "class an image; use head.init=zeros",
        )


# ---------------------------------------------------------------- measures of a frozen encoder


@dataclass(frozen=True)
class LayersConfig:
    """How the layers of a frozen encoder are read, whatever is made of them.

    Attributes:
        group: Where the keys are in the whole configuration, for messages.
    """

    group: ClassVar[str]

    layers: Any = setting(
        None,
        "blocks whose output is read, such as [6,12], from 1; all; default: the last",
        type_name="list[int] | all",
    )
    batch_size: int = setting(256, "images a forward pass on each process")
    precision: str = setting("fp32", "of the forward pass: fp32 or bf16")
    threads: int = setting(0, "CPU threads a process; 0: OMP_NUM_THREADS, else all, shared")
    dir: str | None = setting(
        None,
        "folder for result.json and table.md; default: one in the encoder's run, else runs/ has it",
        is_path=True,
    )

    def __post_init__(self) -> None:
        self._require_given("dir")
        is_list = isinstance(self.layers, list | tuple)
        layers = self.layers if is_list else [self.layers]
        require(
            self.layers in (None, "all")
            or (len(layers) > 0 and all(type(layer) is int and layer > 0 for layer in layers)),
            f"{self.group}.layers={self.layers} is neither a list of numbers from 1 nor all",
        )
        self._require_positive("batch_size")
        require(
            self.precision in ("fp32", "bf16"),
            f"{self.group}.precision={self.precision} is not one of fp32, bf16",
        )
        require(self.threads >= 0, f"{self.group}.threads={self.threads} is below 0; 0: all")

    def _require_given(self, key: str) -> None:
        value = getattr(self, key)
        require(value not in ("", ()), f"{self.group}.{key} is empty; leave it out")

    def _require_positive(self, *keys: str) -> None:
        for key in keys:
            value = getattr(self, key)
            require(value > 0, f"{self.group}.{key}={value} must be above 0")

    def _require_read(self, readers: Mapping[str, Sequence[str]], heads: Sequence[str]) -> None:
        """Refuse a key other than its default that none of the heads reads."""
        for key, own in readers.items():
            require(
                getattr(self, key) == getattr(type(self), key) or bool({*own} & {*heads}),
                f"{self.group}.{key} is read by {', '.join(own)} alone; add one to "
                f"{self.group}.heads, or leave it out",
            )

    def numbers(self, depth: int) -> list[int]:
        """Return the asked blocks of an encoder that has `depth`."""
        if self.layers == "all":
            return list(range(1, depth + 1))
        if isinstance(self.layers, list | tuple):
            return list(self.layers)
        return [self.layers or depth]


@dataclass(frozen=True)
class FrozenConfig(LayersConfig):
    """How features are read, a vector an image, whatever judges them."""

    poolings: tuple[str, ...] = setting(
        ("average",), "average over patches, class (no loss in pretraining), both (side by side)"
    )
    features: str | None = setting(
        None, "folder where features are kept; default: DIR/features", is_path=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_given("poolings")

    @property
    def pooled(self) -> tuple[str, ...]:
        """The poolings that are read."""
        return self.poolings

    @property
    def patch_heads(self) -> tuple[str, ...]:
        """Heads that read patches, and pool them in their own way."""
        return ()


@dataclass(frozen=True)
class ShotsConfig(FrozenConfig):
    """How the few-shot accuracy is measured."""

    group = "fewshot"

    shots: tuple[int, ...] = setting((1, 5, 10, 25), "labelled images a class")
    num_seeds: int = setting(5, "choices of those images; the table shows mean and deviation")
    penalty: float = setting(PENALTY, "ridge penalty on standardised features")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.shots) > 0, "fewshot.shots is empty; try [1, 5, 10, 25]")
        check_shots(self.shots, "fewshot.shots")
        self._require_positive("num_seeds", "penalty")


@dataclass(frozen=True)
class FewshotConfig:
    """Everything that the few-shot measure is told."""

    data: LabelledDataConfig = setting(LabelledDataConfig, "the labelled images")
    encoder: EncoderConfig = setting(
        lambda: EncoderConfig(init=None), "the network, and where it comes from"
    )
    fewshot: ShotsConfig = setting(ShotsConfig, "the measure")

    def __post_init__(self) -> None:
        check_data(self.data)

    @property
    def frozen(self) -> FrozenConfig:
        """How features are read."""
        return self.fewshot


def check_data(data: LabelledDataConfig) -> None:
    """Raise `UserError` for a key that a frozen encoder's measure cannot follow."""
    data.require_splits()
    data.require_one("val")
    require(
        not data.multi_label,
        "data.multi_label=true, but a frozen encoder is measured by one class an image; leave it "
        "out, or fine-tune",
    )
    require(
        data.augment is None,
        f"data.augment={data.augment}, but a frozen encoder sees images as they are; leave it out",
    )
    require(
        data.crop_area == LabelledDataConfig.crop_area,
        f"data.crop_area={list(data.crop_area)}, but a frozen encoder sees no random crops; leave "
        "it out",
    )
    require(not data.trace, "data.trace=true, but a frozen encoder takes no steps; leave it out")
    require(
        not data.balance,
        "data.balance=true, but a frozen encoder is measured by all images alike; leave it out, "
        "or fine-tune",
    )
