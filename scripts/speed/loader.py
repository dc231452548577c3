"""Speed of one loader process against the usual pipeline of Pillow and torchvision."""

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from data.index.manifest import Manifest
from data.index.opening import open_manifest
from data.loader import Batch, ImageConfig, Samples
from data.order import Order
from data.reader import ShardReader
from data.settings import require
from data.shards import IMAGE_EXTENSIONS, list_shards
from data.stream import Share, TrainingStream
from data.transforms import UnreadableImage, decode
from scripts.speed.rounds import Speeds, clock
from scripts.speed.webdataset_stream import webdataset_batches

RATIOS = {"loader_vs_pil": ("loader", "pil"), "loader_vs_webdataset": ("loader", "webdataset")}
_MANY = 1_000_000_000  # batches: an iterator that never ends starts its worker once
_MAX_IN_MEMORY = 2000  # images
_READ_AHEAD = 2  # batches that a worker makes while nobody asks


@dataclass(frozen=True)
class LoaderOptions:
    """What is measured, and for how long.

    Attributes:
        shards: Read by both.
        image_size: Pixels a side.
        batch_size: Images a batch.
        rounds: Turns of each variant.
        seconds: Of each turn.
        epochs: Epochs over which a worker's memory is watched; 0: not at all.
    """

    shards: list[str]
    image_size: int
    batch_size: int
    rounds: int
    seconds: float
    epochs: int


def measure_loader(options: LoaderOptions) -> Speeds:
    """Measure three variants in turns, each with one worker process of one thread.

    - `loader`: `TrainingStream`, from shards to uint8 crops.
    - `pil`: Pillow's decoder, then RandomResizedCrop (bicubic), RandomHorizontalFlip, ToTensor and
      Normalize, over the same images' bytes, held in memory (of many shards the first 2,000).
    - `webdataset`: plain webdataset over the same shards, with our decoder and crop: only the
      stream differs, ours with index, checksums, order and the names of its samples.

    Raises:
        UserError: The shards cannot be used.
    """
    manifest = open_manifest(options.shards, "SHARDS")
    sources = {
        "loader": (len(batch.places) for batch in _batches(manifest, options, _MANY)),
        "pil": map(len, _pil_batches(manifest, options)),
        "webdataset": map(len, _webdataset_batches(options)),
    }
    speeds = Speeds()
    for source in sources.values():
        next(source)
    for _ in range(options.rounds):
        for name, source in sources.items():
            for _ in range(_READ_AHEAD):
                next(source)
            speeds.add(name, _images_per_second(source, options.seconds))
    return speeds


def _images_per_second(source: Iterator[int], seconds: float) -> float:
    """Take batches for about some seconds, and count the images in them: padding is none."""
    begin = now = clock()
    done = 0
    while not done or now - begin < seconds:
        done += next(source)
        now = clock()
    return done / (now - begin)


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
    source = _batches(manifest, options, (options.epochs + 1) * steps_per_epoch)
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


def _batches(manifest: Manifest, options: LoaderOptions, num_batches: int) -> Iterator[Batch]:
    """Yield our batches; an epoch's last is filled up with padding."""
    size = (options.image_size, options.image_size)
    samples = Samples(manifest, size, 0, ImageConfig().crop_area)
    share = Share(0, 1, options.batch_size)
    stream = TrainingStream(samples, options.batch_size, share, workers=1)
    return (batch for (batch,) in stream.steps(0, num_batches))


class _PilDataset(Dataset[Tensor]):
    """The usual dataset, with the images' bytes in memory."""

    def __init__(self, contents: list[bytes], image_size: int) -> None:
        self._contents = contents
        self._transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(image_size, interpolation=InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            ]
        )

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, number: int) -> Tensor:
        """Decode and crop one image."""
        image = Image.open(BytesIO(self._contents[number])).convert("RGB")
        return cast(Tensor, self._transform(image))


def _pil_batches(manifest: Manifest, options: LoaderOptions) -> Iterator[Tensor]:
    """Yield the usual pipeline's batches."""
    dataset = _PilDataset(_read_images(manifest), options.image_size)
    loader = DataLoader(
        dataset,
        batch_size=options.batch_size,
        # with replacement the sampler never ends, so no epoch's start holds the worker up
        sampler=RandomSampler(dataset, replacement=True, num_samples=_MANY),
        num_workers=1,
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)


def _webdataset_batches(options: LoaderOptions) -> Iterator[Tensor]:
    """Yield plain webdataset's batches."""
    locations = [str(location) for location in list_shards(options.shards, "SHARDS")]
    size = (options.image_size, options.image_size)
    return webdataset_batches(
        locations, size, options.batch_size, pin_memory=torch.cuda.is_available()
    )


def _read_images(manifest: Manifest) -> list[bytes]:
    """Read the images of the first `_MAX_IN_MEMORY` samples, those that cannot be used left out."""
    order, reader = Order(manifest.starts, 0), ShardReader(manifest)
    places = [order.locate(i) for i in range(min(_MAX_IN_MEMORY, manifest.num_samples))]
    members = [reader.read(shard, place, IMAGE_EXTENSIONS) for shard, place in places]
    return [content for images in members for content in images.values() if _is_usable(content)]


def _is_usable(content: bytes) -> bool:
    try:
        decode(content)
    except UnreadableImage:
        return False
    return True
