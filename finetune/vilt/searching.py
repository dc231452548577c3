"""Image-text retrieval by the matching head: every image with every caption, on all ranks."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from data.batch import Batch, LedgerEntry
from data.captions.check import check_captions
from data.captions.samples import CaptionedSamples
from data.index.manifest import Manifest
from data.settings import UserError, require
from data.storage.locations import Storage
from data.stream import Share, evaluation_batches
from data.text import count, duration
from finetune.feature_cache import identity
from finetune.results import open_folder
from finetune.vilt.found import Found, found_of
from finetune.vilt.gallery import Gallery, open_gallery
from finetune.vilt.scoring import Scorer
from pretrain.encoder.facts import image_size, num_channels, patch_size
from pretrain.encoder.tokens import choose_attention
from pretrain.machine.cores import loader_processes
from pretrain.ranks import on_main, open_shards
from pretrain.records.bad_samples import Unusable, say_unusable
from pretrain.training.config import RunConfig
from pretrain.training.device import Copies
from pretrain.training.launch import local_ranks, start
from pretrain.vilt.saved import Vilt, load_vilt

_IMAGES = 8  # that are embedded at a time; ranks share such batches
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrieveConfig:
    """What is searched, and how.

    Attributes:
        run: An image-text run.
        shards: Captioned images.
        folder: For the result.
        number: The first so many samples.
        caption_key: Of KEY.json; None: KEY.txt has the captions.
        batch_size: Captions a forward pass on each process.
        workers: Loader processes a rank.
        precision: fp32 or bf16.
        hours: The most that it may take.
    """

    run: str
    shards: list[str]
    folder: Path
    number: int = 200
    caption_key: str | None = None
    batch_size: int = 64
    workers: int = 0
    precision: str = "fp32"
    hours: float = 1.0


def search(config: RetrieveConfig) -> Found | None:
    """Score all images with all captions.

    Returns:
        What was found; None on all ranks but the first.

    Raises:
        UserError: There is no such model, its head of matching or its captions are missing, or it
            would take too long.
        RunStopped: No sample can be used.
    """
    accelerator = start(RunConfig(precision=config.precision))
    vilt = _load(config)
    manifest = open_shards(accelerator, config.shards, "SHARDS", Storage())
    samples = _make_samples(vilt, manifest)
    number = min(config.number, manifest.num_samples)
    about = {"encoder.init": config.run, "encoder.sha256": identity(vilt.model.encoder)}

    def look() -> Gallery:
        open_folder(config.folder, f"--out={config.folder}", about)
        check_captions(manifest, vilt.config.data, "SHARDS", "--caption-key")
        return open_gallery(manifest, number, vilt.vocabulary, vilt.config.data)

    gallery = on_main(accelerator, look)
    choose_attention(vilt.model, accelerator.device, accelerator.mixed_precision)
    vilt.model.to(accelerator.device)
    scorer = Scorer(accelerator, vilt.model, gallery.tokens, config.batch_size)
    rows, bad = _score_all(accelerator, config, samples, scorer, gallery)
    accelerator.end_training()
    if not accelerator.is_main_process:
        return None
    unusable = Unusable("SHARDS", number, bad)
    say_unusable(unusable)
    unusable.judge(max_ratio=1)
    names = {position: samples.name(position) for position in rows}
    return found_of(rows, names, gallery, about | {"number": number, "num_bad": len(bad)})


def _load(config: RetrieveConfig) -> Vilt:
    """Load the model, and read captions as it is told."""
    vilt = load_vilt(config.run)
    require(
        vilt.model.matching is not None,
        f"RUN={config.run} was trained with loss.matching=0, and its head of matching is what "
        "scores pairs; train one: pretrain/vilt/run.py encoder.init=RUN loss.words=0",
    )
    data = replace(vilt.config.data, long_captions="cut", caption_key=config.caption_key)
    return vilt._replace(config=replace(vilt.config, data=data))


def _make_samples(vilt: Vilt, manifest: Manifest) -> CaptionedSamples:
    encoder = vilt.model.encoder
    return CaptionedSamples(
        manifest,
        image_size(encoder),
        seed=0,
        vocabulary=vilt.vocabulary,
        config=vilt.config.data,
        is_training=False,
        patch_size=patch_size(encoder)[0],
        channels=num_channels(encoder),
    )


# ---------------------------------------------------------------- all pairs


def _score_all(
    accelerator: Accelerator,
    config: RetrieveConfig,
    samples: CaptionedSamples,
    scorer: Scorer,
    gallery: Gallery,
) -> tuple[dict[int, np.ndarray], list[LedgerEntry]]:
    """Return the scores (U,) by the images' positions, of all ranks, and what is bad."""
    part = Share(accelerator.process_index, accelerator.num_processes, _IMAGES)
    workers = loader_processes(config.workers, accelerator.device.type, local_ranks())
    number = len(gallery.owned)
    copy, rows, bad = Copies(accelerator.device), list[tuple[int, np.ndarray]](), list[Any]()
    is_shown = accelerator.is_main_process
    total = -(-number // part.world_size)
    with tqdm(total=total, unit="image", delay=2, disable=None if is_shown else True) as bar:
        for step, batch in enumerate(evaluation_batches(samples, part, workers, number)):
            images = scorer.embed(copy(batch.tensors))
            if step == 0:
                seconds = on_main(accelerator, partial(scorer.seconds_an_image, images))
                _announce(config, gallery, seconds * total, is_shown)
            for slot, position in _used(batch, number):
                rows.append((position, scorer.score(images, slot)))
                bar.update()
            bad += [entry for entry in batch.bad if (entry.position or 0) < number]
    return dict(gather_object(rows)), gather_object(bad)


def _used(batch: Batch, number: int) -> Iterator[tuple[int, int]]:
    """Yield the slot and the position of each sample that can be used."""
    slots = np.flatnonzero(batch.tensors["weight"].numpy() > 0).tolist()
    for slot, place in zip(slots, batch.places, strict=True):
        if place.position < number:
            yield slot, place.position


def _announce(config: RetrieveConfig, gallery: Gallery, seconds: float, is_shown: bool) -> None:
    """Say how many pairs there are and how long they take; refuse what takes too long."""
    number, num_captions = len(gallery.owned), len(gallery.tokens)
    pairs = (
        f"{count(number, 'image')} x {count(num_captions, 'distinct caption')} = "
        f"{count(number * num_captions, 'pair')}"
    )
    if seconds > 3600 * config.hours:
        raise UserError(
            f"{pairs} would take about {duration(seconds)}, over --hours={config.hours:g}; raise "
            f"it, or lower --number={config.number}: half of it takes a quarter"
        )
    if is_shown:
        _logger.info("%s: about %s", pairs, duration(seconds))
        if gallery.num_cut:
            cut = count(gallery.num_cut, "caption")
            _logger.warning("%s cut: more pieces than the run's data.max_tokens", cut)
