"""Opening a set of shards: what is known of them (`catalog`), and making what is missing.

`making` makes it, here in threads. `scripts/index_shards.py` does the same as a job of its own, in
processes, and goes on where one shard cannot be used.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.index.arrays import choose
from data.index.catalog import Catalog, fetch_index
from data.index.files import FileTable
from data.index.making import Job, Remarks, is_index_of, run_jobs
from data.index.manifest import Manifest, Shard, make_manifest, thinned
from data.index.offsets import ShardIndex
from data.index.parts import Part
from data.index.record import recorded_tables
from data.settings import RunStopped, UserError, require
from data.storage.files import keep_connections
from data.storage.locations import Storage, is_remote
from data.text import count, name_some

_MAX_THREADS = 8
_DEFAULT = Storage()
_logger = logging.getLogger(__name__)


def open_manifest(
    spec: object,
    key: str,
    storage: Storage = _DEFAULT,
    fraction: float = 1.0,
    run: Path | None = None,
    val_ratio: float = 0.0,
) -> Manifest:
    """Open the manifest of the shards that a configuration names, indexing what is new or changed.

    Where nothing is, it costs one `stat` a local shard, and of remote ones a request a folder. Of a
    folder of images, or a list of them, it costs one `stat` a file at each start.
    Damaged shards are used up to the damage, with a warning. Several processes may call it at once,
    but then each of them indexes.

    Args:
        spec: As for `data.listing.shards.list_shards`.
        key: The configuration's key, for error texts.
        storage: How remote shards are read.
        fraction: Of the samples, to be used alone.
        run: The folder of a run, which goes on with the images with which it began.
        val_ratio: Of all samples, to be left out for validation, where `set_aside` finds them.

    Raises:
        RunStopped: If a shard cannot be read, or its index not be written.
        UserError: For what `list_shards` and `scan` refuse, or if there is no sample.
    """
    catalog = Catalog(spec, key, storage)
    catalog.list_images({} if run is None else recorded_tables(run))
    missing = catalog.missing()
    if missing:
        _raise_first(_make(catalog, missing), key)
    manifest = catalog.manifest()
    for shard in manifest.shards.damaged:
        _logger.warning("shard %s is damaged: %s", shard.name, shard.damage)
    require(manifest.num_samples > 0, f"{key}: the shards hold no samples; name others")
    if manifest.shards.empty:
        _logger.warning("%s", told_empty(manifest.shards.empty))
    if val_ratio:
        manifest = _training_part(manifest, key, val_ratio)
    used = thinned(manifest, fraction)
    require(
        used.num_samples > 0,
        f"data.fraction={fraction} leaves none of the {manifest.num_samples} samples of {key}; "
        "raise it",
    )
    return used


def _training_part(manifest: Manifest, key: str, val_ratio: float) -> Manifest:
    rest = _part_of(manifest, Part(val_ratio))
    num_val = manifest.num_samples - rest.num_samples
    require(
        rest.num_samples > 0 and num_val > 0,
        f"data.val_ratio={val_ratio} leaves {count(rest.num_samples, 'sample')} of {key} to train "
        f"on and {num_val} to validate on, and each needs one; choose another ratio, or name "
        "validation images of their own",
    )
    return rest


def set_aside(train: Manifest) -> Manifest:
    """Return the samples that `val_ratio` left out of what `open_manifest` gave."""
    assert train.shards.part is not None
    return _part_of(train, replace(train.shards.part, is_val=True))


def _part_of(manifest: Manifest, part: Part) -> Manifest:
    """Use a part of all samples, whichever are used now; it takes the keys of all shards."""
    shards = replace(manifest.shards, num_samples=manifest.shards.num_indexed, part=part)
    listed = tqdm(shards, "choosing samples", unit="shard", delay=2, disable=None)
    numbers = [len(part.places(_load(shard, manifest.storage).names())) for shard in listed]
    shards = replace(shards, num_samples=np.array(numbers, np.int64))
    return make_manifest(shards, manifest.storage)


def told_empty(names: Sequence[str]) -> str:
    """Say which shards hold nothing, as a tar does that was not written to its end."""
    number, holds = count(len(names), "shard"), "holds" if len(names) == 1 else "hold"
    return f"{number} {holds} no samples: {name_some(names)}; copy again what should"


def load_index(shard: Shard, storage: Storage = _DEFAULT) -> ShardIndex | FileTable:
    """Open a shard's index, of the samples that are used.

    One that lies on the server is fetched first, once.

    Returns:
        Of a folder or list of images, the table of its files.

    Raises:
        RunStopped: If it is not there.
        UserError: If it is damaged, or of another tar than the manifest says.
    """
    index = _load(shard, storage)
    if shard.part is not None:
        index = index.only(shard.part.places(index.names()))
    if shard.num_samples == len(index):
        return index
    seed = int(shard.sha256[:15], 16)
    return index.only(choose(len(index), shard.num_samples, seed))


def _load(shard: Shard, storage: Storage) -> ShardIndex | FileTable:
    """Open the index of all samples."""
    path = shard.index_path
    if not shard.is_tar:
        return _load_table(shard)
    if is_remote(shard.location) and not path.exists():
        fetch_index(shard.location, path, storage)
    try:
        index = ShardIndex.load(path)
    except FileNotFoundError as error:
        message = f"{path}, the index of shard {shard.name}, is gone; start again to make it anew"
        raise RunStopped(message) from error
    require(
        is_index_of(index, shard.num_indexed, shard.sha256),
        f"{path} is the index of another tar than shard {shard.name}; delete it and it will be "
        "made again",
    )
    return index


def _load_table(shard: Shard) -> FileTable:
    try:
        table = FileTable.load(shard.index_path)
    except FileNotFoundError as error:
        message = f"{shard.index_path}, the table of {shard.name}, is gone; start again to list it"
        raise RunStopped(message) from error
    require(
        table.sha256 == shard.sha256,
        f"{shard.index_path} is the table of other files than {shard.name}; delete it and it will "
        "be made again",
    )
    return table


def _raise_first(errors: Sequence[UserError | RunStopped], key: str) -> None:
    """Raise the first error; the user's name the key beside the shard."""
    if errors and isinstance(errors[0], UserError):
        raise UserError(f"{key}: {errors[0]}") from errors[0]
    if errors:
        raise errors[0]


def _make(catalog: Catalog, missing: Sequence[int]) -> list[UserError | RunStopped]:
    """Index shards in threads: the hashes, most of the work for photographs, free the lock.

    After an error no more shards are begun; those that are done stay done.

    Returns:
        The errors.
    """
    _announce(catalog, missing)
    errors: list[UserError | RunStopped] = []
    remarks = Remarks()

    def jobs() -> Iterator[Job]:
        for place in missing:
            if errors:
                return
            yield catalog.job(place)

    num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(num_threads)
    try:
        with keep_connections():
            results = run_jobs(jobs(), pool, num_threads)
            for done in tqdm(
                results, "indexing", len(missing), unit="shard", delay=2, disable=None
            ):
                if done.error is not None:
                    errors.append(done.error)
                if done.row is not None:
                    catalog.put(done.job.place, done.row, done.folder)
                if done.note is not None:
                    _logger.info("%s", done.note)
                remarks.add(done)
    finally:
        pool.shutdown(cancel_futures=True)
    for line in remarks.lines():
        _logger.warning("%s", line)
    return errors


def _announce(catalog: Catalog, missing: Sequence[int]) -> None:
    targets = ", ".join(sorted({str(catalog.target(place)) for place in missing}))
    _logger.info("indexing %s; the index goes to %s", count(len(missing), "shard"), targets)
    num_remote = sum(is_remote(catalog.locations[place]) for place in missing)
    if num_remote:
        _logger.warning(
            "%d of them %s remote, and each is read once from start to end before the first step; "
            "scripts/index_shards.py does this as a job of its own",
            num_remote,
            "is" if num_remote == 1 else "are",
        )
