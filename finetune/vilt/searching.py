"""Image-text retrieval on all ranks: every image with every caption, and the best pairs again."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
from finetune.results import open_folder
from finetune.vilt.found import Found, found_of
from finetune.vilt.gallery import Gallery, open_gallery
from finetune.vilt.reranking import candidates_of
from finetune.vilt.scoring import Scorer
from pretrain.encoder.facts import image_size, num_channels, patch_size
from pretrain.encoder.tokens import choose_attention
from pretrain.evaluation.fingerprint import identity
from pretrain.machine.cores import loader_processes
from pretrain.ranks import on_main, open_shards
from pretrain.records.bad_samples import Unusable, say_unusable
from pretrain.training.config import RunConfig
from pretrain.training.device import Copies
from pretrain.training.launch import local_ranks, start
from pretrain.vilt.pairs import ImageTokens
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
        rerank: How many best answers of each query are ordered again by their words; 0: none.
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
    rerank: int = 0


def search(config: RetrieveConfig) -> Found | None:
    """Score all images with all captions, and with `config.rerank` the best pairs again.

    Returns:
        What was found; None on all ranks but the first.

    Raises:
        UserError: There is no such model, its heads or its captions are missing, or it would take
            too long.
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
    scorer = Scorer(accelerator, vilt.model, gallery, config.batch_size)
    passes = _Passes(accelerator, config, samples, gallery, scorer)
    scores, bad = passes.match()
    likelihoods = passes.read_again(scores) if config.rerank and scores else None
    accelerator.end_training()
    if not accelerator.is_main_process:
        return None
    unusable = Unusable("SHARDS", number, bad)
    say_unusable(unusable)
    unusable.judge(max_ratio=1)
    names = {position: samples.name(position) for position in scores}
    about |= {"number": number, "num_bad": len(bad), "rerank": config.rerank}
    return found_of(scores, likelihoods, names, gallery, about)


def _load(config: RetrieveConfig) -> Vilt:
    """Load the model, and read captions as it is told."""
    vilt = load_vilt(config.run)
    require(
        vilt.model.matching is not None,
        f"RUN={config.run} was trained with loss.matching=0, and its head of matching is what "
        "scores pairs; train one: pretrain/vilt/run.py encoder.init=RUN loss.words=0",
    )
    require(
        vilt.model.words is not None or not config.rerank,
        f"--rerank={config.rerank} orders by the words of a caption, and RUN={config.run} was "
        "trained with loss.words=0; leave --rerank out, or name a run with both",
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


class _Passes(NamedTuple):
    """The passes over the images, which the ranks share."""

    accelerator: Accelerator
    config: RetrieveConfig
    samples: CaptionedSamples
    gallery: Gallery
    scorer: Scorer

    def match(self) -> tuple[dict[int, np.ndarray], list[LedgerEntry]]:
        """Return scores (U,) by the images' positions, of all ranks, and what is bad."""
        rows, bad = list[tuple[int, np.ndarray]](), list[Any]()
        with self._bar("image") as bar:
            for step, (images, batch) in enumerate(self._batches()):
                if step == 0:
                    self._announce(on_main(self.accelerator, partial(self.scorer.seconds, images)))
                for slot, position in self._used(batch):
                    rows.append((position, self.scorer.match(images, slot)))
                    bar.update()
                bad += [entry for entry in batch.bad if (entry.position or 0) < self._number]
        return dict(gather_object(rows)), gather_object(bad)

    def read_again(self, scores: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Return log likelihoods (U,) of captions by the images' positions, of all ranks.

        They are of the best pairs, and NaN for all others.
        """
        used = sorted(scores)
        is_owned = self.gallery.owned[used].any(axis=0)
        owned_scores = np.where(is_owned, [scores[position] for position in used], -np.inf)
        is_best = candidates_of(owned_scores, self.config.rerank) & is_owned
        best = dict(zip(used, map(np.flatnonzero, is_best), strict=True))
        rows: list[tuple[int, np.ndarray]] = []
        with self._bar("image read again") as bar:
            for images, batch in self._batches():
                for slot, position in self._used(batch):
                    captions = best[position]
                    row = np.full(len(self.gallery.tokens), np.nan, np.float32)
                    row[captions] = self.scorer.likelihood(images, slot, captions)
                    rows.append((position, row))
                    bar.update()
        return dict(gather_object(rows))

    @property
    def _number(self) -> int:
        return len(self.gallery.owned)

    def _batches(self) -> Iterator[tuple[ImageTokens, Batch]]:
        """Yield this rank's batches of images, embedded and as they were read."""
        world = self.accelerator.num_processes
        part = Share(self.accelerator.process_index, world, _IMAGES)
        device = self.accelerator.device
        workers = loader_processes(self.config.workers, device.type, local_ranks())
        copy = Copies(device)
        for batch in evaluation_batches(self.samples, part, workers, self._number):
            yield self.scorer.embed(copy(batch.tensors)), batch

    def _used(self, batch: Batch) -> Iterator[tuple[int, int]]:
        """Yield the slot and the position of each sample that can be used."""
        slots = np.flatnonzero(batch.tensors["weight"].numpy() > 0).tolist()
        for slot, place in zip(slots, batch.places, strict=True):
            if place.position < self._number:
                yield slot, place.position

    def _bar(self, unit: str) -> Any:
        """Make the progress bar of this rank's images, which the first rank shows."""
        total = -(-self._number // self.accelerator.num_processes)
        is_hidden = None if self.accelerator.is_main_process else True
        return tqdm(total=total, unit=unit, delay=2, disable=is_hidden)

    def _announce(self, seconds_a_pass: float) -> None:
        """Say how many pairs there are and how long they take; refuse what takes too long."""
        number, num_captions = self._number, len(self.gallery.tokens)
        config = self.config
        num_passes = number * num_captions
        pairs = (
            f"{count(number, 'image')} x {count(num_captions, 'distinct caption')} = "
            f"{count(num_passes, 'pair')}"
        )
        if config.rerank:
            of_images, of_captions = (min(config.rerank, n) for n in (num_captions, number))
            num_best = min(number * of_images + num_captions * of_captions, num_passes)
            num_passes += num_best * self.scorer.num_masks
            pairs += f", of which at most {num_best:,} are read {self.scorer.num_masks} times again"
        seconds = seconds_a_pass * num_passes / self.accelerator.num_processes
        if seconds > 3600 * config.hours:
            raise UserError(
                f"{pairs} would take about {duration(seconds)}, over --hours={config.hours:g}; "
                f"raise it, or lower --number={config.number}: half of it takes a quarter"
            )
        if self.accelerator.is_main_process:
            _logger.info("%s: about %s", pairs, duration(seconds))
            if self.gallery.num_cut:
                cut = count(self.gallery.num_cut, "caption")
                _logger.warning("%s cut: more pieces than the run's data.max_tokens", cut)
