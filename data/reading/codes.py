"""Size and checksum of the images of shards and folders, by which equal ones are found.

The index of a shard holds both. The table of a folder holds no checksum, so its images are read:
those of a size that matters, and no more than some of them.
"""

import logging
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data.index.files import FileTable
from data.index.manifest import Manifest, Shard
from data.index.offsets import ShardIndex
from data.index.open import load_index
from data.reading.bad import BadSample
from data.reading.files import OpenFolder
from data.shards import IMAGE_EXTENSIONS
from data.text import count

_MAX_BYTES = 1 << 30  # that are read of one folder
_SIZE = np.uint64(32)  # bits by which sizes lie above checksums
_Sizes = npt.NDArray[np.uint64]
_logger = logging.getLogger(__name__)


class Images(NamedTuple):
    """The images of one shard or folder.

    Attributes:
        codes: uint64, size and checksum of each.
        samples: int64, the place of its sample in the shard.
        scale: For how many images each of them stands.
    """

    codes: npt.NDArray[np.uint64]
    samples: npt.NDArray[np.int64]
    scale: float = 1.0


def sizes_of(codes: npt.NDArray[np.uint64]) -> _Sizes:
    """Return the distinct sizes of images, in bytes."""
    return np.unique(codes >> _SIZE)


def all_sizes(manifest: Manifest) -> _Sizes:
    """Return the distinct sizes of all images, without reading one."""
    sizes = [np.unique(_index_sizes(index)) for _, index in _indexes(manifest)]
    return np.unique(np.concatenate(sizes or [np.empty(0, np.uint64)]))


def images_of(
    manifest: Manifest, sizes: Callable[[], _Sizes], most: int
) -> Iterator[tuple[int, Images]]:
    """Yield the images of each shard whose index lies on this machine.

    Args:
        manifest: The shards and folders.
        sizes: Gives the sizes of images that are looked for; it is asked for folders alone.
        most: Images of a folder that are read.
    """
    for place, index in _indexes(manifest):
        if isinstance(index, FileTable):
            yield place, _read_some(manifest.shards[place], index, sizes(), most)
        else:
            taken, codes = _taken(index), _codes(index.sizes, index.crc32s)
            samples = np.repeat(np.arange(len(index)), np.diff(index.member_ends, prepend=0))
            yield place, Images(codes[taken], samples[taken])


def _indexes(manifest: Manifest) -> Iterator[tuple[int, ShardIndex | FileTable]]:
    num_far = 0
    for place, shard in enumerate(manifest.shards):
        if not shard.index_path.exists():  # beside the shard, on its server
            num_far += 1
            continue
        yield place, load_index(shard, manifest.storage)
    if num_far:
        what = count(num_far, "shard")
        _logger.info("images of %s are not compared: the index is on the server", what)


def _index_sizes(index: ShardIndex | FileTable) -> _Sizes:
    sizes = index.sizes if isinstance(index, FileTable) else index.sizes[_taken(index)]
    return sizes.astype(np.uint64)


def _taken(index: ShardIndex) -> npt.NDArray[np.bool_]:
    """Tell which members are images with content: bool, (M,)."""
    is_image = np.array([name in IMAGE_EXTENSIONS for name in index.extensions], np.bool_)
    if not len(index):
        return np.zeros(len(index.sizes), np.bool_)
    return is_image[index.extension_ids] & (index.sizes > 0)


def _codes(sizes: npt.NDArray[np.int64], crc32s: npt.NDArray[np.uint32]) -> _Sizes:
    return sizes.astype(np.uint64) << _SIZE ^ crc32s.astype(np.uint64)


def _read_some(shard: Shard, table: FileTable, sizes: _Sizes, most: int) -> Images:
    """Read images of the sizes looked for, evenly spread if they are many."""
    chosen = np.flatnonzero(np.isin(table.sizes.astype(np.uint64), sizes))
    if not len(chosen):
        return Images(np.empty(0, np.uint64), chosen)
    mean = max(1.0, float(table.sizes[chosen].mean()))
    stride = -(-len(chosen) // max(1, min(most, int(_MAX_BYTES / mean))))
    folder, crc32s = OpenFolder(shard, table), dict[int, int]()
    for sample in chosen[::stride].tolist():
        try:
            [content] = folder.read(sample, IMAGE_EXTENSIONS).values()
        except BadSample:
            continue
        crc32s[sample] = zlib.crc32(content)
    samples = np.fromiter(crc32s, np.int64, len(crc32s))
    values = np.fromiter(crc32s.values(), np.uint32, len(crc32s))
    return Images(_codes(table.sizes[samples], values), samples, float(stride))
