"""A configuration -> the model that a run would train, without data and without weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from data.captions.vocabulary import Vocabulary
from data.settings import require
from finetune.backbone import check_start, make_backbone
from finetune.config import FinetuneConfig
from finetune.head import Classifier
from pretrain.config import PretrainConfig
from pretrain.configuration.layers import read_layers
from pretrain.configuration.load import load
from pretrain.encoder import make_encoder
from pretrain.encoder.recompute import recompute_blocks
from pretrain.objective.model import MaskedPatchModel
from pretrain.training.config import OptimConfig
from pretrain.training.examples import Batch, batch_of
from pretrain.vilt.building import canvas_of, pieces_of
from pretrain.vilt.config import ViltConfig
from pretrain.vilt.model import ViltModel
from pretrain.vilt.pairs import Pieces

_OF_CAPTIONS = {"text", "loss", "max_tokens", "vocabulary", "vocabulary_size", "long_side"}
_OF_LABELS = {"head", "mix", "train", "val"}
_NUM_SPECIAL = 5  # of a vocabulary that is learnt


@dataclass(frozen=True)
class Built:
    """The model that a run would train.

    Attributes:
        model: Takes a batch, and holds the encoder as `model.encoder`. Its weights lie on the meta
            device, which holds shapes alone, unless `encoder.init` loaded them.
        make_batch: The number of images -> a batch of zeros.
        optim: What trains it.
    """

    model: Any
    make_batch: Callable[[int], Batch]
    optim: OptimConfig


def build(arguments: list[str], num_classes: int) -> Built:
    """Build what `[CONFIG.yaml ...] [key.sub=value ...]` would train.

    It fine-tunes if a key of fine-tuning alone is set, else it pretrains: on images and captions if
    a key of that alone is set. What `encoder.init` names is loaded, which takes its memory.

    Args:
        arguments: Files and overrides; the data they name are not read.
        num_classes: K of a fine-tuned head.

    Raises:
        UserError: A run would refuse the configuration.
    """
    groups = _groups(arguments)
    if groups & _OF_CAPTIONS:
        require(
            not groups & _OF_LABELS,
            "fine-tuning on images and sentences is not described here; describe the image-text "
            "pretraining that it starts from",
        )
        return _build_pairs(load(ViltConfig, [*arguments, "data.shards=unread"]))
    if groups & _OF_LABELS:
        config = load(FinetuneConfig, [*arguments, "data.train=unread", "data.val=unread"])
        make = partial(_make_classifier, config, num_classes)
    else:
        config = load(PretrainConfig, [*arguments, "data.shards=unread"])
        make = partial(_make_masked_patch_model, config)
    with torch.device("cpu" if config.encoder.has_weights else "meta"):
        model = make()
    recompute_blocks(model.encoder, config.run.grad_checkpointing)
    return Built(model, partial(batch_of, model), config.optim)


def _groups(arguments: list[str]) -> set[str]:
    """Return the groups of keys that are set, and the keys of `data`."""
    layers = read_layers(arguments)
    data = [layer["data"] for layer in layers if isinstance(layer.get("data"), dict)]
    return {key for layer in [*layers, *data] for key in layer}


def _build_pairs(config: ViltConfig) -> Built:
    """Build a model of images and captions, with as many word pieces as may be learnt."""
    data, size = config.data, config.data.vocabulary_size
    pieces = Pieces(size, 0, 4, frozenset(range(_NUM_SPECIAL)))
    if data.vocabulary is not None:
        pieces = pieces_of(Vocabulary.load(data.vocabulary))
    with torch.device("cpu" if config.encoder.has_weights else "meta"):
        encoder = make_encoder(config.encoder, data.size, data.mean, data.std, data.channels)
        model = ViltModel(
            encoder,
            pieces,
            data.max_tokens,
            config.text,
            config.loss,
            (config.corruption, config.target),
            canvas_of(data),
        )
    recompute_blocks(model.encoder, config.run.grad_checkpointing)
    return Built(model, model.example_batch, config.optim)


def _make_masked_patch_model(config: PretrainConfig) -> MaskedPatchModel:
    data = config.data
    encoder = make_encoder(config.encoder, data.size, data.mean, data.std, data.channels)
    return MaskedPatchModel(encoder, config.corruption, config.target, config.light_decoder)


def _make_classifier(config: FinetuneConfig, num_classes: int) -> Classifier:
    data, names = config.data, [str(label) for label in range(num_classes)]
    start = check_start(config.encoder)
    encoder = make_backbone(start, data.size, data.mean, data.std, data.channels)
    return Classifier(encoder, names, config.head, is_multi_label=data.multi_label, mix=config.mix)
