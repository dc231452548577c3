"""The folder of a saved encoder: config.json and model.safetensors, read and written here alone.

timm wrote it, or transformers, or this project: in timm's format, where config.json may have the
key `additions` for what timm lacks (`extensions.py`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.disks import explain
from data.settings import UserError, require
from pretrain.encoder.timm_internals import save_config_for_hf

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Saved:
    """The config.json of a saved model.

    Attributes:
        folder: Where it lies.
        config: All of it, as JSON has it.
    """

    folder: Path
    config: dict[str, Any]

    @property
    def is_transformers(self) -> bool:
        """Whether transformers wrote it, and not timm or this project."""
        return "model_type" in self.config

    @property
    def extensions(self) -> dict[str, Any] | None:
        """The parts that timm's own encoder lacks, for `Extensions`; None without any."""
        return self.config.get("additions")

    @property
    def architecture(self) -> str:
        """The name of the timm model; empty where transformers wrote it."""
        return self.config.get("architecture", "")

    @property
    def model_args(self) -> dict[str, Any]:
        """The arguments of the timm model."""
        return self.config.get("model_args", {})

    @property
    def num_classes(self) -> int:
        """K of its head; 0 for an encoder alone."""
        return self.config.get("num_classes", 0)

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, in the order of the logits; None where they have none."""
        return self.config.get("label_names")

    @property
    def problem_type(self) -> str | None:
        """The kind of classifier, in transformers' words; None if it states none."""
        return self.config.get("problem_type")

    @property
    def norm_eps(self) -> float | None:
        """The eps of its layer norms; None where it is that of the timm model."""
        return self.config.get("norm_eps")

    def read_weights(self, source: str) -> dict[str, Tensor]:
        """Read the weights.

        Args:
            source: How messages name the encoder, such as `encoder.init=FOLDER`.

        Raises:
            UserError: They are not there, or cannot be read.
        """
        path = self.folder / _WEIGHTS
        require(
            path.is_file(),
            f"{source}: the encoder in {self.folder} has no {path.name}; pickled weights are "
            "not read, since reading them can run code",
        )
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{source}: {path} cannot be read: {explain(error)}") from error


def find_saved(path: str | Path) -> Saved | None:
    """Read the encoder of a run's folder, or of a folder by itself; None if there is none.

    Raises:
        UserError: Its config.json cannot be read, or holds no JSON object.
    """
    folders = (Path(path, "encoder"), Path(path))
    folder = next((folder for folder in folders if (folder / _CONFIG).is_file()), None)
    return None if folder is None else Saved(folder, read_json(folder / _CONFIG))


def read_json(path: Path) -> dict[str, Any]:
    """Read one of the JSON files beside an encoder's weights.

    Raises:
        UserError: It holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}; restore it") from error
    require(isinstance(content, dict), f"{path} holds no JSON object; restore it")
    return cast(dict[str, Any], content)


def write_saved(
    folder: Path,
    model: Any,
    weights: Mapping[str, Tensor],
    config: dict[str, Any],
    model_args: dict[str, Any],
    images: dict[str, Any],
) -> None:
    """Write a model in timm's own format.

    Args:
        folder: It is made if it is missing.
        model: A timm model.
        weights: What is written of it.
        config: What config.json states beside the model's own.
        model_args: Over the model's own.
        images: `input_size`, `mean`, `std` and others of timm's `pretrained_cfg`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(weights), folder / _WEIGHTS)
    save_config_for_hf(model, str(folder / _CONFIG), config, model_args, images)
