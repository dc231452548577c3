"""What kind a run is: told by the groups of keys in its config.yaml, and asked here alone."""

from collections.abc import Container
from enum import Enum
from pathlib import Path

from pretrain.configuration.layers import read_yaml


class Kind(Enum):
    """A kind of run, in words that follow "holds" and stand before "run"."""

    ALTERNATIVE = "another project's pretraining"
    IMAGE_TEXT = "an image-text pretraining"
    IMAGE_TEXT_TUNING = "an image-text fine-tuning"
    FINE_TUNING = "a fine-tuning"
    PRETRAINING = "a pretraining"


_GROUPS = {  # the first one that a configuration has
    "alternative": Kind.ALTERNATIVE,
    "loss": Kind.IMAGE_TEXT,
    "text": Kind.IMAGE_TEXT_TUNING,
    "head": Kind.FINE_TUNING,
    "target": Kind.PRETRAINING,
}


def kind_of(groups: Container[str]) -> Kind | None:
    """Return the kind of the run whose configuration has these groups; None if it is no run's."""
    return next((kind for group, kind in _GROUPS.items() if group in groups), None)


def kind_of_run(folder: str | Path) -> Kind | None:
    """Return the kind of the run in a folder; None where there is none.

    Raises:
        UserError: Its config.yaml is not valid YAML.
    """
    path = Path(folder, "config.yaml")
    return kind_of(read_yaml(str(path))) if path.is_file() else None
