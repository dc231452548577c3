"""What every measure of a frozen encoder begins with, and what it says of the images it used."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from accelerate import Accelerator
from tqdm import tqdm

from data.config import LabelledDataConfig
from data.index.manifest import Manifest
from data.text import count
from finetune.backbone import check_start, refuse_masking
from finetune.config import LayersConfig
from finetune.results import describe_encoder, open_folder, result_folder
from pretrain.encoder import EncoderConfig
from pretrain.encoder.tokens import choose_attention
from pretrain.machine.cores import loader_processes
from pretrain.ranks import on_main
from pretrain.records.bad_samples import judge
from pretrain.training.config import RunConfig
from pretrain.training.launch import count_parameters, describe_start, local_ranks, start

logger = logging.getLogger(__name__)


class MeasureConfig(Protocol):
    """The parts of a configuration that every measure has."""

    @property
    def data(self) -> LabelledDataConfig:
        """The images."""
        ...

    @property
    def encoder(self) -> EncoderConfig:
        """The network, and where it comes from."""
        ...

    @property
    def frozen(self) -> LayersConfig:
        """How features are read."""
        ...


class Opened(NamedTuple):
    """What a measure reads with.

    Attributes:
        accelerator: What `start` gave.
        data: The images' keys, the number of loader processes settled.
        encoder: On the CPU.
    """

    accelerator: Accelerator
    data: Any
    encoder: Any


def open_encoder(config: MeasureConfig, make: Callable[..., Any]) -> Opened:
    """Start the processes, and build the encoder.

    Args:
        config: What is asked for.
        make: `make_encoder`, or `make_backbone` where a CNN is measured too.

    Raises:
        UserError: There is no such encoder, or it cannot take such images.
    """
    frozen, data = config.frozen, config.data
    accelerator = start(_run_config(frozen), frozen.group)
    workers = loader_processes(data.workers, accelerator.device.type, local_ranks())
    refuse_masking(config.encoder)
    start_of = check_start(config.encoder)
    encoder = make(start_of, data.size, data.mean, data.std, data.channels)
    return Opened(accelerator, replace(data, workers=workers), encoder)


def claim_folder(opened: Opened, config: MeasureConfig) -> tuple[Path, dict[str, Any]]:
    """Make the folder of the result; return it with what `result.json` says of the encoder.

    Raises:
        UserError: It cannot be written, or holds another encoder's result.
    """
    frozen = config.frozen
    folder = result_folder(frozen.dir, frozen.group, config.encoder)
    about = describe_encoder(config.encoder, opened.encoder)
    key = f"{frozen.group}.dir={folder}"
    on_main(opened.accelerator, lambda: open_folder(folder, key, about))
    return folder, about


def begin_reading(opened: Opened, frozen: LayersConfig, num_train: int, num_val: int) -> None:
    """Say in one line what is read with what, and move the encoder to its device."""
    accelerator, data, encoder = opened
    logger.info(
        "start: %s; %s to learn from and %s to judge by; %s",
        describe_start(accelerator, _run_config(frozen), data.workers),
        count(num_train, "image"),
        count(num_val, "image"),
        count_parameters(encoder),
    )
    choose_attention(encoder, accelerator.device, accelerator.mixed_precision)
    encoder.to(accelerator.device)


def count_images(key: str, images: Manifest, used: int, max_bad_ratio: float) -> dict[str, Any]:
    """Count the images of a split, and hash them; stop where too many are unusable.

    Args:
        key: The split's: train or val.
        images: All of them.
        used: How many could be used.
        max_bad_ratio: `data.max_bad_ratio`.

    Raises:
        RunStopped: More are bad, or all are.
    """
    bad = images.num_samples - used
    judge(bad, images.num_samples, max_bad_ratio, f"samples of data.{key}")
    return {f"num_{key}": used, f"num_bad_{key}": bad, f"data.{key}.sha256": images.content}


def show_fits(num_fits: int) -> "tqdm[Any]":
    """Return a bar of the fits; where there is no terminal, one line says that they begin."""
    logger.info("fitting %s on these features", count(num_fits, "classifier"))
    return tqdm(desc="fits", total=num_fits, unit="fit", miniters=0, leave=False, disable=None)


def say_fitted(progress: "tqdm[Any]", what: str) -> None:
    """Say that a head is judged, where there is no terminal for the bar."""
    if progress.disable:
        logger.info("%s", what)


def say_edges(key: str, tried: Sequence[float], chosen: Sequence[float]) -> None:
    """Say where the lowest or highest value of a key was chosen: beyond it may lie a better one.

    Args:
        key: Whose values they are.
        tried: Its values.
        chosen: One of them for each classifier.
    """
    for name, edge in (("lowest", min(tried)), ("highest", max(tried))):
        number = sum(value == edge for value in chosen)
        if number and len(set(tried)) > 1 and edge > 0:
            logger.info(
                "%s: the %s, %g, was chosen for %d of %s; values beyond it may do better",
                *(key, name, edge, number, count(len(chosen), "classifier")),
            )


def _run_config(frozen: LayersConfig) -> RunConfig:
    return RunConfig(seed=0, precision=frozen.precision, threads=frozen.threads)
