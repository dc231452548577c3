"""The keys of `scripts/benchmark.py pretrain`: a pretraining's, and an alternative's."""

from dataclasses import dataclass, fields
from typing import Any

from data.config import DataConfig
from data.settings import UserError, require, setting
from pretrain.configuration.layers import read_layers
from pretrain.configuration.load import load
from pretrain.encoder import EncoderConfig
from pretrain.evaluation.config import ProbeConfig
from pretrain.training.config import OptimConfig, RunConfig
from scripts._benchmark.alternatives.mae import MaeConfig
from scripts._benchmark.alternatives.mpp import MppConfig
from scripts._benchmark.alternatives.simmim import SimmimConfig
from scripts._benchmark.installed import TRANSFORMERS, VIT_PYTORCH

NAMES = {"mpp": VIT_PYTORCH, "mae": TRANSFORMERS, "simmim": TRANSFORMERS}  # and what each needs
_OURS = ("corruption", "target", "decoder")  # groups of pretrain.config.PretrainConfig


@dataclass(frozen=True)
class AlternativeConfig:
    """Which alternative."""

    name: str | None = setting(None, f"the objective: {', '.join(NAMES)}")


@dataclass(frozen=True)
class AlternativePretrainConfig:
    """Everything that a pretraining by an alternative is told."""

    run: RunConfig = setting(RunConfig, "where, how long between saves, on what")
    data: DataConfig = setting(DataConfig, "the images")
    encoder: EncoderConfig = setting(EncoderConfig, "the network")
    alternative: AlternativeConfig = setting(AlternativeConfig, "whose objective")
    mpp: MppConfig = setting(MppConfig, "vit-pytorch's MPP")
    mae: MaeConfig = setting(MaeConfig, "transformers' ViTMAEForPreTraining")
    simmim: SimmimConfig = setting(SimmimConfig, "transformers' ViTForMaskedImageModeling")
    optim: OptimConfig = setting(OptimConfig, "the steps")
    probe: ProbeConfig = setting(ProbeConfig, "whether it is learning")

    def __post_init__(self) -> None:
        name = self.alternative.name
        known = ", ".join(NAMES)
        require(name is not None, f"alternative.name is missing; give one of {known}")
        require(name in NAMES, f"alternative.name={name} is not one of {known}")
        require(bool(self.data.shards), "data.shards is missing; name the training shards")
        for other in NAMES:
            group = getattr(self, other)
            for field in fields(group) if other != name else ():
                value = getattr(group, field.name)
                require(
                    value == field.default,
                    f"{other}.{field.name}={value} has no effect with alternative.name={name}; "
                    "leave it out",
                )
        refused = {
            "encoder.sees_masked": (self.encoder.sees_masked, True),
            "encoder.init": (self.encoder.init or "none", "none"),
            "run.parallel": (self.run.parallel, "ddp"),
        }
        for key, (value, only) in refused.items():
            require(
                value == only,
                f"{key}={value} is nothing that alternative.name={name} can follow; leave it out",
            )


def load_alternative(arguments: list[str]) -> AlternativePretrainConfig:
    """Load as `pretrain.configuration.load.load` does, and say which keys are of our own objective.

    Raises:
        UserError: A key or a value is wrong; or a key is of our own objective.
    """
    for layer in read_layers(arguments):
        for group in _OURS:
            if group in layer:
                raise UserError(_message(group, layer[group]))
    return load(AlternativePretrainConfig, arguments)


def _message(group: str, values: Any) -> str:
    keys = [f"{group}.{key}" for key in values] if hasattr(values, "keys") else [group]
    return (
        f"{', '.join(keys)} is of our own objective, and an alternative would ignore it; leave it "
        f"out: {', '.join(f'{name}.*' for name in NAMES)} are the alternatives' own"
    )
