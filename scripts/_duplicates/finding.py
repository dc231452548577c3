"""From an encoder and images to the tables and the page of what is alike."""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data.settings import UserError, require
from data.storage.locations import Storage
from data.text import count
from pretrain.encoder.facts import image_size, num_channels
from pretrain.evaluation.embedding import EmbedConfig, open_reading
from pretrain.evaluation.feature_files import read_features, require_place
from pretrain.evaluation.feature_parts import write_embeddings
from pretrain.evaluation.search.pairs import count_search_bytes, find_pairs
from pretrain.ranks import open_shards
from pretrain.training.config import RunConfig
from pretrain.training.launch import start
from scripts._duplicates.archive import Archive
from scripts._duplicates.found import Found
from scripts._duplicates.page import make_duplicates_page
from scripts._duplicates.tables import (
    require_own_files,
    write,
    write_groups,
    write_list,
    write_pairs,
)

_FEATURES = "features.npy"


class Compared(NamedTuple):
    """What is compared, and where.

    Attributes:
        archive: The images.
        path: Of their features.
        device: On which they are compared.
    """

    archive: Archive
    path: Path
    device: torch.device


def find_duplicates(options: argparse.Namespace) -> None:
    """Find the most alike images, and write what is found.

    Args:
        options: Of `scripts/duplicates.py`.

    Raises:
        UserError: There are no such images or features, or too many pairs are alike.
        RunStopped: No image can be read.
    """
    out: Path = options.out
    require_place(out / _FEATURES)
    require_own_files(out, options.keep)
    is_model = Path(options.model).suffix != ".npy"
    compared = _read(options) if is_model else _open(options)
    if compared is None:  # another rank than the first
        return
    names, features = read_features(compared.path, "MODEL")
    positions = compared.archive.find(names, options.model)
    if not is_model:  # else all that can be read were read just now
        compared.archive.require_all(positions, options.model)
    _announce(features, compared.device)
    limits = {"threshold": options.threshold, "top": options.top}
    pairs = find_pairs(features, compared.device, **limits)
    found = Found(compared.archive, names, positions, pairs)
    write_pairs(out / "pairs.csv", found)
    write_groups(out / "groups.csv", found)
    criterion = (
        f"the {options.top:,} most alike"
        if options.threshold is None
        else f"of similarity {options.threshold:g} or more"
    )
    page = make_duplicates_page(found, options.model, criterion, options.show)
    write(out / "pairs.html", page)
    if not len(pairs):
        for best in find_pairs(features, compared.device, top=1).similarity:
            criterion += f" (the most alike two have {best:.4f})"
    print(
        f"pairs: {len(pairs):,}, {criterion}; {count(len(found.members), 'group')} of "
        f"{count(len(found.groups), 'image')}\n"
        f"tables and page: {out}/pairs.csv, groups.csv, pairs.html ({len(page) / 1000:,.0f} kB)"
    )
    if options.keep is not None:
        num = write_list(options.keep, found)
        print(f"without the duplicates: {count(num, 'image')} in {options.keep}")
    if is_model:
        print(f"another threshold needs no images: {out / _FEATURES} in place of MODEL")


def _read(options: argparse.Namespace) -> Compared | None:
    """Read the features of the images by an encoder; nothing on all ranks but the first."""
    config = EmbedConfig(batch_size=options.batch_size, workers=options.workers, mirror=True)
    reading = open_reading(options.model, options.images, config)
    encoder, manifest = reading.encoder, reading.samples.manifest
    archive = Archive(manifest, image_size(encoder), num_channels(encoder))
    _check(options, archive)
    path: Path = options.out / _FEATURES
    if write_embeddings(reading, path) is None:
        return None
    return Compared(archive, path, reading.accelerator.device)


def _open(options: argparse.Namespace) -> Compared:
    """Take features that are there."""
    accelerator = start(RunConfig())
    if accelerator.num_processes > 1:
        raise UserError(
            f"MODEL={options.model} has features, which one process compares; start it without a "
            "launcher"
        )
    archive = Archive(open_shards(accelerator, options.images, "IMAGES", Storage()))
    _check(options, archive)
    return Compared(archive, Path(options.model), accelerator.device)


def _check(options: argparse.Namespace, archive: Archive) -> None:
    require(
        options.keep is None or archive.is_of_files,
        f"--keep={options.keep} is a list of paths, and IMAGES={options.images} has shards; name "
        "the folder from which they were made, or leave it out",
    )
    require(len(archive) > 1, f"IMAGES={options.images} has one image, and a pair takes two")


def _announce(features: np.ndarray, device: torch.device) -> None:
    number, width = features.shape
    memory = count_search_bytes(number, width, device) / 1e6
    print(
        f"comparing {count(number, 'image')}: {count(number * (number - 1) // 2, 'pair')} of "
        f"{width} numbers, in at most {memory:,.0f} MB on {device}",
        flush=True,
    )
