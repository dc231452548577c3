"""The stream and the evaluators of a pretraining run, whatever its objective."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.models.vision_transformer import VisionTransformer

from data.config import DataConfig
from data.index.manifest import Manifest
from data.reading.overlap import check_apart, shared_files, shared_shards
from data.resident.images import decode_all, estimate_bytes
from data.resident.samples import ResidentSamples
from data.samples import Samples
from data.sequential.stream import SequentialStream, open_sequential
from data.settings import require
from data.stream import Share, TrainingStream, evaluation_batches
from data.text import count, duration, name_some
from pretrain.encoder.facts import image_size, num_channels
from pretrain.evaluation.config import ProbeConfig
from pretrain.evaluation.probe import Probe, SpectrumProbe
from pretrain.ranks import on_main, open_shards, open_val
from pretrain.training.config import Configured
from pretrain.training.contract import Evaluator
from pretrain.training.memory import free_for_rank
from pretrain.training.validation import validate

logger = logging.getLogger(__name__)

_PART_OF_FREE = 0.25  # of a device's memory that data.resident=auto takes at most
_MOST_BYTES = 1 << 32  # that it takes at most: half a minute of one loader process
_SMALL = 1 << 16  # bytes of an image, 147 px a side: up to there loader processes starve a GPU

Illustrate = Callable[[Any], dict[str, Any]]
MakeSamples = Callable[..., Samples]  # (manifest, size, seed=, channels=, crop_area=), as `Samples`


class Opened(Configured, Protocol):
    """The parts of a pretraining configuration that no objective changes."""

    @property
    def data(self) -> DataConfig:
        """The images."""
        ...

    @property
    def probe(self) -> ProbeConfig:
        """Whether it is learning."""
        ...


def open_images(accelerator: Accelerator, config: Opened) -> Manifest | None:
    """Open the training images; None of a stream, whose images are not known before they come."""
    data = config.data
    if data.read == "sequential":
        return None
    how = data.storage, data.fraction, Path(config.run.dir), data.val_ratio
    return open_shards(accelerator, data.shards, "data.shards", *how)


def keep_images(
    accelerator: Accelerator, config: Opened, images: Manifest | None, encoder: VisionTransformer
) -> MakeSamples:
    """Decode the training images into the device's memory, if `data.resident` asks for it.

    Args:
        accelerator: What `start` gave.
        config: The run's.
        images: What `open_images` gave.
        encoder: Says the channels of images.

    Returns:
        What makes the samples, whose batches are the same wherever the images are.

    Raises:
        UserError: `data.resident=true`, and there is not enough memory.
    """
    data, channels, device = config.data, num_channels(encoder), accelerator.device
    if images is None or data.resident is False:
        return Samples
    is_asked = data.resident is True
    if not is_asked and (device.type == "cpu" or not _is_repeated(config, images)):
        return Samples
    found = on_main(accelerator, lambda: estimate_bytes(images, channels))
    free = free_for_rank(device)
    if is_asked:
        require(
            free is None or found <= free,
            f"data.resident=true: the decoded images take about {_megabytes(found)} on "
            f"{device.type}, where {_megabytes(free or 0)} are free; auto leaves them on disk",
        )
    elif not all(gather_object([is_worth_keeping(found, images.num_samples, free)])):
        return Samples
    decoded = decode_all(images, channels, device, data.workers)
    logger.info(
        "decoded %s once, %s on %s, in %s; data.resident=false reads them in each epoch",
        count(images.num_samples, "image"),
        _megabytes(decoded.pixels.numel()),
        device.type,
        duration(decoded.seconds),
    )
    return partial(ResidentSamples, decoded)


def is_worth_keeping(num_bytes: int, num_images: int, free: int | None) -> bool:
    """Tell whether `data.resident=auto` keeps images on a GPU: they are small, and few enough.

    Args:
        num_bytes: Of all images, decoded.
        num_images: Their number.
        free: Bytes that the device can have; None where nobody can tell.
    """
    most = 0 if free is None else min(_PART_OF_FREE * free, _MOST_BYTES)
    return num_bytes <= min(most, _SMALL * num_images)


def _is_repeated(config: Opened, images: Manifest) -> bool:
    """Tell whether a run passes over its images twice, as one of `run.minutes` is taken to do."""
    steps_per_epoch = -(-images.num_samples // config.optim.num_images)
    return config.optim.steps is None or config.optim.steps >= 2 * steps_per_epoch


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"


def open_stream(
    images: Manifest | None,
    config: Opened,
    encoder: VisionTransformer,
    part: Share,
    make: MakeSamples = Samples,
) -> TrainingStream | SequentialStream:
    """Open the training samples of this rank.

    Args:
        images: What `open_images` gave.
        config: The run's.
        encoder: Says the size and channels of images.
        part: This rank's share.
        make: Makes the samples of images that are indexed, as `keep_images` returns it.
    """
    data = config.data
    size, channels = image_size(encoder), num_channels(encoder)
    seed, batch_size = config.run.seed, config.optim.num_images
    if images is None:
        return open_sequential(data, size, seed, batch_size, part, channels)
    samples = make(images, size, seed=seed, crop_area=data.crop_area, channels=channels)
    return TrainingStream(samples, batch_size, part, 0 if samples.is_in_memory else data.workers)


def open_evaluators(
    accelerator: Accelerator,
    config: Opened,
    encoder: VisionTransformer,
    part: Share,
    stream: TrainingStream | SequentialStream,
    illustrator: Callable[[Samples], Illustrate | None] = lambda _: None,
    make: MakeSamples = Samples,
) -> list[Evaluator]:
    """Open what is measured in between: the validation, and the probes, as asked for.

    Args:
        accelerator: What `start` gave.
        config: The run's.
        encoder: What is trained.
        part: This rank's share.
        stream: What is trained on, which validation must not hold.
        illustrator: The validation's samples -> what makes pictures for the trackers, or None.
        make: Makes the validation's samples.
    """
    data, evaluators = config.data, list[Evaluator]()
    if key := data.val_key:
        images = stream.samples.manifest if isinstance(stream, TrainingStream) else None
        shards = open_val(accelerator, images, data.val_shards, key, data.storage)
        on_main(accelerator, lambda: _check_apart(stream, shards, ("data.shards", key)))
        size, channels = image_size(encoder), num_channels(encoder)
        samples = make(shards, size, seed=config.run.seed, channels=channels)
        batches = partial(evaluation_batches, samples, part, data.workers)
        total = shards.num_samples
        measure = partial(validate, accelerator, batches, key, total)
        every = config.run.eval_every
        evaluators.append(Evaluator("val", every, measure, illustrator(samples)))
    if config.probe.train:
        probe = Probe(accelerator, config.probe, data, encoder, part)
        if isinstance(stream, TrainingStream):
            _say_seen(stream.samples.manifest, probe.val)
        evaluators.append(Evaluator("probe", config.probe.every, probe))
    if config.probe.images:
        spectrum = SpectrumProbe(accelerator, config.probe, data, encoder, part)
        evaluators.append(Evaluator("probe", config.probe.every, spectrum))
    return evaluators


def _check_apart(
    stream: TrainingStream | SequentialStream, val: Manifest, keys: tuple[str, str]
) -> None:
    """Refuse shards that are trained on and validated on; warn of images that are."""
    if isinstance(stream, TrainingStream):
        check_apart(stream.samples.manifest, val, keys)
        return
    # nothing is known of a stream's samples before they are read
    shared = shared_files([source.location for source in stream.reading.sources], val.shards)
    require(
        not shared,
        f"{name_some(shared)} would be trained on and validated on; leave it out of "
        f"{' or '.join(keys)}",
    )


def _say_seen(train: Manifest, val: Manifest) -> None:
    """Say that a probe is judged on images that the encoder sees, if only without labels."""
    if number := len(shared_shards(train.shards, val.shards)):
        logger.warning(
            "probe.val: %s also in data.shards, so the encoder is trained on its images, without "
            "their labels; the probe's figures may be better than on other images",
            f"{count(number, 'shard')} {'is' if number == 1 else 'are'}",
        )
