"""A configuration -> the model that a run would train, without data and without weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from finetune.backbone import check_start, make_backbone
from finetune.config import FinetuneConfig
from finetune.head import Classifier
from pretrain.config import PretrainConfig
from pretrain.configuration.layers import read_layers
from pretrain.configuration.load import load
from pretrain.encoder import EncoderConfig, make_encoder
from pretrain.encoder.recompute import recompute_blocks
from pretrain.objective.model import MaskedPatchModel
from pretrain.training.config import OptimConfig
from pretrain.training.memory import Batch, example_batch


@dataclass(frozen=True)
class Built:
    """What a run would train.

    Attributes:
        model: Takes a batch, and holds the encoder as `model.encoder`. Its weights lie on the meta
            device, which holds shapes alone, unless `encoder.init` loaded them.
        make_batch: The number of images -> a batch of zeros.
        encoder: What the encoder was asked to be.
        optim: What trains it.
    """

    model: Any
    make_batch: Callable[[int], Batch]
    encoder: EncoderConfig
    optim: OptimConfig


def build(arguments: list[str], num_classes: int) -> Built:
    """Build what `[CONFIG.yaml ...] [key.sub=value ...]` would train.

    It fine-tunes if a key of fine-tuning alone is set, else it pretrains. What `encoder.init` names
    is loaded, which takes its memory.

    Args:
        arguments: Files and overrides; the data they name are not read.
        num_classes: K of a fine-tuned head.

    Raises:
        UserError: A run would refuse the configuration.
    """
    if _is_finetuning(arguments):
        unread = ["data.train=unread", "data.val=unread"]
        return _build_finetuning(load(FinetuneConfig, [*arguments, *unread]), num_classes)
    return _build_pretraining(load(PretrainConfig, [*arguments, "data.shards=unread"]))


def _is_finetuning(arguments: list[str]) -> bool:
    layers = read_layers(arguments)
    data = [layer["data"] for layer in layers if isinstance(layer.get("data"), dict)]
    keys = {key for layer in [*layers, *data] for key in layer}
    return bool({"head", "mix", "train", "val"} & keys)


def _build_pretraining(config: PretrainConfig) -> Built:
    data = config.data
    with _weights_of(config.encoder):
        encoder = make_encoder(config.encoder, data.size, data.mean, data.std, data.channels)
        model = MaskedPatchModel(encoder, config.corruption, config.target, config.light_decoder)
    recompute_blocks(encoder, config.run.grad_checkpointing)

    return Built(model, partial(example_batch, encoder), config.encoder, config.optim)


def _build_finetuning(config: FinetuneConfig, num_classes: int) -> Built:
    data, names = config.data, [str(label) for label in range(num_classes)]
    asked = check_start(config.encoder)
    with _weights_of(asked):
        encoder = make_backbone(asked, data.size, data.mean, data.std, data.channels)
        model: nn.Module = Classifier(
            encoder, names, config.head, is_multi_label=data.multi_label, mix=config.mix
        )
    recompute_blocks(encoder, config.run.grad_checkpointing)

    num_labels = num_classes if data.multi_label else None
    make_batch = partial(example_batch, encoder, num_labels=num_labels)
    return Built(model, make_batch, config.encoder, config.optim)


def _weights_of(encoder: EncoderConfig) -> torch.device:
    """Return where weights are made: nowhere, unless some are loaded."""
    return torch.device("cpu" if encoder.has_weights else "meta")
