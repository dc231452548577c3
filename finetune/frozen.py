"""What the few-shot measure is told."""

from dataclasses import dataclass

from data.labelled import LabelledDataConfig
from data.settings import require, setting
from pretrain.encoder import EncoderConfig


@dataclass(frozen=True)
class ShotsConfig:
    """How the few-shot accuracy is measured."""

    shots: tuple[int, ...] = setting((1, 5, 10, 25), "labelled images a class")
    num_seeds: int = setting(5, "choices of those images; the table shows mean and deviation")
    layer: int = setting(0, "block whose output is read, from 1; 0: the last")
    pooling: str = setting("average", "average over patches, or class (no loss in pretraining)")
    penalty: float = setting(10.0, "ridge penalty on standardised features")
    batch_size: int = setting(256, "images a forward pass")
    output: str | None = setting(None, "JSON file for the result; default: none")

    def __post_init__(self) -> None:
        require(
            len(self.shots) > 0 and min(self.shots) > 0,
            f"fewshot.shots={list(self.shots)} must be numbers from 1; try [1, 5, 10, 25]",
        )
        for key in ("num_seeds", "penalty", "batch_size"):
            value = getattr(self, key)
            require(value > 0, f"fewshot.{key}={value} must be above 0")


@dataclass(frozen=True)
class FewshotConfig:
    """Everything that the few-shot measure is told."""

    data: LabelledDataConfig = setting(LabelledDataConfig, "the labelled images")
    encoder: EncoderConfig = setting(EncoderConfig, "the network, and where it comes from")
    fewshot: ShotsConfig = setting(ShotsConfig, "the measure")

    def __post_init__(self) -> None:
        self.data.require_splits()
