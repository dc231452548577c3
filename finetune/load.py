"""Classifiers that are trained already."""

from pathlib import Path

from torch import nn

from data.settings import UserError, require
from finetune.backbone import is_transformer, load_as_saved
from finetune.config import TIMM_POOLINGS, FinetuneConfig, HeadConfig
from finetune.head import MULTI_LABEL, Classifier
from pretrain.configuration.load import load
from pretrain.encoder.facts import image_data
from pretrain.encoder.saved import find_saved
from pretrain.records.checkpoint import find_handed_on
from pretrain.records.kinds import Kind, kind_of_run
from pretrain.training.state import load_weights

_POOLINGS = {timm: ours for ours, timm in TIMM_POOLINGS.items()}


def load_classifier(path: str | Path) -> Classifier:
    """Load a fine-tuned classifier, in evaluation mode.

    Args:
        path: A fine-tuning run's folder, or a folder in timm's format with a head.

    Raises:
        UserError: There is none.
    """
    kind = kind_of_run(path)
    require(
        kind is not Kind.IMAGE_TEXT_TUNING,
        f"{path} classifies images with sentences, and here are images alone; "
        "finetune.vilt.load.load_vilt_classifier loads it",
    )
    model = _load_run(Path(path)) if kind is Kind.FINE_TUNING else _load_folder(path)
    return model.eval()


def _load_run(run: Path) -> Classifier:
    configuration = load(FinetuneConfig, [str(run / "config.yaml")])
    checkpoint = find_handed_on(run)
    encoder = load_as_saved(run)
    names = list(image_data(encoder)["label_names"])
    model = Classifier(
        encoder, names, configuration.head, is_multi_label=configuration.data.multi_label
    )
    load_weights(model, checkpoint)
    return model


def _load_folder(path: str | Path) -> Classifier:
    encoder = load_as_saved(path)
    saved = find_saved(path)
    layer = encoder.get_classifier()
    if saved is None or not isinstance(layer, nn.Linear):
        raise UserError(f"{path} holds an encoder without a classifier; fine-tune it first")
    weights = layer.state_dict()
    numbers = [str(number) for number in range(encoder.num_classes)]
    names = list(image_data(encoder).get("label_names") or numbers)
    pooling = _POOLINGS.get(encoder.global_pool) if is_transformer(encoder) else "average"
    if pooling is None:
        raise UserError(
            f"{path} pools by {encoder.global_pool}, and only {' and '.join(_POOLINGS)} are read "
            "here; load it with timm"
        )
    head = HeadConfig(pooling=pooling)
    is_multi_label = saved.problem_type == MULTI_LABEL
    model = Classifier(encoder, names, head, is_multi_label=is_multi_label)
    model.last_layer.load_state_dict(weights)
    return model
