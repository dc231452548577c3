"""What fine-tuning is told."""

from dataclasses import dataclass

from data.config import LabelledDataConfig
from data.settings import setting
from finetune.head import HeadConfig
from finetune.mixing import MixConfig
from pretrain.encoder import EncoderConfig
from pretrain.training.optim import OptimConfig
from pretrain.training.run_config import RunConfig


def _paper_optim() -> OptimConfig:
    """Dosovitskiy et al. 2021, Table 4: CIFAR's number of steps."""
    return OptimConfig(
        steps=10_000,
        batch_size=512,
        algorithm="sgd",
        lr=0.01,
        weight_decay=0.0,
        warmup_steps=500,
        grad_clip=1.0,
    )


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that a fine-tuning run is told."""

    run: RunConfig = setting(
        lambda: RunConfig(dir="runs/finetune"), "where, how long between saves, on what"
    )
    data: LabelledDataConfig = setting(LabelledDataConfig, "the labelled images")
    encoder: EncoderConfig = setting(
        lambda: EncoderConfig(init=None), "the network, and where it comes from"
    )
    head: HeadConfig = setting(HeadConfig, "the classifier")
    mix: MixConfig = setting(MixConfig, "mixing of training images")
    optim: OptimConfig = setting(_paper_optim, "the steps")

    def __post_init__(self) -> None:
        self.data.require_splits()
