"""The state of training that a checkpoint holds: model, optimizer, averages."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from data.disks import one_line
from data.settings import UserError, is_out_of_memory
from pretrain.encoder import save_encoder
from pretrain.training.parallel import cut_like, whole


@dataclass(frozen=True)
class Training:
    """The state that changes while a run trains, and that a checkpoint holds.

    Attributes:
        model: As it trains: whole, or cut over the ranks.
        optimizer: Over the model's parameters.
        ema: Averages the weights, or None.
        scaler: Scales fp16's gradients, or None.
        plain: Where the model is cut, a whole one of the same shape that the encoder is saved from;
            on the main process.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None
    scaler: GradScaler | None
    plain: nn.Module | None = None

    @property
    def best(self) -> nn.Module:
        """The weights that are evaluated and handed on: the averaged ones where there are any."""
        return self.model if self.ema is None else self.ema.module

    def collect(self) -> dict[str, dict[str, Tensor]]:
        """Return all tensors by file, whole; where the model is cut, all ranks have to ask."""
        tensors = {
            "model": {name: whole(value) for name, value in self.model.state_dict().items()},
            "optimizer": _flatten(self.optimizer),
        }
        if self.ema is not None:
            tensors["ema"] = self.ema.module.state_dict()
        return tensors

    def save(
        self, folder: Path, constants: dict[str, Any], tensors: dict[str, dict[str, Tensor]]
    ) -> None:
        """Write what `collect` gave, and `constants`, into a folder."""
        for name, values in tensors.items():
            save_file(values, folder / f"{name}.safetensors")
        scaler = self.scaler.state_dict() if self.scaler else None
        (folder / "state.json").write_text(json.dumps(constants | {"scaler": scaler}, indent=1))
        model: Any = self.best
        if self.plain is not None:
            self.plain.load_state_dict(tensors["model"])
            model = self.plain
        save_encoder(model.encoder, folder / "encoder")

    def load(self, folder: Path, constants: Mapping[str, Any]) -> None:
        """Read back what `save` wrote.

        Args:
            folder: The checkpoint's.
            constants: What `read_state` gave of it.

        Raises:
            UserError: The checkpoint is one of another model.
        """
        try:
            _restore_weights(self.model, load_file(folder / "model.safetensors"))
            _restore(self.optimizer, load_file(folder / "optimizer.safetensors"))
            if self.ema is not None:
                self.ema.module.load_state_dict(load_file(folder / "ema.safetensors"))
        except (RuntimeError, KeyError, SafetensorError) as error:
            if is_out_of_memory(error):
                raise
            reason = one_line(error)[:200]
            raise UserError(
                f"{folder} holds another encoder or head than the configuration: {reason}; "
                "give its own configuration, or another run.dir"
            ) from error
        if self.scaler:
            self.scaler.load_state_dict(constants["scaler"])


def _restore_weights(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = model.state_dict()
    model.load_state_dict(
        {name: cut_like(value, own.get(name, value)) for name, value in tensors.items()}
    )


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's tensors as `PARAMETER.NAME`, parameters numbered in group order."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": whole(torch.as_tensor(value))
        for number, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def _restore(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        own = parameters[int(number)]
        is_alike = tensor.shape == own.shape  # adam's step count is a number, and never cut
        state.setdefault(int(number), {})[name] = cut_like(tensor, own) if is_alike else tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load the weights that are evaluated and handed on: the averaged ones where there are any.

    Raises:
        UserError: The checkpoint is one of another model.
    """
    averaged = checkpoint / "ema.safetensors"
    path = averaged if averaged.is_file() else checkpoint / "model.safetensors"
    try:
        _restore_weights(model, load_file(path))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        reason = one_line(error)[:200]
        raise UserError(
            f"{path} holds another model than the configuration: {reason}; give its own"
        ) from error
