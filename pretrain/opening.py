"""What a pretraining run reads and is measured by, whatever its objective."""

from collections.abc import Callable
from functools import partial
from typing import Any

from accelerate import Accelerator
from timm.models.vision_transformer import VisionTransformer

from data.demo import ensure_demo_shards
from data.loader import DataConfig, Samples
from data.sequential import SequentialStream, open_sequential
from data.stream import Share, TrainingStream, evaluation_batches
from pretrain.encoder import image_size, num_channels
from pretrain.launch import open_shards
from pretrain.loop import Evaluator, evaluate
from pretrain.probe import Probe
from pretrain.ranks import main_process_first

Illustrate = Callable[[Any], dict[str, Any]]


def open_stream(
    accelerator: Accelerator, config: Any, encoder: VisionTransformer, part: Share
) -> TrainingStream | SequentialStream:
    """Open the training samples of this rank.

    Args:
        accelerator: What `start` gave.
        config: Has `run`, `data` and `optim`.
        encoder: Says the size and channels of images.
        part: This rank's share.
    """
    data: DataConfig = config.data
    main_process_first(accelerator, lambda: ensure_demo_shards(data.shards))
    size, channels = image_size(encoder), num_channels(encoder)
    seed, batch_size = config.run.seed, config.optim.batch_size
    if data.read == "sequential":
        return open_sequential(data, size, seed, batch_size, part, channels)
    shards = open_shards(accelerator, data.shards, "data.shards", data.storage, data.fraction)
    samples = Samples(shards, size, seed, data.crop_area, channels=channels)
    return TrainingStream(samples, batch_size, part, data.workers)


def open_evaluators(
    accelerator: Accelerator,
    config: Any,
    encoder: VisionTransformer,
    part: Share,
    illustrator: Callable[[Samples], Illustrate | None] = lambda _: None,
) -> list[Evaluator]:
    """Open what is measured in between: the validation, and the probe, as asked for.

    Args:
        accelerator: What `start` gave.
        config: Has `run`, `data` and `probe`.
        encoder: What is trained.
        part: This rank's share.
        illustrator: The validation's samples -> what makes pictures for the trackers, or None.
    """
    data, evaluators = config.data, list[Evaluator]()
    if data.val_shards:
        shards = open_shards(accelerator, data.val_shards, "data.val_shards", data.storage)
        size, channels = image_size(encoder), num_channels(encoder)
        samples = Samples(shards, size, config.run.seed, channels=channels)
        batches = partial(evaluation_batches, samples, part, data.workers)
        validate = partial(evaluate, accelerator, batches)
        every = config.run.eval_every
        evaluators.append(Evaluator("val", every, validate, illustrator(samples)))
    if config.probe.train:
        probe = Probe(accelerator, config.probe, data, encoder, part)
        evaluators.append(Evaluator("probe", config.probe.every, probe))
    return evaluators
