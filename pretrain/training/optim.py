"""The optimizer, and the learning rate as a pure function of the step."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from data.settings import UserError, require, setting
from pretrain.encoder import positions

_ALGORITHMS = ("adamw", "sgd")


@dataclass(frozen=True)
class OptimConfig:
    """How long, how fast and by which rule the weights move.

    The defaults are the paper's for pretraining, but for the number of steps: gains diminish after
    100k of its 1M. Source: Dosovitskiy et al. 2021, sections 4.1 and B.1.2.
    """

    steps: int = setting(100_000, "optimizer steps of the run")
    batch_size: int = setting(4096, "images a step, over all processes and accumulation")
    algorithm: str = setting("adamw", "adamw (weight decay decoupled) or sgd (Nesterov off)")
    lr: float = setting(2e-4, "peak learning rate")
    weight_decay: float = setting(0.1, "not applied to biases, norms, positions and tokens")
    betas: tuple[float, float] = setting((0.9, 0.999), "adamw's decay rates")
    momentum: float = setting(0.9, "sgd's momentum")
    warmup_steps: int = setting(10_000, "steps of linear warm-up; then a cosine down to 0")
    layer_decay: float = setting(1.0, "factor on the learning rate for each block further down")
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0 does not clip")
    ema: float = setting(0.0, "decay of the averaged weights that encoder/ then holds; 0 is off")

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size"):
            value = getattr(self, key)
            require(value > 0, f"optim.{key}={value} must be above 0")
        for key in ("lr", "weight_decay", "warmup_steps", "grad_clip"):
            value = getattr(self, key)
            require(0 <= value < math.inf, f"optim.{key}={value} is not a number from 0")
        for key in ("ema", "momentum"):
            value = getattr(self, key)
            require(0 <= value < 1, f"optim.{key}={value} is not in [0, 1)")
        require(
            all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas={list(self.betas)} are not in [0, 1); the paper has [0.9, 0.999]",
        )
        require(
            0 < self.layer_decay <= 1,
            f"optim.layer_decay={self.layer_decay} is not in (0, 1]; 1 is off",
        )
        require(
            self.warmup_steps <= self.steps,
            f"optim.warmup_steps={self.warmup_steps} is over optim.steps={self.steps}; "
            f"try {self.steps // 10}",
        )
        if self.algorithm not in _ALGORITHMS:
            raise UserError(
                f"optim.algorithm={self.algorithm} is not one of {', '.join(_ALGORITHMS)}"
            )

    def lr_at(self, step: int) -> float:
        """Return the learning rate of step 0 <= `step` < `steps`.

        Linear from lr / warmup_steps to lr, then a cosine that would reach 0 at `steps`.
        """
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))


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
