"""Speed of one core that makes training crops: ours, and what people would use instead."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from PIL import Image
from PIL.ExifTags import Base
from torch import Tensor

from data.batch import Batch
from data.config import ImageConfig
from data.images import jpeg
from data.images.transforms import UnreadableImage, decode
from data.index.manifest import Manifest
from data.index.open import open_manifest
from data.order import Order
from data.reading.reader import BadSample, ShardReader
from data.samples import Samples, pick_image
from data.settings import UserError, require
from data.shards import ImageFile, write_shard
from data.stream import Share, TrainingStream
from scripts._benchmark import loader_alternatives as others
from scripts._benchmark import webdataset_stream
from scripts._benchmark.apart import in_fresh_process
from scripts._benchmark.installed import Package, choose
from scripts._benchmark.loader_alternatives import CROP_AREA, MANY, Images
from scripts._benchmark.one_core import OneCore
from scripts._benchmark.pixel_errors import errors_table, measure_pixel_errors
from scripts._benchmark.rounds import Speeds, add_values, make_record, table

OURS = "loader"
RATIOS = {
    "loader_vs_pil": (OURS, "pil"),
    "loader_vs_pil_uint8": (OURS, "pil_uint8"),
    "loader_vs_dali": (OURS, "dali"),
    "loader_vs_webdataset": (OURS, "webdataset"),
    "loader_vs_timm": (OURS, "timm"),
    "loader_vs_streaming": (OURS, "streaming"),
    "stream_vs_webdataset": (OURS, "webdataset_ours"),
}
_PER_CPU = "_cpu"  # the same ratio of what the CPU clocks say
_MAX_IMAGES = 2000
_SHARD = 100  # images
_EXTENSIONS = {"jpg", "jpeg", "png"}  # what all alternatives decode
_KINDS = {"JPEG": "jpg", "PNG": "png"}


@dataclass(frozen=True)
class LoaderOptions:
    """What is measured, and for how long.

    Attributes:
        shards: Read by all.
        image_size: Pixels a side.
        batch_size: Images a batch.
        rounds: Turns of each variant.
        seconds: Of each turn.
        epochs: Epochs over which a worker's memory is watched; 0: not at all.
        against: Names of the alternatives, apart by commas; None: all that are installed.
    """

    shards: list[str]
    image_size: int
    batch_size: int
    rounds: int
    seconds: float
    epochs: int
    against: str | None = None


PACKAGES = {
    "pil": Package("pillow", "PIL"),
    "pil_uint8": Package("pillow", "PIL"),
    "webdataset": Package("webdataset", "webdataset"),
    "webdataset_ours": Package("webdataset", "webdataset"),
    "timm": Package("timm", "timm"),
    "dali": Package("nvidia-dali-cuda120", "nvidia.dali"),
    "streaming": Package("mosaicml-streaming", "streaming"),
}


@dataclass(frozen=True)
class LoaderFigures:
    """What was measured.

    Attributes:
        speeds: Images a second of the wall clock.
        cpu_speeds: Images a second of CPU time, of all that a variant runs.
        errors: What `measure_pixel_errors` returns.
    """

    speeds: Speeds
    cpu_speeds: Speeds
    errors: dict[str, dict[str, Any]]

    def ratios(self, suffix: str = "") -> dict[str, tuple[str, str]]:
        """Return the pairs that were both measured, by the ratio's name."""
        measured = self.speeds.by_variant
        return {name + suffix: pair for name, pair in RATIOS.items() if pair[1] in measured}


def measure_loader(options: LoaderOptions) -> LoaderFigures:
    """Measure what one core gives, in turns, and how far the pixels are from the truth.

    Each variant has a process of its own, held to one core with all that it starts: one loader
    worker of one thread and the caller's side. All read copies of the same images (of many shards
    the first 2,000, as JPEG or PNG), cut the same part of 8 to 100 % of the area at 3/4 to 4/3,
    resize it to one size and flip half of them.

    - `loader`: `TrainingStream`; only the crop decoded, and resized meanwhile, where `jpeg.c`
      could be built (the record's `decodes_crops`), bilinear with antialiasing, uint8.
    - `pil`: Pillow and torchvision's usual transform, from bytes in memory; bicubic, normalised
      float32.
    - `pil_uint8`: the same, bilinear and uint8 as ours.
    - `webdataset`: plain webdataset with the transform of `pil`.
    - `webdataset_ours`: plain webdataset with our decoder and crop: only the stream differs, ours
      with index, checksums, order and the names of its samples.
    - `timm`: its webdataset reader and training transform; bicubic, uint8.
    - `dali`: its CPU pipeline; bilinear with antialiasing, uint8.
    - `streaming`: MosaicML Streaming with the transform of `pil`.

    Raises:
        UserError: The shards cannot be used, or what was asked for is not installed.
    """
    names = choose(options.against, PACKAGES)
    speeds, cpu_speeds = Speeds(), Speeds("images_per_cpu_second")
    with TemporaryDirectory() as folder, ExitStack() as running:
        images = copy_images(options, Path(folder))
        variants: dict[str, OneCore] = {}
        for name in [OURS, *names]:
            source = OneCore(name, SOURCES[name], images)
            variants[name] = running.enter_context(source)
        for variant in variants.values():
            variant.wait_until_made()
        for _ in range(options.rounds):
            for name, variant in variants.items():
                turn = variant.take_turn(options.seconds)
                speeds.add(name, turn.num_images / turn.seconds)
                cpu_speeds.add(name, turn.num_images / turn.cpu_seconds)
        running.close()
        errors = in_fresh_process(measure_pixel_errors, images, "dali" in names)
    return LoaderFigures(speeds, cpu_speeds, errors)


def report(
    options: LoaderOptions, figures: LoaderFigures, memory: dict[str, Any] | None
) -> tuple[dict[str, Any], str]:
    """Return what `--json` writes, and what is printed."""
    record = make_record("loader", asdict(options), figures.speeds, figures.ratios())
    add_values(record, figures.cpu_speeds, figures.ratios(_PER_CPU))
    record["decodes_crops"] = jpeg.is_available()
    record["pixel_errors"] = figures.errors
    texts = [table(record), errors_table(figures.errors)]
    if memory is not None:
        record["memory_mib"] = memory
        text = f"worker's memory, {options.epochs} epochs: {memory['first']:.1f} MiB after the"
        texts.append(f"{text} first,\n{memory['last']:.1f} MiB after the last")
    return record, "\n\n".join(texts)


def copy_images(options: LoaderOptions, folder: Path) -> Images:
    """Copy what all variants see alike into shards of 100, a label beside each, and index them.

    Raises:
        UserError: There is none.
    """
    manifest = open_manifest(options.shards, "SHARDS")
    files = _usable_images(manifest)
    if not files:
        raise UserError("SHARDS hold no plain RGB or grey JPEG or PNG; name others, or none")
    paths = [folder / f"{at // _SHARD:06d}.tar" for at in range(0, len(files), _SHARD)]
    for number, path in enumerate(paths):
        write_shard(path, files[number * _SHARD : (number + 1) * _SHARD])
    shards = [str(path) for path in paths]
    open_manifest(shards, "SHARDS")  # indexes them
    return Images(shards, len(files), options.image_size, options.batch_size, str(folder))


def _usable_images(manifest: Manifest) -> list[ImageFile]:
    order, reader = Order(manifest.starts, 0), ShardReader(manifest)
    files: list[ImageFile] = []
    for number in range(min(_MAX_IMAGES, manifest.num_samples)):
        shard, place = order.locate(number)
        with suppress(BadSample, UnreadableImage):
            content = pick_image(reader.read(shard, place, _EXTENSIONS))
            decode(content)
            kind = _plain_kind(content)
            if kind is not None:
                files.append(ImageFile(f"{number:06d}", kind, content, label=0))
    return files


def _plain_kind(content: bytes) -> str | None:
    """Return the extension of an image that all variants see alike: no alpha, turned by no EXIF."""
    image = Image.open(BytesIO(content))
    is_plain = image.mode in ("RGB", "L") and image.getexif().get(Base.Orientation, 1) == 1
    return _KINDS.get(str(image.format)) if is_plain else None


def ours(images: Images) -> Iterator[Tensor]:
    """Run our stream over the copies."""
    manifest = open_manifest(images.shards, "SHARDS")
    size = (images.image_size, images.image_size)
    samples = Samples(manifest, size, 0, CROP_AREA)
    batches = stream_batches(samples, images.batch_size, MANY)
    return (batch.tensors["image"][: len(batch.places)] for batch in batches)  # padding is no image


SOURCES: dict[str, Callable[[Images], Iterator[Tensor]]] = {
    OURS: ours,
    "pil": others.pil,
    "pil_uint8": others.pil_uint8,
    "webdataset": webdataset_stream.webdataset,
    "webdataset_ours": webdataset_stream.webdataset_ours,
    "timm": others.timm_reader,
    "dali": others.dali,
    "streaming": others.streaming,
}


def stream_batches(samples: Samples, batch_size: int, num_batches: int) -> Iterator[Batch]:
    """Yield our batches; an epoch's last is filled up with padding."""
    stream = TrainingStream(samples, batch_size, Share(0, 1, batch_size), workers=1)
    return (batch for (batch,) in stream.steps(0, num_batches))


def measure_memory(options: LoaderOptions) -> dict[str, Any]:
    """Watch the resident memory of one worker at each epoch's end.

    Returns:
        `first`, `last` and all epochs' values, in MiB.
    """
    path = Path("/proc/self/statm")
    require(path.is_file(), "--epochs reads memory from /proc, which is not here; leave it out")
    manifest = open_manifest(options.shards, "SHARDS")
    steps_per_epoch = -(-manifest.num_samples // options.batch_size)
    before = set(multiprocessing.active_children())
    size = (options.image_size, options.image_size)
    samples = Samples(manifest, size, 0, ImageConfig().crop_area)
    num_batches = (options.epochs + 1) * steps_per_epoch
    source = stream_batches(samples, options.batch_size, num_batches)
    values: list[float] = []
    for _ in range(options.epochs):
        for _ in range(steps_per_epoch):
            next(source)
        (worker,) = set(multiprocessing.active_children()) - before
        values.append(_resident_mib(cast(int, worker.pid)))
    return {"first": values[0], "last": values[-1], "epochs": values}


def _resident_mib(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * 4096 / 2**20
