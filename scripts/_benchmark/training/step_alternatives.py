"""The training steps of others, as their documentation has them, on a batch that is ready.

Each function makes a model of the subject's encoder size and returns its step: forward, backward
and fused AdamW (but for `timm`), without clipping, metrics or uint8 input. Everything else is the
library's own default. The model runs under the same autocast and compile setting as ours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn

from pretrain.training.launch import start
from scripts._benchmark.installed import TRANSFORMERS, VIT_PYTORCH, Package
from scripts._benchmark.training.costs import Work
from scripts._benchmark.training.subject import Subject

_LR = 1e-4
_MIM_RATIO, _MAE_RATIO = 0.5, 0.75  # of the patches
_MAE_WIDTH, _MAE_DEPTH, _MAE_HEADS = 2 / 3, 2 / 3, 32  # 512 of 768, 8 of 12; width of a head


@dataclass(frozen=True)
class Alternative:
    """A training step of somebody else's.

    Attributes:
        package: What it needs.
        module: What it imports; to be imported before memory is counted.
        make: Builds the model and returns its step.
    """

    package: Package
    module: str
    make: Callable[[Subject], Work]


def timm(subject: Subject) -> Work:
    """Make the baseline: timm's encoder as it comes, forward and backward on normalised floats.

    Without loss, optimizer or uint8 input.
    """
    device = start(subject.run_config()).device
    model = subject.make_bare().to(device)
    images = torch.randn(_shape(subject), device=device)
    forward: Any = cast(Any, model).forward_features
    if subject.compile:
        forward = torch.compile(forward)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, subject.precision == "bf16"):
            tokens = forward(images)
        tokens.float().mean().backward()
        model.zero_grad()

    return step


def vit_pytorch(subject: Subject) -> Work:
    """Make vit-pytorch's MPP (1.16.0, the last in which it runs) on float images in 0..1.

    Its defaults: 15 % of the patches, masked in pixels; 512 colour classes of all patches. Compiled
    is its transformer alone: the masking writes at boolean indices, which torch.compile does not
    take to the way back.
    """
    sizes = subject.sizes
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    vit: Any = import_module("vit_pytorch").ViT(
        image_size=subject.side,
        patch_size=sizes["patch_size"],
        num_classes=1000,
        dim=width,
        depth=sizes["num_hidden_layers"],
        heads=heads,
        dim_head=width // heads,
        mlp_dim=sizes["intermediate_size"],
    )
    mpp: Any = import_module("vit_pytorch.mpp").MPP
    model: nn.Module = mpp(transformer=vit, patch_size=sizes["patch_size"], dim=width)
    images = torch.rand(_shape(subject))
    return _trained(subject, model, images, lambda model, images: model(images), vit.transformer)


def transformers_mim(subject: Subject) -> Work:
    """Make transformers' ViTForMaskedImageModeling (SimMIM's objective) with half masked."""
    library: Any = import_module("transformers")
    config = library.ViTConfig(**subject.sizes, encoder_stride=subject.sizes["patch_size"])
    num_masked = round(_MIM_RATIO * subject.num_patches)

    def loss(model: nn.Module, images: Tensor) -> Tensor:
        noise = torch.rand(len(images), subject.num_patches, device=images.device)
        masked = noise.argsort(1) < num_masked
        return model(images, bool_masked_pos=masked).loss

    images = torch.randn(_shape(subject))
    return _trained(subject, library.ViTForMaskedImageModeling(config), images, loss)


def transformers_mae(subject: Subject) -> Work:
    """Make transformers' ViTMAEForPreTraining with three quarters masked.

    Its configuration's decoder (512 wide, 8 blocks, heads of 32) belongs to an encoder of 768 and
    12 blocks. Here it keeps those proportions: two thirds of the encoder's width, rounded up to
    heads of 32, and two thirds of its blocks; an MLP of four times the width.
    """
    library: Any = import_module("transformers")
    heads = -(-round(_MAE_WIDTH * subject.sizes["hidden_size"]) // _MAE_HEADS)
    config = library.ViTMAEConfig(
        **subject.sizes,
        mask_ratio=_MAE_RATIO,
        decoder_hidden_size=heads * _MAE_HEADS,
        decoder_num_hidden_layers=max(1, round(_MAE_DEPTH * subject.sizes["num_hidden_layers"])),
        decoder_num_attention_heads=heads,
        decoder_intermediate_size=4 * heads * _MAE_HEADS,
    )
    images = torch.randn(_shape(subject))
    model = library.ViTMAEForPreTraining(config)
    return _trained(subject, model, images, lambda model, images: model(images).loss)


ALTERNATIVES = {
    "vit_pytorch": Alternative(VIT_PYTORCH, "vit_pytorch.mpp", vit_pytorch),
    "transformers_mim": Alternative(
        TRANSFORMERS, "transformers.models.vit.modeling_vit", transformers_mim
    ),
    "transformers_mae": Alternative(
        TRANSFORMERS, "transformers.models.vit_mae.modeling_vit_mae", transformers_mae
    ),
}


def _shape(subject: Subject) -> tuple[int, ...]:
    return subject.batch_size, 3, subject.side, subject.side


def _trained(
    subject: Subject,
    model: Any,
    images: Tensor,
    loss: Callable[[Any, Tensor], Tensor],
    compiled: Any = None,
) -> Work:
    """Return forward, backward and AdamW's step of a model; `compiled` is its part that can be."""
    device = start(subject.run_config()).device
    model.to(device).train()
    images = images.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, fused=True)
    if subject.compile:
        (compiled or model).compile()

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, subject.precision == "bf16"):
            value = loss(model, images)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
