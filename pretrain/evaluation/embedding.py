"""A feature vector of each image by a frozen encoder: for search, clustering, classifiers."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from timm.models.vision_transformer import VisionTransformer

from data.samples import Samples
from data.settings import require
from data.storage.locations import Storage
from pretrain.encoder import load_encoder
from pretrain.encoder.facts import image_size, num_channels
from pretrain.encoder.tokens import choose_attention
from pretrain.evaluation.features import Extracted, extract, make_views
from pretrain.ranks import open_shards
from pretrain.records.bad_samples import say_unusable
from pretrain.training.config import RunConfig
from pretrain.training.launch import start


class Embeddings(NamedTuple):
    """The features of the images that can be read, in listed order.

    Attributes:
        keys: SHARD/KEY of each.
        values: float32 (N, D), or (N, 2D) of both poolings.
    """

    keys: list[str]
    values: np.ndarray


@dataclass(frozen=True)
class EmbedConfig:
    """How features are read.

    Attributes:
        layer: A block from 1 on; 0 is the last.
        pooling: average, class or both.
        batch_size: Images a forward pass on each process.
        workers: Loader processes a rank; 0 decodes in the process itself.
        precision: fp32 or bf16.
    """

    layer: int = 0
    pooling: str = "average"
    batch_size: int = 64
    workers: int = 2
    precision: str = "fp32"

    def __post_init__(self) -> None:
        require(self.batch_size > 0, f"batch_size={self.batch_size} must be above 0")
        require(self.workers >= 0, f"workers={self.workers} is below 0; 0 needs no process")
        require(
            self.precision in ("fp32", "bf16"),
            f"precision={self.precision} is not one of fp32, bf16",
        )


def embed_images(encoder: Any, images: Any, config: EmbedConfig) -> Embeddings:
    """Read the features of all images; those that cannot be read are counted and left out.

    The main process holds all of them, N x D x 4 bytes and twice that for a moment; on the others
    nothing comes back.

    Args:
        encoder: What `load_encoder` takes or gives.
        images: A folder of images, a list of paths, or shards.
        config: How.

    Raises:
        UserError: There are no such images, or the encoder has no such layer or pooling.
        RunStopped: No image can be read, or what the encoder gives is no number.
    """
    accelerator = start(RunConfig(precision=config.precision))
    model = encoder if isinstance(encoder, VisionTransformer) else load_encoder(encoder)
    [view] = make_views(model, [config.layer], [config.pooling], ("layer", "pooling"))
    manifest = open_shards(accelerator, images, "images", Storage())
    samples = Samples(manifest, image_size(model), seed=0, channels=num_channels(model))
    choose_attention(model, accelerator.device, accelerator.mixed_precision)
    model.to(accelerator.device)
    found = extract(
        accelerator, model, samples, [view], config.batch_size, config.workers, "images"
    )
    accelerator.end_training()
    if not accelerator.is_main_process:
        return Embeddings([], np.empty((0, 0), np.float32))
    return _with_names(found, samples)


def _with_names(found: Extracted, samples: Samples) -> Embeddings:
    say_unusable(found.unusable)
    found.unusable.judge(max_ratio=1)
    [features] = found.features.values()
    keys = [samples.name(position) for position in features.positions.tolist()]
    return Embeddings(keys, features.values.numpy())
