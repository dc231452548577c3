"""Features that are kept on disk, under the fingerprint of all that they depend on."""

import logging
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer

from data.disks import explain
from data.samples import Samples
from data.shards import atomic_write
from data.text import count
from pretrain.evaluation.features import Features, View, extract
from pretrain.evaluation.fingerprint import fingerprint
from pretrain.ranks import on_main
from pretrain.records.bad_samples import say_unusable

logger = logging.getLogger(__name__)


def cached_features(
    accelerator: Accelerator,
    encoder: VisionTransformer,
    samples: Samples,
    views: Sequence[View],
    folder: Path,
    key: str,
    batch_size: int,
    workers: int,
) -> dict[View, Features]:
    """Read the features of a split from disk, or from the images, and keep them.

    Args:
        accelerator: What `start` gave.
        encoder: On this rank's device.
        samples: Labelled, in listed order.
        views: What is read.
        folder: Where features are kept.
        key: The split's: train or val.
        batch_size: Images a forward pass on each rank.
        workers: Loader processes a rank.

    Returns:
        On the main process the features, on the CPU; on the others nothing.
    """
    encoder.eval()
    digest = fingerprint(encoder, samples, views, accelerator.mixed_precision)
    path = folder / f"{key}-{digest[:16]}.safetensors"
    found = read_features(path, digest, views) if accelerator.is_main_process else {}
    if on_main(accelerator, lambda: bool(found)):
        for features in list(found.values())[:1]:
            missing = samples.manifest.num_samples - len(features.labels)
            bad = f" ({count(missing, 'image')} cannot be used)" if missing else ""
            logger.info("the features of data.%s are taken from %s%s", key, path, bad)
        return found
    logger.info("reading the features of data.%s", key)
    made = extract(accelerator, encoder, samples, views, batch_size, workers, f"data.{key}")
    say_unusable(made.unusable)
    if accelerator.is_main_process:
        _keep(path, digest, made.features)
    return made.features


def read_features(path: Path, expected: str, views: Sequence[View]) -> dict[View, Features]:
    """Read a file of features; nothing if there is none, it is torn, or it is of something else."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("fingerprint") != expected:
                return {}
            labels, positions = file.get_tensor("labels"), file.get_tensor("positions")
            return {
                view: Features(file.get_tensor(_name(view)), labels, positions) for view in views
            }
    except (OSError, SafetensorError) as error:
        logger.warning("%s cannot be read, so the features are made anew: %s", path, error)
        return {}


def _keep(path: Path, digest: str, features: dict[View, Features]) -> None:
    """Write features, whole or not at all; a disk that is full costs the next start alone."""
    any_view = next(iter(features.values()))
    tensors = {"labels": any_view.labels, "positions": any_view.positions}
    tensors |= {_name(view): of.values for view, of in features.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(save(tensors, {"fingerprint": digest}))
    except OSError as error:
        logger.warning("the features are not kept in %s: %s", path, explain(error))


def _name(view: View) -> str:
    return f"{view.layer}/{view.pooling}"
