"""Sources of training crops, ours and others', over the same images.

Every source is a function of `Images` that yields batches without end, as torch tensors in the
process that calls it. All cut a random part (`CROP_AREA` of the image, `ASPECT`), resize it
to one size and flip half of them. The alternatives are used as their documentation has them.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, default_collate
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from webdataset.compat import WebDataset
from webdataset.filters import batched
from webdataset.handlers import ignore_and_continue
from webdataset.pipeline import DataPipeline

from data.images.boxes import NUM_UNIFORM
from data.images.transforms import training_crop
from data.index.open import open_manifest
from data.order import Order
from data.reading.reader import ShardReader
from data.samples import Samples
from data.shards import IMAGE_EXTENSIONS, PICTURE_EXTENSIONS
from data.stream import Share, TrainingStream

CROP_AREA = (0.08, 1.0)  # of the image's area
ASPECT = (3 / 4, 4 / 3)
MANY = 1_000_000_000  # images or batches: an iterator that never ends starts its worker once
_EPOCH = 1_000_000  # images: Streaming makes a whole epoch's order at its start
_SHARD_SHUFFLE = 100  # shards, as webdataset chooses for shardshuffle=True
_SHUFFLE = (
    1_000  # samples: webdataset's README, "usually, pick something bigger, like 1000"; DALI's
)


@dataclass(frozen=True)
class Images:
    """The images that all sources read, and what they make of them.

    Attributes:
        shards: Local tars of `jpg` and `png` members, each beside a `cls` member.
        num_images: In all of them.
        image_size: Pixels a side.
        batch_size: Images a batch.
        folder: Where a source may write; each into a folder of its own name.
    """

    shards: list[str]
    num_images: int
    image_size: int
    batch_size: int
    folder: str


def usual_transform(
    image_size: int,
    interpolation: InterpolationMode = InterpolationMode.BICUBIC,
    *,
    is_float: bool = True,
) -> Callable[[Image.Image], Tensor]:
    """Return torchvision's usual transform: to normalised float32, or to uint8 as it is."""
    crop = transforms.RandomResizedCrop(image_size, CROP_AREA, ASPECT, interpolation)
    flip = transforms.RandomHorizontalFlip()
    if not is_float:
        return transforms.Compose([crop, flip, transforms.PILToTensor()])
    normalise = transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return transforms.Compose([crop, flip, transforms.ToTensor(), normalise])


def ours(images: Images) -> Iterator[Tensor]:
    """Run our stream."""
    return stream(images, images.shards)


def ours_of_files(images: Images) -> Iterator[Tensor]:
    """Run our stream over a folder that holds each image as a file."""
    folder = Path(images.folder, "files")
    folder.mkdir(exist_ok=True)
    for number, content in enumerate(read_images(images.shards)):
        ending = "png" if content.startswith(b"\x89PNG") else "jpg"
        (folder / f"{number:06d}.{ending}").write_bytes(content)
    return stream(images, str(folder))


def stream(images: Images, shards: list[str] | str, workers: int = 1) -> Iterator[Tensor]:
    """Run our stream over shards or a folder, in so many processes."""
    manifest = open_manifest(shards, "SHARDS")
    samples = Samples(manifest, (images.image_size, images.image_size), seed=0, crop_area=CROP_AREA)
    size = images.batch_size
    batches = TrainingStream(samples, size, Share(0, 1, size), workers).steps(0, MANY)
    # an epoch's last batch is filled up with padding, which is no image
    return (batch.tensors["image"][: len(batch.places)] for (batch,) in batches)


def read_images(shards: list[str]) -> list[bytes]:
    """Read the bytes of the shards' images, in order."""
    manifest = open_manifest(shards, "SHARDS")
    order, reader = Order(manifest.starts, 0), ShardReader(manifest)
    places = [order.locate(number) for number in range(manifest.num_samples)]
    members = [reader.read(shard, place, PICTURE_EXTENSIONS) for shard, place in places]
    return [content for images in members for content in images.values()]


class _InMemory(Dataset[Tensor]):
    """The usual dataset, with the images' bytes in memory."""

    def __init__(self, contents: list[bytes], transform: Callable[[Image.Image], Tensor]) -> None:
        self._contents = contents
        self._transform = transform

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, number: int) -> Tensor:
        """Decode and crop one image."""
        return self._transform(_open_image(self._contents[number]))


def _open_image(content: bytes) -> Image.Image:
    """Open an image as the usual dataset does."""
    return Image.open(BytesIO(content)).convert("RGB")


def pil(images: Images) -> Iterator[Tensor]:
    """Run the usual dataset: Pillow, bicubic, ToTensor and Normalize; its files are in memory."""
    return _in_memory(images, usual_transform(images.image_size))


def pil_uint8(images: Images) -> Iterator[Tensor]:
    """Run the same with our output: bilinear, uint8."""
    transform = usual_transform(images.image_size, InterpolationMode.BILINEAR, is_float=False)
    return _in_memory(images, transform)


def _in_memory(images: Images, transform: Callable[[Image.Image], Tensor]) -> Iterator[Tensor]:
    dataset = _InMemory(read_images(images.shards), transform)
    # with replacement the sampler never ends, so no epoch's start holds the worker up
    sampler = RandomSampler(dataset, replacement=True, num_samples=MANY)
    return iter(DataLoader(dataset, images.batch_size, sampler=sampler, num_workers=1))


def webdataset(images: Images) -> Iterator[Tensor]:
    """Run it as its README shows: decode("pil"), then the usual transform, batched in the worker.

    Shards are shuffled, and samples in a buffer of 1,000.
    """
    transform = usual_transform(images.image_size)
    samples = _shuffled(images).decode("pil").to_tuple("jpg;png").map_tuple(transform)
    return (pixels for (pixels,) in _batches(samples, images.batch_size))


def webdataset_ours(images: Images) -> Iterator[Tensor]:
    """Run it with our decoder and crop: only the stream differs from ours.

    No labels, keys or checksums. A sample that does not decode is left out without a word, because
    `warn_and_continue` sleeps half a second.
    """
    generator = np.random.default_rng(0)
    size = (images.image_size, images.image_size)

    def crop(sample: dict[str, Any]) -> Tensor:
        (content,) = (value for key, value in sample.items() if key in IMAGE_EXTENSIONS)
        return training_crop(content, generator.random(NUM_UNIFORM), size, CROP_AREA)

    samples = _shuffled(images).map(crop, handler=ignore_and_continue)
    return _batches(samples, images.batch_size)


def _shuffled(images: Images) -> Any:
    dataset = WebDataset(images.shards, shardshuffle=_SHARD_SHUFFLE)
    return dataset.shuffle(_SHUFFLE)


def _batches(samples: Any, batch_size: int) -> Iterator[Any]:
    # after the repetition, so that no batch is short; default_collate fills shared memory at once
    batches = batched(batch_size, collation_fn=default_collate)
    dataset = DataPipeline(samples.repeat(), batches)
    return iter(DataLoader(cast(Any, dataset), batch_size=None, num_workers=1))


def timm_reader(images: Images) -> Iterator[Tensor]:
    """Run timm's webdataset reader with its training transform, as its train.py calls them.

    Bicubic, no colour jitter. Counted is what its worker makes, uint8 by `fast_collate`: its
    `PrefetchLoader` would normalise them on the device. Its shuffle's buffer is its own, 8,192.
    """
    timm_data = import_module("timm.data")
    folder = Path(images.folder) / "timm"
    folder.mkdir()
    split = {"name": "train", "num_samples": images.num_images, "filenames": images.shards}
    info = {"splits": {"train": split | {"shard_lengths": []}}}
    (folder / "_info.json").write_text(json.dumps(info))
    dataset = timm_data.create_dataset(
        "wds/",
        str(folder),
        split="train",
        is_training=True,
        batch_size=images.batch_size,
        num_samples=MANY,
    )
    loader = timm_data.create_loader(
        dataset,
        input_size=(3, images.image_size, images.image_size),
        batch_size=images.batch_size,
        is_training=True,
        scale=CROP_AREA,
        ratio=ASPECT,
        color_jitter=None,
        interpolation="bicubic",
        num_workers=1,
        device=torch.device("cpu"),
    )
    return (pixels for pixels, _ in loader.loader)


def dali(images: Images) -> Iterator[Tensor]:
    """Run DALI's CPU pipeline: num_threads=1, its executor's and reader's threads beside it.

    The crop is cut while decoding, which spares the rest of the image. `resize` is linear with
    antialiasing, as ours, and batches are (B, H, W, 3) as it leaves them. The decoder's inverse
    transform is libjpeg's accurate one, its default and everybody's (use_fast_idct=False).
    """
    nvidia, fn, types = (import_module(f"nvidia.dali{part}") for part in ("", ".fn", ".types"))
    side = images.image_size
    pipeline = nvidia.Pipeline(images.batch_size, num_threads=1, device_id=None, seed=0)
    with pipeline:
        encoded = fn.readers.webdataset(
            paths=images.shards, ext=["jpg;png"], random_shuffle=True, initial_fill=_SHUFFLE
        )
        parts = fn.decoders.image_random_crop(
            encoded, random_area=CROP_AREA, random_aspect_ratio=ASPECT, output_type=types.RGB
        )
        crops = fn.resize(parts, size=(side, side), interp_type=types.INTERP_LINEAR)
        pipeline.set_outputs(fn.flip(crops, horizontal=fn.random.coin_flip()))
    pipeline.build()
    while True:
        (batch,) = pipeline.run()
        yield torch.from_dlpack(batch.as_tensor())


def streaming(images: Images) -> Iterator[Tensor]:
    """Run MosaicML Streaming: MDS shards of the same bytes, read locally, and the usual transform.

    The order is shuffled by its own default, py1e.
    """
    mosaic: Any = import_module("streaming")
    folder = str(Path(images.folder) / "streaming")
    with mosaic.MDSWriter(out=folder, columns={"image": "bytes"}) as writer:
        for content in read_images(images.shards):
            writer.write({"image": content})
    transform = usual_transform(images.image_size)

    class Crops(mosaic.StreamingDataset):
        def __getitem__(self, at: int) -> Tensor:
            return transform(_open_image(super().__getitem__(at)["image"]))

    dataset = Crops(local=folder, batch_size=images.batch_size, shuffle=True, epoch_size=_EPOCH)
    loader = DataLoader(cast(Any, dataset), images.batch_size, num_workers=1, drop_last=True)
    return _without_end(loader)


def _without_end(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from batches


SOURCES: dict[str, Callable[[Images], Iterator[Tensor]]] = {
    "loader": ours,
    "folder": ours_of_files,
    "pil": pil,
    "pil_uint8": pil_uint8,
    "webdataset": webdataset,
    "webdataset_ours": webdataset_ours,
    "timm": timm_reader,
    "dali": dali,
    "streaming": streaming,
}
