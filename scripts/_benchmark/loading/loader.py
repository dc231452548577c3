"""Speed of one core that makes training crops: ours, and what people would use instead."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.ExifTags import Base

from data.images import jpeg
from data.images.decoding import UnreadableImage, decode
from data.index.manifest import Manifest
from data.index.open import open_manifest
from data.order import Order
from data.reading.bad import BadSample
from data.reading.reader import ShardReader
from data.samples import pick_image
from data.settings import UserError
from data.shards import ImageFile, write_shard
from scripts._benchmark.installed import Package, choose
from scripts._benchmark.loading.one_core import start_on_one_core, take_turn
from scripts._benchmark.loading.sources import SOURCES, Images
from scripts._benchmark.options import LoaderOptions, Measured
from scripts._benchmark.photographs import shards_or_photographs
from scripts._benchmark.records import Rounds, add_values, make_record, table

OURS = "loader"
RATIOS = {
    "loader_vs_folder": (OURS, "folder"),
    "loader_vs_pil": (OURS, "pil"),
    "loader_vs_pil_uint8": (OURS, "pil_uint8"),
    "loader_vs_dali": (OURS, "dali"),
    "loader_vs_webdataset": (OURS, "webdataset"),
    "loader_vs_timm": (OURS, "timm"),
    "loader_vs_streaming": (OURS, "streaming"),
    "stream_vs_webdataset": (OURS, "webdataset_ours"),
}
PACKAGES = {
    "pil": Package("pillow", "PIL"),
    "pil_uint8": Package("pillow", "PIL"),
    "webdataset": Package("webdataset", "webdataset"),
    "webdataset_ours": Package("webdataset", "webdataset"),
    "timm": Package("timm", "timm"),
    "dali": Package("nvidia-dali-cuda120", "nvidia.dali"),
    "streaming": Package("mosaicml-streaming", "streaming"),
    "folder": Package("pillow", "PIL"),
}
_MAX_IMAGES = 2000
_SHARD = 100  # images
_EXTENSIONS = {"jpg", "jpeg", "png"}  # what all alternatives decode
_KINDS = {"JPEG": "jpg", "PNG": "png"}


def measure(options: LoaderOptions, folder: Path) -> Measured:
    """Measure what one core gives, in turns.

    Each variant has a process of its own, held to one core with all that it starts: one loader
    worker of one thread and the caller's side. All read copies of the same images (of many shards
    the first 2,000, as JPEG or PNG), cut the same part of 8 to 100 % of the area at 3/4 to 4/3,
    resize it to one size and flip half of them.

    - `loader`: `TrainingStream`; only the crop decoded, and resized meanwhile, where `jpeg.c`
      could be built (the record's `decodes_crops`), bilinear with antialiasing, uint8.
    - `folder`: the same over a folder of files in place of shards.
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
        UserError: The shards cannot be used, or an alternative that is named is not installed.
    """
    names = [OURS, *choose(options.against, PACKAGES)]
    speeds, cpu_speeds = Rounds(), Rounds("images_per_cpu_second")
    with ExitStack() as running:
        images = copy_images(options, shards_or_photographs(options.shards, folder), folder)
        variants = {
            name: running.enter_context(start_on_one_core(name, SOURCES[name], images))
            for name in names
        }
        for variant in variants.values():
            variant.wait_until_made()
        for _ in range(options.rounds):
            for name, variant in variants.items():
                turn = variant.call(take_turn, options.seconds)
                speeds.add(name, turn.num_images / turn.seconds)
                cpu_speeds.add(name, turn.num_images / turn.cpu_seconds)
    record = make_record("loader", asdict(options), speeds, RATIOS)
    add_values(record, cpu_speeds, {f"{name}_cpu": pair for name, pair in RATIOS.items()})
    record["decodes_crops"] = jpeg.is_available()
    return record, table(record)


def copy_images(options: LoaderOptions, shards: list[str], folder: Path) -> Images:
    """Copy what all variants see alike into shards of 100, a label beside each, and index them.

    Raises:
        UserError: There is none.
    """
    files = list(_usable_images(open_manifest(shards, "SHARDS")))
    if not files:
        raise UserError("SHARDS hold no plain RGB or grey JPEG or PNG; name others, or none")
    copies: list[str] = []
    for first in range(0, len(files), _SHARD):
        path = folder / f"copies-{first:06d}.tar"
        write_shard(path, files[first : first + _SHARD])
        copies.append(str(path))
    open_manifest(copies, "SHARDS")  # indexes them
    return Images(copies, len(files), options.image_size, options.batch_size, str(folder))


def _usable_images(manifest: Manifest) -> Iterator[ImageFile]:
    order, reader = Order(manifest.starts, 0), ShardReader(manifest)
    for number in range(min(_MAX_IMAGES, manifest.num_samples)):
        shard, place = order.locate(number)
        with suppress(BadSample, UnreadableImage):
            content = pick_image(reader.read(shard, place, _EXTENSIONS))
            decode(content)
            kind = _plain_kind(content)
            if kind is not None:
                yield ImageFile(f"{number:06d}", kind, content, label=0)


def _plain_kind(content: bytes) -> str | None:
    """Return the extension of an image that all variants see alike: no alpha, turned by no EXIF."""
    image = Image.open(BytesIO(content))
    is_plain = image.mode in ("RGB", "L") and image.getexif().get(Base.Orientation, 1) == 1
    return _KINDS.get(str(image.format)) if is_plain else None
