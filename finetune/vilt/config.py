"""The configuration of fine-tuning on images and sentences: `finetune/vilt/classify.py`."""

from dataclasses import dataclass

from data.captions.config import CaptionedLabelledDataConfig
from data.settings import require, setting
from finetune.tuning.config import TunedRunConfig, check_smoothing
from pretrain.encoder import EncoderConfig
from pretrain.training.config import OptimConfig


@dataclass(frozen=True)
class SentenceConfig:
    """The sentences' embedding."""

    dropout: float = setting(0.0, "dropout of the sentences' embeddings; the paper has 0.1")

    def __post_init__(self) -> None:
        require(0 <= self.dropout < 1, f"text.dropout={self.dropout} is not in [0, 1)")


@dataclass(frozen=True)
class PairHeadConfig:
    """The head: the paper's, of two layers on the sentence's class token."""

    label_smoothing: float = setting(0.0, "probability spread over all classes")

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)


def _paper_optim() -> OptimConfig:
    """Kim et al. 2021 (ViLT), section 4.2, but for the length and the batch."""
    return OptimConfig(algorithm="adamw", lr=1e-4, weight_decay=0.01)


@dataclass(frozen=True)
class ViltFinetuneConfig:
    """Everything that fine-tuning on images and sentences is told."""

    run: TunedRunConfig = setting(TunedRunConfig, "where, how long between saves, on what")
    data: CaptionedLabelledDataConfig = setting(
        CaptionedLabelledDataConfig, "the images, their sentences and labels"
    )
    encoder: EncoderConfig = setting(
        lambda: EncoderConfig(init=None), "the transformer, and where it comes from"
    )
    text: SentenceConfig = setting(SentenceConfig, "the sentences' embedding")
    head: PairHeadConfig = setting(PairHeadConfig, "the classifier")
    optim: OptimConfig = setting(_paper_optim, "the steps")

    def __post_init__(self) -> None:
        self.data.require_splits()
        require(
            self.encoder.sees_masked,
            "encoder.sees_masked=false is for pretraining, and no patch is masked here; leave it "
            "out",
        )
