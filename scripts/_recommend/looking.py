"""Looking at images: a seeded sample of some hundred, never all of a large set."""

import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from data.images.boxes import NUM_UNIFORM
from data.images.channels import held_channels
from data.images.decoding import decode
from data.images.levels import UnreadableImage
from data.images.limits import MODES
from data.images.resize import resize
from data.images.transforms import training_crop
from data.index.files import FileTable
from data.index.manifest import Manifest
from data.index.open import load_index, open_manifest
from data.listing.shards import list_shards
from data.reading.reader import BadSample, ShardReader
from data.samples import pick_image
from data.settings import UserError, require
from data.shards import IMAGE_EXTENSIONS
from data.text import count, printable
from scripts._recommend.facts import Images

_PAIRS = 150  # images drawn; of each, the one behind it is looked at, too
_SECONDS = 12.0  # after which a sample of at least so many is enough
_ENOUGH = 64
_MOST_CHECKSUMS = 1_000_000  # images whose checksums are compared
_MOST_READ = 2_000  # files that are read to compare them
_UNKNOWN = -1  # checksum
_SIDE = 16  # of the small pictures that are compared
_MOST_BITS = 12  # of 256 that may differ between near duplicates
_MOST_LEVELS = 8.0  # of 255: their root mean square difference
_CROP = (64, 64)  # pixels; what is timed


def look(spec: str) -> Images:
    """Look at the images that a configuration would name so.

    Raises:
        RunStopped: They cannot be read.
        UserError: There are none, or none that can be used.
    """
    manifest = open_manifest(spec, "IMAGES")
    sample = _Sample()
    for content in _read(manifest, sample):
        sample.look(content)
    require(
        bool(sample.sizes),
        f"none of the {count(len(sample.bad), 'image')} looked at in {spec} can be used, such as "
        f"{sample.first_bad}; mend them, or name others",
    )
    heights, widths = np.array(sample.sizes).T
    low, high = np.quantile(widths / heights, [0.1, 0.9])
    channels = sample.channels
    is_grey = channels == 3 and sample.is_grey
    mean, std = _moments(sample.moments, is_grey)
    return Images(
        spec=spec,
        num_images=manifest.num_samples,
        num_looked=len(sample.sizes) + len(sample.bad),
        num_bad=len(sample.bad),
        first_bad=sample.first_bad,
        height=int(np.median(heights)),
        width=int(np.median(widths)),
        widths_apart=float(high / low),
        channels=1 if is_grey else channels,
        is_grey=is_grey,
        mean=mean,
        std=std,
        white=sample.white,
        num_near=count_near(sample.pictures),
        num_equal=_count_equal(manifest),
        decode_seconds=float(np.median(sample.seconds)),
        num_val=_count_validation(spec, manifest),
    )


# ---------------------------------------------------------------- the sample


@dataclass
class _Sample:
    """What was seen so far."""

    channels: int = 0  # as which they are read, of the first good image: 3 of grey ones, too
    sizes: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    pictures: list[np.ndarray] = field(default_factory=list[np.ndarray])
    moments: list[tuple[np.ndarray, np.ndarray]] = field(
        default_factory=list[tuple[np.ndarray, np.ndarray]]
    )
    seconds: list[float] = field(default_factory=list[float])
    bad: list[str] = field(default_factory=list[str])
    is_grey: bool = True
    white: int = 0

    @property
    def first_bad(self) -> str:
        return self.bad[0] if self.bad else ""

    def look(self, found: tuple[str, dict[str, bytes]]) -> None:
        """Look at one image, given as its name and its members."""
        name, members = found
        try:
            self._look(members)
        except (BadSample, UnreadableImage) as error:
            self.bad.append(f"{printable(name)}: {error}")

    def _look(self, members: dict[str, bytes]) -> None:
        held = self.channels or held_channels(pick_image(members))
        channels = 3 if held in MODES else held
        content = pick_image(members, channels)
        image = decode(content, channels)
        self.channels = channels
        begin = time.perf_counter()
        training_crop(content, np.full(NUM_UNIFORM, 0.5), _CROP, (0.4, 1.0), channels)
        self.seconds.append(time.perf_counter() - begin)
        self.sizes.append((image.shape[1], image.shape[2]))
        values = image.float() / 255
        squares = values.square().mean((1, 2))
        self.moments.append((values.mean((1, 2)).numpy(), squares.numpy()))
        self.pictures.append(_small(image))
        self.white = max(self.white, int(image.max()))
        if self.is_grey and self.channels == 3:
            self.is_grey = bool((image[0] == image[1]).all() and (image[1] == image[2]).all())


def _read(manifest: Manifest, sample: _Sample) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield names and members of the images looked at, in a seeded order, for some seconds."""
    reader = ShardReader(manifest)
    begin = time.monotonic()
    for number in _places(manifest.num_samples):
        seen = len(sample.sizes) + len(sample.bad)
        if seen >= _ENOUGH and time.monotonic() - begin > _SECONDS:
            break
        shard, place = _locate(manifest, number)
        name = f"{manifest.shards.names[shard]}/{reader.key(shard, place)}"
        try:
            yield name, reader.read(shard, place, IMAGE_EXTENSIONS)
        except BadSample as error:
            sample.bad.append(f"{printable(name)}: {error}")
    reader.close()


def _locate(manifest: Manifest, number: int) -> tuple[int, int]:
    """Return the shard of an image, and its place there."""
    shard = int(np.searchsorted(manifest.starts, number, side="right")) - 1
    return shard, number - int(manifest.starts[shard])


def _places(num_images: int) -> list[int]:
    """Draw images and those behind them, which are near duplicates in a film; all of a few."""
    order = np.random.default_rng(0).permutation(num_images)
    if num_images <= 2 * _PAIRS:
        return order.tolist()
    pairs = ((int(n), (int(n) + 1) % num_images) for n in order[:_PAIRS])
    return list(dict.fromkeys(number for pair in pairs for number in pair))


def _moments(
    moments: list[tuple[np.ndarray, np.ndarray]], is_grey: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel; a deviation of next to nothing becomes 0.01."""
    mean, square = (np.mean([pair[part] for pair in moments], axis=0) for part in (0, 1))
    std = np.sqrt(np.maximum(square - mean**2, 1e-4))
    used = slice(0, 1) if is_grey else slice(None)
    rounded = (values[used].astype(float).round(4).tolist() for values in (mean, std))
    return tuple(next(rounded)), tuple(next(rounded))


# ---------------------------------------------------------------- duplicates


def _small(image: Tensor) -> np.ndarray:
    """Return a small grey picture of an image: float32 (16, 17)."""
    grey = image.float().mean(0, keepdim=True).round().to(torch.uint8)
    return resize(grey, (_SIDE, _SIDE + 1))[0].numpy().astype(np.float32)


def count_near(pictures: list[np.ndarray]) -> int:
    """Count the small pictures that nearly equal another one.

    Nearly equal are two whose brightness rises from one pixel to the next at the same places (a
    difference hash of 256 bits), and is about the same there.
    """
    stack = np.stack(pictures)
    bits = (stack[:, :, 1:] > stack[:, :, :-1]).reshape(len(stack), -1)
    values = stack.reshape(len(stack), -1)
    is_near = np.zeros(len(stack), bool)
    for number in range(len(stack)):
        differing = (bits != bits[number]).sum(1)
        levels = np.sqrt(np.square(values - values[number]).mean(1))
        near = (differing <= _MOST_BITS) & (levels <= _MOST_LEVELS)
        near[number] = False
        is_near[number] = near.any()
    return int(is_near.sum())


def _count_equal(manifest: Manifest) -> int | None:
    """Count images that are equal to another: by checksums of shards, by content of files.

    Of files those alone are read whose sizes are equal.

    Returns:
        None: there are too many to compare.
    """
    if manifest.num_samples > _MOST_CHECKSUMS:
        return None
    sizes, words = map(np.concatenate, zip(*_identities(manifest), strict=True))
    doubtful = np.flatnonzero((words == _UNKNOWN) & (_how_often(sizes) > 1))
    if doubtful.size > _MOST_READ:
        return None
    reader = ShardReader(manifest)
    for number in doubtful.tolist():
        shard, place = _locate(manifest, number)
        with suppress(BadSample):  # changed since it was listed, which a run will say
            content = b"".join(reader.read(shard, place, IMAGE_EXTENSIONS).values())
            words[number] = zlib.crc32(content)
    reader.close()
    is_known = words != _UNKNOWN
    return int((_how_often((sizes[is_known] << 32) | words[is_known]) > 1).sum())


def _identities(manifest: Manifest) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield sizes and checksums (`_UNKNOWN` of files) of each shard's images: int64, (S,) each."""
    for shard in manifest.shards:
        index = load_index(shard, manifest.storage)
        if isinstance(index, FileTable):
            sizes = np.asarray(index.sizes, np.int64)
            yield sizes, np.full(sizes.size, _UNKNOWN)
            continue
        is_image = np.array([name in IMAGE_EXTENSIONS for name in index.extensions], bool)
        chosen = is_image[index.extension_ids]
        yield index.sizes[chosen].astype(np.int64), index.crc32s[chosen].astype(np.int64)


def _how_often(values: np.ndarray) -> np.ndarray:
    """Return how often each value occurs among all: (S,)."""
    _, places, numbers = np.unique(values, return_inverse=True, return_counts=True)
    return numbers[places]


# ---------------------------------------------------------------- validation


def _count_validation(spec: str, train: Manifest) -> int:
    """Count the validation images that the same name holds beside the training images."""
    try:
        val = list_shards(spec, "data.val_shards")
    except UserError:  # there is no such split
        return 0
    is_apart = not set(val) & set(train.shards.locations)
    return open_manifest(val, "IMAGES").num_samples if is_apart else 0
