"""The keys of dense evaluation."""

from dataclasses import dataclass

from data.config import LabelledDataConfig
from data.settings import require, setting
from finetune.config import LayersConfig, check_data
from pretrain.encoder import EncoderConfig
from pretrain.evaluation.config import DISTANCES, PENALTIES

_READERS = {  # keys of `dense`, and the heads that read them
    **dict.fromkeys(("rates", "weight_decay", "epochs"), ("linear",)),
    "penalties": ("logistic",),
    **dict.fromkeys(("neighbours", "distances"), ("knn",)),
    "max_patches": ("logistic", "knn"),
}
MOST_CLASSES = 255  # a mask has 8 bits, and one number is of no class
HEADS: tuple[str, ...] = ("linear", "logistic", "knn")


@dataclass(frozen=True)
class SegmentedDataConfig(LabelledDataConfig):
    """The images with masks that dense evaluation reads."""

    ignored: int = setting(255, "number in the masks of pixels that count in no figure")
    num_classes: int | None = setting(
        None, "classes, whose numbers are 0 to one less; default: the lines of data.classes"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.ignored <= 255,
            f"data.ignored={self.ignored} is not in 0..255, the numbers that a mask can hold",
        )
        require(
            self.num_classes is None or 2 <= self.num_classes <= MOST_CLASSES,
            f"data.num_classes={self.num_classes} is not in 2..{MOST_CLASSES}; a mask has 8 bits",
        )


@dataclass(frozen=True)
class DenseConfig(LayersConfig):
    """How patch features are judged by the class of each pixel."""

    group = "dense"

    batch_size: int = setting(64, "images a forward pass on each process")
    heads: tuple[str, ...] = setting(
        HEADS,
        "linear (a layer, enlarged bilinearly), logistic (a class a patch), knn (no training)",
    )
    rates: tuple[float, ...] = setting(
        (3e-3, 3e-2, 3e-1), "AdamW's for linear; a tenth of data.train chooses one"
    )
    weight_decay: float = setting(1e-4, "AdamW's for linear")
    epochs: int = setting(20, "passes over data.train's features for linear")
    penalties: tuple[float, ...] = setting(
        PENALTIES, "of logistic; a tenth of data.train chooses one"
    )
    neighbours: tuple[int, ...] = setting(
        (1, 3, 10, 30), "nearest patches that vote in knn; a tenth of data.train chooses one"
    )
    distances: tuple[str, ...] = setting(DISTANCES, "of knn: cosine, euclidean; likewise")
    max_patches: int = setting(
        100_000, "training patches for logistic and knn at most; a choice drawn once"
    )
    pictures: int = setting(
        4, "validation images in predictions.png, with masks and predictions; 0: none"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("epochs", "max_patches")
        for key, known in (("heads", HEADS), ("distances", DISTANCES)):
            values = getattr(self, key)
            require(
                len(values) > 0 and set(values) <= set(known),
                f"dense.{key}={list(values)} must be some of {', '.join(known)}",
            )
        self._require_read(_READERS, self.heads)
        for key in ("rates", "penalties", "neighbours"):
            values = getattr(self, key)
            require(
                len(values) > 0 and min(values) > 0,
                f"dense.{key}={list(values)} must be numbers above 0",
            )
        for key in ("weight_decay", "pictures"):
            value = getattr(self, key)
            require(value >= 0, f"dense.{key}={value} is below 0")

    @property
    def num_settings(self) -> dict[str, int]:
        """By head, among how many settings the held-out images choose."""
        numbers = len(self.rates), len(self.penalties), len(self.neighbours) * len(self.distances)
        every: dict[str, int] = dict(zip(HEADS, numbers, strict=True))
        return {head: every[head] for head in dict.fromkeys(self.heads)}


@dataclass(frozen=True)
class SegmentationConfig:
    """Everything that dense evaluation is told."""

    data: SegmentedDataConfig = setting(SegmentedDataConfig, "the images with masks")
    encoder: EncoderConfig = setting(
        lambda: EncoderConfig(init=None), "the network, and where it comes from"
    )
    dense: DenseConfig = setting(DenseConfig, "the measure")

    def __post_init__(self) -> None:
        check_data(self.data)

    @property
    def frozen(self) -> DenseConfig:
        """How features are read."""
        return self.dense
