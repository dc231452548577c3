"""The optimizer, and the learning rate as a pure function of the step."""

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pretrain.encoder import positions
from pretrain.training.config import OptimConfig


def make_optimizer(
    model: nn.Module, encoder: VisionTransformer, config: OptimConfig
) -> torch.optim.Optimizer:
    """Make the optimizer over the trained parameters of `model`, the encoder's among them.

    Biases, norms, position embeddings and lone tokens do not decay. With `layer_decay`, each group
    carries an `lr_scale`, which `set_lr` applies.
    """
    groups = _parameter_groups(model, encoder, config)
    if config.algorithm == "sgd":
        is_cut = any(isinstance(parameter, DTensor) for parameter in model.parameters())
        kind, options = (_CutSGD, {}) if is_cut else (torch.optim.SGD, {"fused": True})
        sgd = kind(groups, lr=config.lr, momentum=config.momentum, **options)
        if config.momentum:
            # torch's fused kernel leaves them uninitialised where the first step is skipped
            for parameter in _trained(model):
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


class _CutSGD(torch.optim.SGD):
    """SGD on this rank's pieces of a cut model, for which torch has no fused kernel.

    Like that one it skips a step, without a wait for the device, where `found_inf` is not 0.
    """

    found_inf: Tensor

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: Any, group: dict[str, Any]) -> None:
        value, change = parameter.to_local(), parameter.grad.to_local()
        change = change + group["weight_decay"] * value
        if group["momentum"]:
            buffer = self.state[parameter]["momentum_buffer"].to_local()
            change = change + group["momentum"] * buffer
            buffer.copy_(torch.where(self.found_inf > 0, buffer, change))
        value.copy_(torch.where(self.found_inf > 0, value, value - group["lr"] * change))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def _parameter_groups(
    model: nn.Module, encoder: VisionTransformer, config: OptimConfig
) -> list[dict[str, Any]]:
    """Group the encoder's parameters by layer as timm does; the rest gets the full rate."""
    free = getattr(encoder, "no_weight_decay", set[str])() | positions.parameter_names(encoder)
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        encoder,
        weight_decay=config.weight_decay,
        no_weight_decay_list=free,
        layer_decay=config.layer_decay,
    )
    inside = {id(parameter) for group in groups for parameter in group["params"]}
    outside = [parameter for parameter in _trained(model) if id(parameter) not in inside]
    for is_matrix in (True, False):
        parameters = [p for p in outside if (p.ndim > 1) == is_matrix]
        decay = config.weight_decay if is_matrix else 0.0
        groups.append({"params": parameters, "lr_scale": 1.0, "weight_decay": decay})
    return [group for group in groups if group["params"]]


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
