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

from data.index import Manifest, open_manifest
from data.loader import ImageConfig, Samples
from data.order import Order
from data.reader import ShardReader
from data.settings import require
from data.shards import IMAGE_EXTENSIONS
from data.stream import Share, TrainingStream
from data.transforms import UnreadableImage, decode
from scripts.speed.rounds import Speeds, images_per_second

RATIOS = {"loader_vs_pil": ("loader", "pil")}
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
    """Measure two variants in turns, each with one worker process of one thread.

    - `loader`: `TrainingStream`, from shards to uint8 crops.
    - `pil`: Pillow's decoder, then RandomResizedCrop (bicubic), RandomHorizontalFlip, ToTensor and
      Normalize, over the same images' bytes, held in memory (of many shards the first 2,000).

    Raises:
        UserError: The shards cannot be used.
    """
    manifest = open_manifest(options.shards, "SHARDS")
    sources = {"loader": _batches(manifest, options, _MANY), "pil": _pil_batches(manifest, options)}
    speeds = Speeds()
    for source in sources.values():
        next(source)
    for _ in range(options.rounds):
        for name, source in sources.items():
            for _ in range(_READ_AHEAD):
                next(source)
            work = source.__next__
            speeds.add(name, images_per_second(work, options.batch_size, options.seconds))
    return speeds


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


def _batches(manifest: Manifest, options: LoaderOptions, num_batches: int) -> Iterator[object]:
    """Yield our batches."""
    size = (options.image_size, options.image_size)
    samples = Samples(manifest, size, 0, ImageConfig().crop_area)
    share = Share(0, 1, options.batch_size)
    return TrainingStream(samples, options.batch_size, share, workers=1).steps(0, num_batches)


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


def _pil_batches(manifest: Manifest, options: LoaderOptions) -> Iterator[object]:
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
