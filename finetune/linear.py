"""A linear probe as a classifier: saved for predict and export, or the head that tuning starts at.

Source of the second: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and
Underperform Out-of-Distribution", arXiv:2202.10054.
"""

import logging
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator

from data.disks import explain
from data.samples import Samples
from data.settings import RunStopped, require
from finetune.backbone import is_transformer
from finetune.config import TIMM_POOLINGS, FinetuneConfig, HeadConfig
from finetune.frozen.measure import Measurement
from finetune.head import Classifier
from pretrain.encoder import save_encoder
from pretrain.encoder.encoder import keep_blocks
from pretrain.evaluation.classifiers import Linear, Probe, linear_probe
from pretrain.evaluation.features import View, extract
from pretrain.ranks import on_main
from pretrain.records.bad_samples import say_unusable
from pretrain.records.checkpoint import has_intact

logger = logging.getLogger(__name__)

_FOLDER = "classifier"
_NO_CLASS = -100.0  # the logit of a class without a training image
_BATCH = 64  # images of a forward pass


def set_head(model: Classifier, probe: Linear) -> None:
    """Give a classifier a probe's weights as its last layer, so that it answers as the probe does.

    Classes after the last that has a training image, which a probe does not know, get no chance.
    """
    weight, bias = (part.cpu() for part in probe.folded())
    own = model.last_layer
    with torch.no_grad():
        own.weight.zero_()
        own.weight[: len(weight)] = weight.to(own.weight)
        own.bias.fill_(_NO_CLASS)
        own.bias[: len(bias)] = bias.to(own.bias)


# ---------------------------------------------------------------- saved


def save_best(found: Measurement, probes: dict[View, Probe]) -> Path | None:
    """Save the probe of the least loss on the held-out tenth, in the format of a fine-tuned model.

    The encoder ends at the layer that the probe reads. `pooling=both` is passed over: timm's format
    pools in one way.

    Args:
        found: The measure.
        probes: The linear probes of its cells.

    Returns:
        The folder; None if every probe reads both poolings, or there is none.

    Raises:
        RunStopped: It cannot be written.
    """
    kept = {view: probe for view, probe in probes.items() if view.pooling in TIMM_POOLINGS}
    if not kept:
        if probes:
            logger.info("no classifier is saved: timm's format has no probe.poolings=[both]")
        return None
    best = min(kept, key=lambda view: kept[view].held_out)  # the first, where none was held out
    encoder = found.encoder.cpu()
    keep_blocks(encoder, best.layer)
    model = Classifier(encoder, found.class_names, HeadConfig(pooling=best.pooling))
    set_head(model, kept[best].classifier)
    folder = found.folder / _FOLDER
    _write(model, folder)
    return folder


def _write(model: Classifier, folder: Path) -> None:
    new = folder.with_name(f".{folder.name}-new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        save_encoder(model.encoder, new)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    except OSError as error:
        raise RunStopped(
            f"the classifier cannot be written to {folder}: {explain(error)}"
        ) from error


# ---------------------------------------------------------------- the start of fine-tuning


def check_head_init(config: FinetuneConfig, model: Classifier) -> None:
    """Raise `UserError` where a head cannot start at a linear probe."""
    if config.head.init != "probe":
        return
    what = "head.init=probe starts at a linear probe"
    require(
        is_transformer(model.encoder),
        f"{what} of a VisionTransformer, and encoder.name={config.encoder.name} is none; "
        "use head.init=zeros",
    )


def start_at_probe(
    accelerator: Accelerator, config: FinetuneConfig, model: Classifier, samples: Samples
) -> None:
    """Fit a linear probe on the training images, and let the head start at it.

    The weights of the classes (`data.balance`) count in the probe too. A run that goes on has its
    head in its checkpoint; nothing is fitted then.

    Args:
        accelerator: What `start` gave.
        config: All that the run is told; `head.init=zeros` leaves the head as it is.
        model: The classifier, as it begins.
        samples: The training images, cut as in validation.

    Raises:
        RunStopped: None of the images can be used.
    """
    folder = Path(config.run.dir)
    if config.head.init != "probe" or on_main(accelerator, lambda: has_intact(folder)):
        return
    logger.info("fitting the linear probe that the head starts at")
    view = View(len(model.encoder.blocks), config.head.pooling)
    encoder = model.encoder.to(accelerator.device)
    workers = config.data.workers
    found = extract(accelerator, encoder, samples, [view], _BATCH, workers, "data.train")
    say_unusable(found.unusable)
    found.unusable.judge(config.data.max_bad_ratio)
    model.encoder.cpu()

    def fit() -> Linear:
        features, weights = found.features[view], model.class_loss.class_weights
        if weights is not None:
            weights = weights.to(features.values.device, torch.float64)
        return linear_probe(features, class_weights=weights).classifier

    set_head(model, on_main(accelerator, fit))
