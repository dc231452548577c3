"""A configuration -> the model that a run would train, without data and without weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

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
from pretrain.training.memory import Batch, example_batch


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

    It fine-tunes if a key of fine-tuning alone is set, else it pretrains. What `encoder.init` names
    is loaded, which takes its memory.

    Args:
        arguments: Files and overrides; the data they name are not read.
        num_classes: K of a fine-tuned head.

    Raises:
        UserError: A run would refuse the configuration.
    """
    num_labels: int | None = None
    if _is_finetuning(arguments):
        config = load(FinetuneConfig, [*arguments, "data.train=unread", "data.val=unread"])
        num_labels = num_classes if config.data.multi_label else None
        make = partial(_make_classifier, config, num_classes)
    else:
        config = load(PretrainConfig, [*arguments, "data.shards=unread"])
        make = partial(_make_masked_patch_model, config)
    with torch.device("cpu" if config.encoder.has_weights else "meta"):
        model = make()
    recompute_blocks(model.encoder, config.run.grad_checkpointing)
    make_batch = partial(example_batch, model.encoder, num_labels=num_labels)
    return Built(model, make_batch, config.optim)


def _is_finetuning(arguments: list[str]) -> bool:
    layers = read_layers(arguments)
    data = [layer["data"] for layer in layers if isinstance(layer.get("data"), dict)]
    keys = {key for layer in [*layers, *data] for key in layer}
    return bool({"head", "mix", "train", "val"} & keys)


def _make_masked_patch_model(config: PretrainConfig) -> MaskedPatchModel:
    data = config.data
    encoder = make_encoder(config.encoder, data.size, data.mean, data.std, data.channels)
    return MaskedPatchModel(encoder, config.corruption, config.target, config.light_decoder)


def _make_classifier(config: FinetuneConfig, num_classes: int) -> Classifier:
    data, names = config.data, [str(label) for label in range(num_classes)]
    start = check_start(config.encoder)
    encoder = make_backbone(start, data.size, data.mean, data.std, data.channels)
    return Classifier(encoder, names, config.head, is_multi_label=data.multi_label, mix=config.mix)
