"""The costs of a model: parameters, operations and memory, counted without running it.

A forward and a backward pass run on torch's fake tensors: the meta device's shapes with the name of
a device, so that autocast and the fused attention choose the same kernels as with real ones. The
bytes saved for the backward pass are then those of real tensors, to the byte (tested).
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from finetune.backbone import flops_per_image
from pretrain.encoder.facts import grid_size, image_data, image_size, patch_size
from pretrain.training.memory import count_saved_bytes, count_state_bytes
from pretrain.training.utilisation import step_flops as count_step
from scripts._describe.building import Built

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Transformer:
    """The shape of a VisionTransformer.

    Attributes:
        patch: Pixels (height, width) of a patch.
        grid: Rows and columns of patches.
        tokens: T.
        tokens_in_training: T of a training step; fewer where masked patches do not enter.
    """

    width: int
    depth: int
    heads: int
    patch: tuple[int, int]
    grid: tuple[int, int]
    tokens: int
    tokens_in_training: int


@dataclass(frozen=True)
class Costs:
    """The costs of a model.

    Attributes:
        name: timm's name of the encoder.
        image: (H, W).
        transformer: None of another model.
        encoder_parameters: A classifier that is the encoder's own head among them.
        other_parameters: Heads, decoder and mask embedding.
        encoder_flops: Of a forward pass of one image through the encoder, all patches.
        step_flops: Of a training step, forward and backward, an image; what is computed a second
            time is left out. None: not asked for.
        batch: Images a forward pass.
        state_bytes: Weights, gradients and the optimizer's moments, fp32.
        saved_bytes: What a forward pass keeps for the backward pass, by precision.
    """

    name: str
    image: tuple[int, int]
    transformer: Transformer | None
    encoder_parameters: int
    other_parameters: int
    encoder_flops: int
    step_flops: int | None
    batch: int
    state_bytes: int
    saved_bytes: dict[str, int]


def measure(built: Built, batch: int, *, has_step: bool = True) -> Costs:
    """Count what a model costs when it is trained on `batch` images at once.

    Args:
        built: What is trained. Its weights are given up.
        batch: Images a forward pass.
        has_step: Count the operations of a training step, which takes the most time here.
    """
    model, encoder = built.model, built.model.encoder
    encoder_parameters = _num_parameters(encoder)
    other_parameters = _num_parameters(model) - encoder_parameters
    state_bytes = count_state_bytes(model, built.optim)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")  # fake as well
        images = built.make_batch(batch)
        with _seen_tokens(encoder) as seen:
            saved = {name: count_saved_bytes(model, images, name) for name in PRECISIONS}
        step_flops = None
        if has_step:
            step_flops = count_step(model, images) // batch
        encoder_flops = flops_per_image(encoder)
    return Costs(
        str(image_data(encoder)["architecture"]),
        image_size(encoder),
        _shape_of(encoder, seen[0]) if seen else None,
        encoder_parameters,
        other_parameters,
        encoder_flops,
        step_flops,
        batch,
        state_bytes,
        saved,
    )


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def _seen_tokens(encoder: nn.Module) -> Generator[list[int]]:
    """Note how many tokens enter the first block, at each pass."""
    seen: list[int] = []
    if not isinstance(encoder, VisionTransformer):
        yield seen
        return

    def note(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0].shape[1])

    hook = encoder.blocks[0].register_forward_pre_hook(note)
    yield seen
    hook.remove()


def _shape_of(encoder: Any, tokens_in_training: int) -> Transformer:
    rows, columns = grid_size(encoder)
    return Transformer(
        encoder.embed_dim,
        len(encoder.blocks),
        encoder.blocks[0].attn.num_heads,
        patch_size(encoder),
        (rows, columns),
        encoder.num_prefix_tokens + rows * columns,
        tokens_in_training,
    )
