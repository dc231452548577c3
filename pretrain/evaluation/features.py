"""Features of images by a frozen encoder, by layer and pooling, in one pass."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from tqdm import tqdm

from data.batch import LedgerEntry
from data.samples import Samples
from data.settings import RunStopped, UserError, require
from data.stream import Share, evaluation_batches
from pretrain.encoder.tokens import Normalise
from pretrain.records.bad_samples import Unusable

POOLINGS = ("average", "class", "both")
PATCHES = "patches"  # in place of a pooling: the features of each patch


class View(NamedTuple):
    """A layer and a pooling whose features are read.

    Attributes:
        layer: 1 is the first block's output, `depth` the last's; the final norm is applied.
        pooling: `average` over the patches; the `class` token, which pretraining by masked patches
            gives no loss; or `both`, side by side. `patches` pools nothing.
    """

    layer: int
    pooling: str


@dataclass(frozen=True)
class Features:
    """Frozen features of the usable images of a split, in listed order.

    Attributes:
        values: float32 (N, D), or (N, 2D) of `both`; of `patches` bf16 (N, P, D), which stay on
            disk until they are indexed.
        labels: int64 (N,).
        positions: int64 (N,), each image's place among all that are listed.
    """

    values: Tensor
    labels: Tensor
    positions: Tensor

    def at(self, positions: Tensor) -> "Features":
        """Return the features of those listed positions that are usable."""
        is_chosen = torch.isin(self.positions, positions.to(self.positions.device))
        return self.where(is_chosen)

    def where(self, is_chosen: Tensor) -> "Features":
        """Return the chosen features, bool (N,)."""
        return Features(self.values[is_chosen], self.labels[is_chosen], self.positions[is_chosen])

    def to(self, device: torch.device) -> "Features":
        """Move them to a device."""
        tensors = {name: getattr(self, name).to(device) for name in vars(self)}
        return replace(self, **tensors)


def make_views(
    encoder: VisionTransformer,
    layers: Sequence[int],
    poolings: Sequence[str],
    keys: tuple[str, str],
) -> list[View]:
    """Return each layer with each pooling.

    Args:
        encoder: Where the layers are.
        layers: Numbers of blocks, from 1; 0 is the last.
        poolings: Some of `POOLINGS`.
        keys: The configuration keys of the two, for messages.

    Raises:
        UserError: The encoder has no such layer or pooling.
    """
    depth = len(encoder.blocks)
    for layer in layers:
        require(
            0 <= layer <= depth, f"{keys[0]}={layer} is not in 1..{depth}, the encoder's blocks"
        )
    for pooling in poolings:
        if pooling not in POOLINGS:
            raise UserError(f"{keys[1]}={pooling} is not one of {', '.join(POOLINGS)}")
        require(
            pooling == "average" or encoder.cls_token is not None,
            f"{keys[1]}={pooling}, but the encoder has no class token; use average",
        )
    views = [View(layer or depth, pooling) for layer in layers for pooling in poolings]
    return list(dict.fromkeys(views))


class PatchSink(Protocol):
    """What takes patches while they are read; all of them would be more than memory holds.

    Attributes:
        layers: Whose patches it takes.
    """

    layers: Sequence[int]

    def write(self, labels: Tensor, positions: Tensor, patches: Tensor) -> None:
        """Take the next usable images on the main process: int64 (B,) twice, bf16 (B, L, P, D)."""
        ...


class Extracted(NamedTuple):
    """The features that were read of a split.

    Attributes:
        features: On the main process, on the CPU; empty on the others.
        unusable: The images without features.
    """

    features: dict[View, Features]
    unusable: Unusable


def extract(
    accelerator: Accelerator,
    encoder: VisionTransformer,
    samples: Samples,
    views: Sequence[View],
    batch_size: int,
    workers: int,
    name: str,
    sink: PatchSink | None = None,
) -> Extracted:
    """Read the features of a split on all ranks; unusable images are named and left out.

    They are the same on any number of ranks: every batch has the same positions there. The main
    process holds all of them, N x D x 4 bytes a view and twice that for a moment.

    Args:
        accelerator: What `start` gave.
        encoder: On this rank's device; left in evaluation mode.
        samples: Labelled, in listed order.
        views: What is read and pooled.
        batch_size: Images a forward pass on each rank.
        workers: Loader processes a rank.
        name: The key of the split, for messages.
        sink: What takes patches in the same pass.

    Raises:
        RunStopped: What the encoder gives is no number, on all ranks.
    """
    parts: list[list[Tensor]] = []
    bad: list[LedgerEntry] = []
    patches = [] if sink is None else [View(layer, PATCHES) for layer in sink.layers]

    def read(images: Tensor, _: Tensor) -> list[Tensor]:
        return pool(encoder, images, [*views, *patches])

    start = 0
    for batch in read_batches(accelerator, encoder, samples, read, batch_size, workers, name):
        bad += batch.bad
        if accelerator.is_main_process:
            about = [batch.weight, batch.label]
            weight, label, *values = [tensor.cpu() for tensor in [*about, *batch.values]]
            parts.append([weight, label, *values[: len(views)]])
            if sink is not None:
                places = weight.nonzero()[:, 0]
                of_layers = torch.stack(values[len(views) :], 1)  # (B, L, P, D)
                sink.write(label[places], start + places, of_layers[places])
            start += len(weight)
    features = _join(parts, views) if accelerator.is_main_process else {}
    return Extracted(features, Unusable(name, samples.manifest.num_samples, gather_object(bad)))


class Gathered(NamedTuple):
    """What was read of a batch of all ranks, rank after rank: the listed order.

    Attributes:
        weight: float32 (B,), 0 of padding and of images that cannot be used.
        label: int64 (B,), or uint8 (B, H, W) of images with masks.
        values: What was read, each (B, ...), or (ranks, ...), on the device.
        bad: The entries of this rank's images that cannot be used.
    """

    weight: Tensor
    label: Tensor
    values: list[Tensor]
    bad: list[LedgerEntry]


@torch.no_grad()
def read_batches(
    accelerator: Accelerator,
    encoder: VisionTransformer,
    samples: Samples,
    read: Callable[[Tensor, Tensor], list[Tensor]],
    batch_size: int,
    workers: int,
    name: str,
    first: int = 0,
) -> Iterator[Gathered]:
    """Yield what a function reads of each batch of a split, gathered, on all ranks.

    Args:
        accelerator: What `start` gave.
        encoder: On this rank's device; left in evaluation mode.
        samples: In listed order.
        read: Normalised images (B, C, H, W) of this rank, and their weights (B,), 0 of padding and
            of what cannot be used -> tensors (B, ...), or of all at once (1, ...); under autocast.
        batch_size: Images a forward pass on each rank.
        workers: Loader processes a rank.
        name: The key of the split, for messages.
        first: The position at which the pass begins.

    Raises:
        RunStopped: What is read is no number, on all ranks.
    """
    encoder.eval()
    normalise = Normalise(encoder).to(accelerator.device)
    share = Share(accelerator.process_index, accelerator.num_processes, batch_size)
    progress = tqdm(
        evaluation_batches(samples, share, workers, first=first),
        f"features of {name}",
        math.ceil((samples.manifest.num_samples - first) / (batch_size * share.world_size)),
        unit="batch",
        delay=2,
        leave=False,
        disable=None if accelerator.is_main_process else True,  # None: where there is no terminal
    )
    for batch in progress:
        images = normalise(batch.tensors["image"].to(accelerator.device))
        about = [batch.tensors[key].to(accelerator.device) for key in ("weight", "label")]
        with accelerator.autocast():
            values = read(images, about[0])
        weight, label, *values = cast(list[Tensor], accelerator.gather([*about, *values]))
        _require_numbers(values, name)
        yield Gathered(weight, label, values, list(batch.bad))


def _require_numbers(values: list[Tensor], name: str) -> None:
    if not all(bool(value.isfinite().all()) for value in values):
        raise RunStopped(
            f"the features of {name} hold what is no finite number: the encoder has diverged; "
            "take one of an earlier checkpoint, or precision fp32",
            is_agreed=True,
        )


class Tokens(NamedTuple):
    """A layer's tokens of a batch, behind the final norm.

    Attributes:
        prefix: (B, P, D): the class token first, then registers; P may be 0.
        patches: (B, N, D).
    """

    prefix: Tensor
    patches: Tensor


def read_tokens(
    encoder: VisionTransformer, images: Tensor, layers: Sequence[int]
) -> dict[int, Tokens]:
    """Normalised images (B, C, H, W) -> the tokens of each of these layers, from 1."""
    layers = sorted(set(layers))
    outputs = encoder.forward_intermediates(
        images,
        indices=[layer - 1 for layer in layers],
        norm=True,
        stop_early=True,
        output_fmt="NLC",
        output_dict=True,
        return_prefix_tokens=True,
        intermediates_only=True,
    )
    found = cast(dict[str, list[Tensor]], outputs)
    patches = found["image_intermediates"]
    prefix = found.get("image_intermediates_prefix") or [of[:, :0] for of in patches]
    return dict(zip(layers, map(Tokens, prefix, patches), strict=True))


def pool(encoder: VisionTransformer, images: Tensor, views: Sequence[View]) -> list[Tensor]:
    """Images -> float32 (B, D) for each view, or (B, 2D); bf16 (B, P, D) of patches."""
    tokens = read_tokens(encoder, images, [view.layer for view in views])
    return [pool_tokens(tokens[view.layer], view.pooling) for view in views]


def pool_tokens(tokens: Tokens, pooling: str) -> Tensor:
    """A layer's tokens -> float32 (B, D), or (B, 2D) of `both`; bf16 (B, P, D) of `patches`."""
    if pooling == PATCHES:
        return tokens.patches.bfloat16()
    if pooling == "average":
        return tokens.patches.float().mean(1)
    # a copy: a view would keep all tokens of all batches, 6 GB of CIFAR-10
    first = tokens.prefix[:, 0].to(torch.float32, copy=True)
    return first if pooling == "class" else torch.cat([tokens.patches.float().mean(1), first], 1)


def _join(parts: list[list[Tensor]], views: Sequence[View]) -> dict[View, Features]:
    """Put the batches together, without padding and unusable images."""
    weight, label, *values = (torch.cat(columns) for columns in zip(*parts, strict=True))
    is_good = weight > 0
    labels, positions = label[is_good], is_good.nonzero()[:, 0]
    return {
        view: Features(value[is_good], labels, positions)
        for view, value in zip(views, values, strict=True)
    }
