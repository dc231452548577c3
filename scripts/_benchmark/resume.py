"""What it costs to go on in the middle of an epoch, against skipping to there.

Plain webdataset 1.0.2 has no resume: to come to the same sample it reads what lies before.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from webdataset.compat import WebDataset

from data.config import ImageConfig
from data.index.open import open_manifest
from data.listing.shards import list_shards
from data.samples import Samples
from data.settings import require
from data.shards import INDEX_SUFFIX, ImageFile, write_shard
from data.stream import Share, TrainingStream
from scripts._benchmark.apart import in_fresh_process
from scripts._benchmark.rounds import Speeds
from scripts._benchmark.webdataset_stream import crop_sample

TIME_RATIOS = {
    "resume_99_vs_1": ("resume at 99 %", "resume at 1 %"),
    "webdataset_99_vs_1": ("webdataset at 99 %", "webdataset at 1 %"),
    "webdataset_vs_resume_at_99": ("webdataset at 99 %", "resume at 99 %"),
}
BYTES_RATIOS = {
    "resume_bytes_99_vs_1": TIME_RATIOS["resume_99_vs_1"],
    "webdataset_bytes_99_vs_1": TIME_RATIOS["webdataset_99_vs_1"],
}
_IO = Path("/proc/self/io")
_SAMPLES_PER_SHARD = 2_000
_PLACES = {"at 1 %": 0.01, "at 99 %": 0.99}


@dataclass(frozen=True)
class ResumeOptions:
    """What is measured.

    Attributes:
        shards: Read by both.
        image_size: Pixels a side.
        batch_size: Images of the first batch.
        rounds: Turns of each variant, each in a fresh process.
    """

    shards: list[str]
    image_size: int
    batch_size: int
    rounds: int


def measure_resume(options: ResumeOptions) -> tuple[Speeds, Speeds]:
    """Measure from the start of a stream to its first batch, at two places of an epoch.

    Each turn is a fresh process, whose imports and first decoded image come before the clock
    starts; the shards are indexed and in the page cache.

    - `resume`: `open_manifest` and `TrainingStream.steps(first, last)`, 0 workers, 1 rank.
    - `webdataset`: `WebDataset(shards, shardshuffle=False)`, of which as many samples are dropped
      undecoded by `islice`; then the same batch size is decoded and cropped as ours is.

    Returns:
        Seconds, and MiB read: what the process's read calls returned (`rchar` of /proc/self/io:
        shards, manifest, headers), and the whole size of each index that it mapped.

    Raises:
        UserError: The shards cannot be used, or are too few.
    """
    require(_IO.is_file(), f"resume counts what is read in {_IO}, which is not here")
    num_samples = open_manifest(options.shards, "SHARDS").num_samples
    require(
        num_samples >= 100 * options.batch_size,
        f"SHARDS hold {num_samples} samples, under 100 batches of {options.batch_size}; "
        f"try --batch-size {max(1, num_samples // 100)}",
    )
    _fill_page_cache(options)
    variants = {
        f"{name} {place}": (measure, _first_step(num_samples, options.batch_size, ratio))
        for place, ratio in _PLACES.items()
        for name, measure in (("resume", _resume), ("webdataset", _skip))
    }
    seconds, read = Speeds("seconds"), Speeds("mib_read")
    for _ in range(options.rounds):
        for name, (measure, step) in variants.items():
            duration, num_bytes = in_fresh_process(measure, options, step)
            seconds.add(name, duration)
            read.add(name, num_bytes / 2**20)
    return seconds, read


def make_tiny_shards(folder: Path, num_samples: int) -> list[str]:
    """Write shards of 2,000 tiny images and return their paths."""
    image = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(image, "PNG")
    paths: list[str] = []
    for start in range(0, num_samples, _SAMPLES_PER_SHARD):
        path = folder / f"tiny-{start // _SAMPLES_PER_SHARD:06d}.tar"
        stop = min(start + _SAMPLES_PER_SHARD, num_samples)
        write_shard(
            path, (ImageFile(f"{n:08d}", "png", image.getvalue(), 0) for n in range(start, stop))
        )
        paths.append(str(path))
    return paths


def _first_step(num_samples: int, batch_size: int, ratio: float) -> int:
    return int(ratio * num_samples) // batch_size


def _locations(options: ResumeOptions) -> list[str]:
    return [str(location) for location in list_shards(options.shards, "SHARDS")]


def _fill_page_cache(options: ResumeOptions) -> None:
    for location in _locations(options):
        with Path(location).open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def _resume(options: ResumeOptions, step: int) -> tuple[float, int]:
    """Go on at `step`; return the seconds to its batch, and the bytes read."""
    size = (options.image_size, options.image_size)
    share = Share(0, 1, options.batch_size)

    def first_batch() -> Tensor:
        manifest = open_manifest(options.shards, "SHARDS")
        samples = Samples(manifest, size, 0, ImageConfig().crop_area)
        stream = TrainingStream(samples, options.batch_size, share, workers=0)
        (batch,) = next(iter(stream.steps(step, step + 1)))
        return batch.tensors["image"]

    return _measure(first_batch, options)


def _skip(options: ResumeOptions, step: int) -> tuple[float, int]:
    """Skip to the first sample of `step`; return the seconds to its batch, and the bytes read."""
    locations = _locations(options)
    size = (options.image_size, options.image_size)
    start = step * options.batch_size

    def images() -> Iterator[Tensor]:
        dataset = WebDataset(locations, shardshuffle=False)
        generator = np.random.default_rng(0)
        for sample in islice(dataset, start, start + options.batch_size):
            yield crop_sample(sample, generator, size)

    return _measure(lambda: torch.stack(list(images())), options)


def _measure(first_batch: Callable[[], Tensor], options: ResumeOptions) -> tuple[float, int]:
    torch.set_num_threads(1)
    _warm_up(options)
    read, began = _bytes_read(), time.perf_counter()
    batch = first_batch()
    duration = time.perf_counter() - began
    assert len(batch) == options.batch_size
    return duration, _bytes_read() - read


def _warm_up(options: ResumeOptions) -> None:
    """Load what a first batch loads of libraries, without touching a shard."""
    image = BytesIO()
    Image.new("RGB", (32, 32)).save(image, "PNG")
    sample = {"png": image.getvalue()}
    crop_sample(sample, np.random.default_rng(0), (options.image_size, options.image_size))


def _bytes_read() -> int:
    """Return what read calls have returned to this process, and the indexes that it has mapped."""
    counters = dict(line.split(": ") for line in _IO.read_text().splitlines())
    # a map's pages are read by no call; each index counts once, whole, which is more than is read
    mapped = {
        path
        for line in Path("/proc/self/maps").read_text().splitlines()
        if (path := line.partition("/")[2]).endswith(INDEX_SUFFIX)
    }
    return int(counters["rchar"]) + sum(os.path.getsize("/" + path) for path in mapped)  # noqa: PTH202
