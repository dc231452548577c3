"""From a run's configuration: the model and the samples."""

from typing import Any

from timm.models.vision_transformer import VisionTransformer

from data.captions.check import check_captions
from data.captions.config import CaptionConfig
from data.captions.samples import CaptionedSamples
from data.captions.vocabulary import Vocabulary
from data.index.manifest import Manifest
from pretrain.encoder.facts import patch_size
from pretrain.vilt.config import ViltConfig
from pretrain.vilt.model import ViltModel
from pretrain.vilt.pairs import Canvas, Pieces


def make_model(config: ViltConfig, encoder: VisionTransformer, vocabulary: Vocabulary) -> ViltModel:
    """Make the model, its transformer given.

    Raises:
        UserError: The transformer is none that takes captions, or sizes do not fit together.
    """
    pieces, canvas = pieces_of(vocabulary), canvas_of(config.data)
    patches, most = (config.corruption, config.target), config.data.max_tokens
    return ViltModel(encoder, pieces, most, config.text, config.loss, patches, canvas)


def pieces_of(vocabulary: Vocabulary) -> Pieces:
    """Return what a model is told of a vocabulary."""
    special = frozenset(vocabulary.special)
    return Pieces(vocabulary.size, vocabulary.pad, vocabulary.mask, special)


def canvas_of(data: CaptionConfig) -> Canvas | None:
    """Return how images of their own aspect come; None where all are of one size."""
    return Canvas(data.long_side, data.max_patches) if data.long_side else None


def make_samples(
    config: ViltConfig,
    encoder: VisionTransformer,
    vocabulary: Vocabulary,
    manifest: Manifest,
    size: tuple[int, int],
    *,
    seed: int,
    channels: int,
    crop_area: Any = ...,
) -> CaptionedSamples:
    """Make captioned samples as `pretrain.inputs` asks for samples.

    Args:
        config: The run's.
        encoder: The transformer, of whose patches images of their own aspect are made.
        vocabulary: What the captions are encoded by.
        manifest: The indexed shards.
        size: (H, W) of the images.
        seed: The run's seed.
        channels: Of the images.
        crop_area: Given for training alone.

    Raises:
        UserError: The validation images have no captions.
    """
    is_training = crop_area is not ...
    if not is_training:  # run.py looks at those of training before it learns a vocabulary
        check_captions(manifest, config.data, config.data.val_key)
    return CaptionedSamples(
        manifest,
        size,
        seed=seed,
        vocabulary=vocabulary,
        config=config.data,
        is_training=is_training,
        channels=channels,
        patch_size=patch_size(encoder)[0],
    )
