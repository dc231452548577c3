"""What an ablation is: rows, measures, a budget; and how they become arguments."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from finetune.config import FewshotConfig, FinetuneConfig, LinearConfig
from pretrain.config import PretrainConfig
from pretrain.configuration.load import load
from scripts._ablate.values import Overrides, text_of
from scripts._benchmark.alternatives.config import AlternativePretrainConfig, load_alternative

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS: dict[str, tuple[type[Any], str]] = {  # what a measure's script reads, and its folder's key
    "fewshot": (FewshotConfig, "fewshot.dir"),
    "probe": (LinearConfig, "probe.dir"),
    "finetune": (FinetuneConfig, "run.dir"),
}
PRETRAININGS: dict[str, tuple[type[Any], str]] = {  # what a row's script reads, and the script
    "pretrain": (PretrainConfig, "pretrain/run.py"),
    "alternative": (AlternativePretrainConfig, "scripts/pretrain_alternative.py"),
}


@dataclass(frozen=True)
class Budget:
    """What is equal in all rows: the steps, or with `minutes` the time of training.

    Attributes:
        minutes: None: equal steps.
        warmup_seconds: Of the run that measures a row's speed.
    """

    minutes: float | None = None
    warmup_seconds: float = 20.0


@dataclass(frozen=True)
class Measure:
    """What is measured of an encoder after pretraining.

    Attributes:
        name: Of its folder and its columns.
        script: A key of `SCRIPTS`.
        config: A YAML file, or None.
        overrides: On it.
        show: Figures in table.md; empty: all accuracies.
    """

    name: str
    script: str
    config: str | None
    overrides: Overrides
    show: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: Of its folder.
        script: A key of `PRETRAININGS`.
        config: The pretraining's YAML.
        overrides: Of the pretraining, the common ones included.
        encoder_of: The row whose pretraining it measures; its own name if that is its own.
        is_untrained: Whether its encoder gets no training.
        paper: A published value.
        measures: With this row's own overrides.
    """

    name: str
    script: str
    config: str
    overrides: Overrides
    encoder_of: str
    is_untrained: bool
    paper: float | None
    measures: tuple[Measure, ...]

    @property
    def arguments(self) -> list[str]:
        """What is typed after its script's name."""
        return arguments_of(self.config, self.overrides)

    def load(self) -> Any:
        """Load the pretraining's configuration."""
        return load_once(PRETRAININGS[self.script][0], tuple(self.arguments))


@dataclass(frozen=True)
class Ablation:
    """A table to be.

    Attributes:
        name: Its YAML's.
        rows: By name.
        budget: What is equal in all of them.
        seeds: Of each row.
        show: Figures of the pretraining in table.md.
        paper: What the rows' published values are.
    """

    name: str
    rows: dict[str, Row]
    budget: Budget
    seeds: tuple[int, ...]
    show: tuple[str, ...]
    paper: str


def arguments_of(config: str | None, overrides: Overrides) -> list[str]:
    """Return what is typed after an entry point's name."""
    files = [] if config is None else [find_config(config)]
    return files + [f"{key}={text_of(key, value)}" for key, value in overrides.items()]


def find_config(path: str) -> str:
    """Find a configuration from the current folder, else from the checkout."""
    is_elsewhere = not Path(path).is_file() and (ROOT / path).is_file()
    return str(ROOT / path) if is_elsewhere else path


@cache
def load_once(kind: type[Any], arguments: tuple[str, ...]) -> Any:
    """Load a configuration; rows share many."""
    if kind is AlternativePretrainConfig:
        return load_alternative(list(arguments))
    return load(kind, list(arguments))
