"""What a classifier of images and sentences begins from, or begins like: an image-text model."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from data.captions.config import CaptionConfig
from data.captions.vocabulary import Vocabulary
from data.settings import UserError, require
from finetune.vilt.config import ViltFinetuneConfig
from pretrain.configuration.load import load
from pretrain.encoder import EncoderConfig
from pretrain.vilt.config import ViltConfig
from pretrain.vilt.huggingface import find_vilt
from pretrain.vilt.saved import is_run
from pretrain.vilt.vocabulary import vocabulary_of

_THEIRS = CaptionConfig()  # transformers' ViLT: 40 tokens, images of one size as the simple form


class Source(NamedTuple):
    """An image-text model as the beginning of another.

    Attributes:
        vocabulary: Of its captions.
        data: How it takes captions and images.
    """

    vocabulary: Vocabulary
    data: CaptionConfig


def open_source(config: EncoderConfig) -> Source:
    """Find what `encoder.init` or `encoder.like` names.

    Raises:
        UserError: Neither is given, or it is no image-text model.
    """
    key, path = ("init", config.init) if config.like is None else ("like", config.like)
    if path in (None, "none"):
        raise UserError(
            "encoder.init is missing; give encoder.init=RUN, a run.dir of pretrain/vilt/run.py, to "
            "start from its weights, or encoder.like=RUN to train the same from scratch"
        )
    require(
        is_run(path) or find_vilt(path) is not None,
        f"encoder.{key}={path} is no image-text run; name a run.dir of pretrain/vilt/run.py",
    )
    vocabulary = vocabulary_of(path, f"encoder.{key}")
    file = Path(path, "config.yaml")
    return Source(vocabulary, load(ViltConfig, [str(file)]).data if is_run(path) else _THEIRS)


def follow(config: ViltFinetuneConfig, source: Source) -> ViltFinetuneConfig:
    """Fill in what the configuration leaves to the source: tokens, and the images' form."""
    data, own = config.data, source.data
    if data.max_tokens is None:
        data = replace(data, max_tokens=own.max_tokens)
    if data.long_side is None:
        data = replace(data, long_side=own.long_side, max_patches=own.max_patches)
    encoder = replace(config.encoder, init=config.encoder.init or "none")
    return replace(config, data=data, encoder=encoder)
