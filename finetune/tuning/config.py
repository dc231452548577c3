"""The configuration that every fine-tuning run has, whatever it tunes."""

from dataclasses import dataclass
from typing import Protocol

from data.config import LabelledDataConfig
from data.settings import require, setting
from pretrain.encoder import EncoderConfig
from pretrain.training.config import OptimConfig, RunConfig


@dataclass(frozen=True)
class TunedRunConfig(RunConfig):
    """Where a run lives, and which of its steps it hands on."""

    dir: str = setting("runs/finetune", "folder of the run", changes_result=False, is_path=True)
    keep_best: bool = setting(
        False, "hand on the best step by validation, which stays beside the newest checkpoints"
    )
    patience: int = setting(
        0,
        "end the run after so many validations in a row without a better one; 0: never; needs "
        "run.keep_best",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.patience >= 0, f"run.patience={self.patience} is below 0; 0 turns it off")
        require(
            self.keep_best or not self.patience,
            f"run.patience={self.patience} without run.keep_best=true would hand on a step that is "
            "past the best; set both",
        )
        require(
            self.eval_every > 0 or not self.keep_best,
            "run.keep_best=true chooses among validations, and run.eval_every=0 leaves one, at the "
            "end; set run.eval_every to the steps of an epoch",
        )


class Tuned(Protocol):
    """What every fine-tuning run's configuration has."""

    @property
    def run(self) -> TunedRunConfig:
        """Where, how long between saves, on what."""
        ...

    @property
    def data(self) -> LabelledDataConfig:
        """The labelled images."""
        ...

    @property
    def encoder(self) -> EncoderConfig:
        """The network, and where it comes from."""
        ...

    @property
    def optim(self) -> OptimConfig:
        """The steps."""
        ...


def check_smoothing(smoothing: float) -> None:
    """Raise `UserError` for a `head.label_smoothing` that is no probability below 1."""
    require(0 <= smoothing < 1, f"head.label_smoothing={smoothing} is not in [0, 1)")
