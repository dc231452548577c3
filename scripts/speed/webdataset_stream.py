"""Plain webdataset 1.0.2 over the same shards, with our decoder and our crop."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from webdataset.compat import WebDataset
from webdataset.filters import batched
from webdataset.handlers import ignore_and_continue
from webdataset.pipeline import DataPipeline

from data.loader import ImageConfig
from data.shards import IMAGE_EXTENSIONS
from data.transforms import NUM_UNIFORM, decode, training_crop

SHARD_SHUFFLE = 100  # shards, as webdataset chooses for shardshuffle=True
SAMPLE_SHUFFLE = 1_000  # its README: "usually, pick something bigger, like 1000"


def crop_sample(
    sample: dict[str, Any], generator: np.random.Generator, size: tuple[int, int]
) -> Tensor:
    """Decode a sample of webdataset's and cut a training crop: uint8 (3, H, W)."""
    (content,) = (value for key, value in sample.items() if key in IMAGE_EXTENSIONS)
    numbers = generator.random(NUM_UNIFORM)
    return training_crop(decode(content), numbers, size, ImageConfig().crop_area)


def webdataset_batches(
    locations: list[str], size: tuple[int, int], batch_size: int, *, pin_memory: bool
) -> Iterator[Tensor]:
    """Yield uint8 (B, 3, H, W) without end, from one worker process.

    As its README shows: shards shuffled, a buffer of 1,000 samples, batches made in the worker. No
    labels, keys or checksums. A sample that does not decode is left out without a word, because
    `warn_and_continue` sleeps half a second.
    """
    generator = np.random.default_rng(0)

    def crop(sample: dict[str, Any]) -> Tensor:
        return crop_sample(sample, generator, size)

    samples: Any = WebDataset(locations, shardshuffle=SHARD_SHUFFLE)
    samples = samples.shuffle(SAMPLE_SHUFFLE).map(crop, handler=ignore_and_continue).repeat()
    # after the repetition, so that no batch is short; default_collate fills shared memory at once
    batches = batched(batch_size, collation_fn=default_collate)
    dataset = DataPipeline(samples, batches)
    loader = DataLoader(cast(Any, dataset), batch_size=None, num_workers=1, pin_memory=pin_memory)
    return iter(loader)
