"""Plain webdataset 1.0.2 over the same shards, with the usual transform or our decoder and crop."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from webdataset.compat import WebDataset
from webdataset.filters import batched
from webdataset.handlers import ignore_and_continue
from webdataset.pipeline import DataPipeline

from data.config import ImageConfig
from data.images.boxes import NUM_UNIFORM
from data.images.transforms import training_crop
from data.shards import IMAGE_EXTENSIONS
from scripts._benchmark.loader_alternatives import CROP_AREA, Images, usual_transform

SHARD_SHUFFLE = 100  # shards, as webdataset chooses for shardshuffle=True
SAMPLE_SHUFFLE = 1_000  # its README: "usually, pick something bigger, like 1000"


def crop_sample(
    sample: dict[str, Any],
    generator: np.random.Generator,
    size: tuple[int, int],
    crop_area: tuple[float, float] | None = None,
) -> Tensor:
    """Decode a sample of webdataset's and cut a training crop: uint8 (3, H, W)."""
    (content,) = (value for key, value in sample.items() if key in IMAGE_EXTENSIONS)
    numbers = generator.random(NUM_UNIFORM)
    return training_crop(content, numbers, size, crop_area or ImageConfig().crop_area)


def webdataset(images: Images) -> Iterator[Tensor]:
    """Run it as its README shows: decode("pil"), then the usual transform, batched in the worker.

    Shards are shuffled, and samples in a buffer of 1,000.
    """
    transform = usual_transform(images.image_size)
    samples: Any = WebDataset(images.shards, shardshuffle=SHARD_SHUFFLE).shuffle(SAMPLE_SHUFFLE)
    samples = samples.decode("pil").to_tuple("jpg;png").map_tuple(transform)
    return (pixels for (pixels,) in _batches(samples, images.batch_size))


def webdataset_ours(images: Images) -> Iterator[Tensor]:
    """Run it with our decoder and crop: only the stream differs from ours.

    No labels, keys or checksums. A sample that does not decode is left out without a word, because
    `warn_and_continue` sleeps half a second.
    """
    generator = np.random.default_rng(0)
    size = (images.image_size, images.image_size)

    def crop(sample: dict[str, Any]) -> Tensor:
        return crop_sample(sample, generator, size, CROP_AREA)

    samples: Any = WebDataset(images.shards, shardshuffle=SHARD_SHUFFLE).shuffle(SAMPLE_SHUFFLE)
    return _batches(samples.map(crop, handler=ignore_and_continue), images.batch_size)


def _batches(samples: Any, batch_size: int) -> Iterator[Any]:
    # after the repetition, so that no batch is short; default_collate fills shared memory at once
    batches = batched(batch_size, collation_fn=default_collate)
    dataset = DataPipeline(samples.repeat(), batches)
    return iter(DataLoader(cast(Any, dataset), batch_size=None, num_workers=1))
