"""Shards and images that training and validation have in common, by their bytes.

Shards are compared by the sha256 of their content, images by size and checksum, which the index
holds; of images that agree in both, some are read and compared byte for byte.
"""

import filecmp
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data.index.manifest import Manifest, Shard, Shards
from data.index.open import load_index
from data.reading.reader import BadSample, ShardReader
from data.settings import UserError
from data.shards import IMAGE_EXTENSIONS
from data.text import count, name_some, printable

_NUM_READ = 32  # images that are read from both, of those that agree by their checksums
_logger = logging.getLogger(__name__)


class _Images(NamedTuple):
    """The images of one shard.

    Attributes:
        codes: uint64, size and checksum of each.
        samples: int64, the place of its sample in the shard.
    """

    codes: npt.NDArray[np.uint64]
    samples: npt.NDArray[np.int64]


def check_apart(train: Manifest, val: Manifest, keys: tuple[str, str]) -> None:
    """Refuse a shard that is in both sets, and warn of images that are.

    Args:
        train: What is trained on.
        val: What is validated on.
        keys: The configuration's keys of both.

    Raises:
        UserError: Names the shards that are in both, by their content.
    """
    if places := shared_shards(train.shards, val.shards):
        names = name_some([val.shards[place].name for place in places])
        is_one = len(places) == 1
        raise UserError(
            f"{names} {'is' if is_one else 'are'} in {keys[0]} and in {keys[1]}, by content, so "
            f"validation would be on images that are trained on; leave {'it' if is_one else 'them'}"
            f" out of one of the two, as with {keys[0]}='FOLDER/train-*.tar'"
        )
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


def shared_shards(train: Shards, val: Shards) -> list[int]:
    """Return the places in `val` of the shards whose content is in `train`; empty ones are none."""
    known = {content.tobytes() for content in train.sha256s[train.num_samples > 0]}
    return [
        place
        for place, content in enumerate(val.sha256s)
        if val.num_samples[place] and content.tobytes() in known
    ]


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
    own = [(shard, images) for shard, images in _images(val)]
    codes = np.unique(np.concatenate([images.codes for _, images in own] or [np.empty(0, "u8")]))
    found: dict[int, tuple[int, int]] = {}  # a code's first place in `train`
    number, what = len(train.shards), f"comparing {keys[1]}"
    shards = tqdm(_images(train), what, number, unit="shard", delay=2, disable=None)
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
    return _confirmed(train, val, list(pairs.items()))


_Places = tuple[int, int]  # of a shard, and of a sample in it


def _confirmed(
    train: Manifest, val: Manifest, pairs: list[tuple[_Places, _Places]]
) -> tuple[int, str]:
    """Read some of the images that agree; return how many of all are equal, and name a pair."""
    readers = ShardReader(val), ShardReader(train)
    read = pairs[:: max(1, len(pairs) // _NUM_READ)][:_NUM_READ]
    equal = [places for places in read if _is_equal(readers, places)]
    if not equal:
        return 0, ""
    names = [
        printable(f"{reader.manifest.shards[shard].name}/{reader.key(shard, sample)}")
        for reader, (shard, sample) in zip(readers, equal[0], strict=True)
    ]
    for reader in readers:
        reader.close()
    return round(len(pairs) * len(equal) / len(read)), " is ".join(names)


def _is_equal(readers: tuple[ShardReader, ShardReader], places: tuple[_Places, _Places]) -> bool:
    try:
        first, second = (
            {*reader.read(*place, IMAGE_EXTENSIONS).values()}
            for reader, place in zip(readers, places, strict=True)
        )
    except BadSample:
        return False
    return not first.isdisjoint(second)


def _images(manifest: Manifest) -> Iterator[tuple[int, _Images]]:
    """Yield the images of each shard whose index lies on this machine."""
    num_far = 0
    for place, shard in enumerate(manifest.shards):
        if not shard.index_path.exists():  # beside the shard, on its server
            num_far += 1
            continue
        index = load_index(shard, manifest.storage)
        is_image = np.array([name in IMAGE_EXTENSIONS for name in index.extensions], np.bool_)
        taken = is_image[index.extension_ids] & (index.sizes > 0) if len(index) else slice(0)
        lengths = np.diff(index.member_ends, prepend=0)
        samples = np.repeat(np.arange(len(index)), lengths)
        codes = index.sizes.astype(np.uint64) << np.uint64(32) ^ index.crc32s.astype(np.uint64)
        yield place, _Images(codes[taken], samples[taken])
    if num_far:
        what = count(num_far, "shard")
        _logger.info("images of %s are not compared: the index is on the server", what)
