"""Shards and images that training and validation have in common, by their bytes.

Shards are compared by the sha256 of their content, images by size and checksum, which the index
holds; of images that agree in both, some are read and compared byte for byte. The table of a folder
holds no checksum: of its images, those are read whose size the other side has, or some of them.
"""

import filecmp
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.index.files import FileTable
from data.index.manifest import Manifest, Shard, Shards
from data.index.tables import folder_of
from data.reading.bad import BadSample
from data.reading.codes import all_sizes, images_of, sizes_of
from data.reading.reader import ShardReader
from data.settings import UserError
from data.shards import IMAGE_EXTENSIONS
from data.storage.locations import is_list
from data.text import count, name_some, printable

_NUM_READ = 32  # images that are read from both, of those that agree by their checksums
# images of a folder that are read for their checksums, of those of a size that both sides have
_MOST_OF_VAL, _MOST_OF_TRAIN = 256, 4096
_logger = logging.getLogger(__name__)


def check_apart(train: Manifest, val: Manifest, keys: tuple[str, str]) -> None:
    """Refuse a shard that is in both sets, and warn of images that are.

    Args:
        train: What is trained on.
        val: What is validated on.
        keys: The configuration's keys of both.

    Raises:
        UserError: Names the shards that are in both, by their content, or files that are.
    """
    if train.shards.part is None or val.shards.part is None:  # else they are parts of one
        _refuse_shared(train, val, keys)
    number, example = _count_equal(train, val, keys)
    if number:
        verb = "is" if number == 1 else "are"
        _logger.warning(
            "%s of %s %s in %s too, byte for byte (%s): the validation's figures are better than "
            "they would be on other images",
            count(number, "image"),
            keys[1],
            verb,
            keys[0],
            example,
        )


def _refuse_shared(train: Manifest, val: Manifest, keys: tuple[str, str]) -> None:
    if files := shared_paths(train, val):
        verb, them = ("is", "it") if len(files) == 1 else ("are", "them")
        raise UserError(
            f"{count(len(files), 'file')} ({name_some(files)}) {verb} in {keys[0]} and in "
            f"{keys[1]}, so validation would be on images that are trained on; leave {them} out of "
            "one of the two, as by moving some images into a folder of their own"
        )
    if places := shared_shards(train.shards, val.shards):
        names = name_some([val.shards[place].name for place in places])
        is_one = len(places) == 1
        raise UserError(
            f"{names} {'is' if is_one else 'are'} in {keys[0]} and in {keys[1]}, by content, so "
            f"validation would be on images that are trained on; leave {'it' if is_one else 'them'}"
            f" out of one of the two, as with {keys[0]}='FOLDER/train-*.tar'"
        )


def shared_shards(train: Shards, val: Shards) -> list[int]:
    """Return the places in `val` of the shards whose content is in `train`; empty ones are none."""
    known = {content.tobytes() for content in train.sha256s[train.num_samples > 0]}
    return [
        place
        for place, content in enumerate(val.sha256s)
        if val.num_samples[place] and content.tobytes() in known
    ]


def shared_paths(train: Manifest, val: Manifest) -> list[str]:
    """Return the files that both name, of folders and lists of images."""
    own, others = _roots(val), _roots(train)
    if not any(first in second or second in first for first in own for second in others):
        return []
    known = set(_paths(train))
    return sorted(path for path in _paths(val) if path in known)


def _roots(manifest: Manifest) -> list[str]:
    """Return the folder of each table with a slash at its end; of a list, the disk's."""
    locations = [manifest.shards.locations[place] for place in manifest.shards.tables]
    return ["/" if is_list(location) else f"{location}/" for location in locations]


def _paths(manifest: Manifest) -> Iterator[str]:
    for place, path in manifest.shards.tables.items():
        folder = str(folder_of(manifest.shards.locations[place]))
        table = FileTable.load(path)
        yield from (os.path.normpath(f"{folder}/{path}") for path in table.states)


def shared_files(locations: Iterable[str], val: Shards) -> list[str]:
    """Name the shards of `val` that these tars are, by place or byte for byte on this machine.

    Args:
        locations: Of tars without an index, as in `data.sequential.sources.TarSource`.
        val: The shards.
    """
    own, sizes = set(locations), set(val.num_bytes.tolist())
    files = [file for file in map(Path, own) if file.is_file() and file.stat().st_size in sizes]
    return [
        shard.name
        for shard in val
        if shard.num_samples > 0
        and (shard.location in own or any(_is_copy(file, shard) for file in files))
    ]


def _is_copy(file: Path, shard: Shard) -> bool:
    path = Path(shard.location)
    return path.is_file() and filecmp.cmp(file, path, shallow=False)


def _count_equal(train: Manifest, val: Manifest, keys: tuple[str, str]) -> tuple[int, str]:
    """Count the images of `val` that are in `train`, and name a pair."""
    own = list(images_of(val, lambda: all_sizes(train), _MOST_OF_VAL))
    codes = np.unique(np.concatenate([images.codes for _, images in own] or [np.empty(0, "u8")]))
    found: dict[int, tuple[int, int]] = {}  # a code's first place in `train`
    number, what = len(train.shards), f"comparing {keys[1]}"
    others = images_of(train, lambda: sizes_of(codes), _MOST_OF_TRAIN)
    shards = tqdm(others, what, number, unit="shard", delay=2, disable=None)
    for shard, images in shards:
        places = np.minimum(np.searchsorted(codes, images.codes), len(codes) - 1)
        is_equal = codes[places] == images.codes if len(codes) else slice(0)
        for code, sample in zip(images.codes[is_equal], images.samples[is_equal], strict=True):
            found.setdefault(int(code), (shard, int(sample)))
    pairs = {
        (shard, int(sample)): found[int(code)]
        for shard, images in own
        for code, sample in zip(images.codes, images.samples, strict=True)
        if int(code) in found
    }
    ratio, example = _confirmed(train, val, list(pairs.items()))
    scales = {shard: images.scale for shard, images in own}
    return round(ratio * sum(scales[shard] for shard, _ in pairs)), example


_Places = tuple[int, int]  # of a shard, and of a sample in it


def _confirmed(
    train: Manifest, val: Manifest, pairs: list[tuple[_Places, _Places]]
) -> tuple[float, str]:
    """Read some of the images that agree; return which part of them is equal, and name a pair."""
    readers = ShardReader(val), ShardReader(train)
    read = pairs[:: max(1, len(pairs) // _NUM_READ)][:_NUM_READ]
    equal = [places for places in read if _is_equal(readers, places)]
    if not equal:
        return 0.0, ""
    names = [
        printable(f"{reader.manifest.shards[shard].name}/{reader.key(shard, sample)}")
        for reader, (shard, sample) in zip(readers, equal[0], strict=True)
    ]
    for reader in readers:
        reader.close()
    return len(equal) / len(read), " is ".join(names)


def _is_equal(readers: tuple[ShardReader, ShardReader], places: tuple[_Places, _Places]) -> bool:
    try:
        first, second = (
            {*reader.read(*place, IMAGE_EXTENSIONS).values()}
            for reader, place in zip(readers, places, strict=True)
        )
    except BadSample:
        return False
    return not first.isdisjoint(second)
