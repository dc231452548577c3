"""The records that pass between the loader and the trainer: requests, places, batches."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Request(NamedTuple):
    """Positions `start` to `stop` of an epoch; those past its last sample are padding."""

    epoch: int
    start: int
    stop: int


class SamplePlace(NamedTuple):
    """A sample, and where an epoch has it."""

    epoch: int
    position: int
    shard: str
    key: str

    @property
    def name(self) -> str:
        """SHARD/KEY, as traces have it."""
        return f"{self.shard}/{self.key}"


class LedgerEntry(NamedTuple):
    """A sample or shard that was not used, as bad_samples.jsonl names it.

    A damaged shard is named whole, with neither position nor key.
    """

    epoch: int
    position: int | None
    shard: str
    key: str | None
    reason: str


class Batch(NamedTuple):
    """The samples of a request, as tensors and by name.

    Attributes:
        tensors: `image` uint8 (B, C, H, W); `weight` float32 (B,), 0 for padding and bad samples;
            `random_key` int64 (B,), the seed of each sample's random numbers in this epoch; `label`
            int64 (B,), or of a multi-label set 0 and 1 in int64 (B, K), or of images with masks
            uint8 (B, H, W).
        places: The samples with weight 1, in order.
        bad: The samples that could not be used.
    """

    tensors: dict[str, Tensor]
    places: Sequence[SamplePlace]
    bad: list[LedgerEntry]
