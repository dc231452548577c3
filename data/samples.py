"""Requests -> batches: read, decode and crop.

The dataset is stateless: a request names an epoch and a range of positions, and what comes back
depends on nothing else. So any number of workers gives the same batches.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.batch import Batch, LedgerEntry, Request, SamplePlace
from data.images.boxes import AUGMENTATION, NUM_UNIFORM
from data.images.decoding import UnreadableImage
from data.images.limits import MODES
from data.images.transforms import evaluation_crop, training_crop
from data.index.manifest import Manifest
from data.labels.classes import Numbering, as_it_is
from data.labels.parse import NO_LABEL, multi_hot, read_label, read_label_set
from data.order import Order
from data.randomness import combine, derive, uniform
from data.reading.bad import BadSample
from data.reading.reader import ShardReader
from data.shards import (
    ARRAY_EXTENSION,
    IMAGE_EXTENSIONS,
    LABEL_EXTENSION,
    PICTURE_EXTENSIONS,
    choose_image,
)
from data.shared_memory import blank_images
from data.text import name_some

_CROP = 1  # purpose of a sample's random numbers
PADDING = -1  # the sample id of a slot that has none
_Content = TypeVar("_Content")  # what is read of a sample beside its label


class Samples(Dataset[Batch]):
    """Requests -> batches, with no state.

    Attributes:
        is_in_memory: No file is read for a request, but for what cannot be decoded.

    Args:
        manifest: The indexed shards.
        size: (H, W) of the images.
        seed: The run's seed.
        crop_area: Range of training crops' areas; None cuts evaluation crops and keeps the order
            of the shards.
        labelled: A sample without a label is bad.
        num_classes: K of a multi-label set; None where a sample has one class.
        augment: A training crop, uint8 (C, H, W), and a 32-bit seed -> such a crop.
        channels: C. A sample that is neither of so many nor can be converted is bad.
        numbering: From the class numbers in the shards to those of the labels; None where they are
            the same.
    """

    is_in_memory = False

    def __init__(
        self,
        manifest: Manifest,
        size: tuple[int, int],
        *,
        seed: int,
        crop_area: tuple[float, float] | None = None,
        labelled: bool = False,
        num_classes: int | None = None,
        augment: Callable[[Tensor, int], Tensor] | None = None,
        channels: int = 3,
        numbering: Numbering | None = None,
    ) -> None:
        self.manifest = manifest
        self.order = Order(manifest.starts, seed)
        self.reader = ShardReader(manifest)
        self.size = size
        self.crop_area = crop_area
        self.is_training = crop_area is not None
        self.labelled = labelled
        self.num_classes = num_classes
        self.augment = augment
        self.channels = channels
        self.numbering = numbering
        # an array beside a picture may be its features: read only where there is no picture
        self._wanted = PICTURE_EXTENSIONS if channels in MODES else IMAGE_EXTENSIONS

    def __getitem__(self, request: Request) -> Batch:
        """Read, decode and crop one request's samples."""
        return self._fill(request, self._read, self._crop)

    def _fill(
        self,
        request: Request,
        read: Callable[[int, int], tuple[_Content, int | np.ndarray]],
        crop: Callable[[_Content, np.ndarray], Tensor],
        is_left_out: np.ndarray | None = None,
    ) -> Batch:
        """Answer a request, given what reads a sample by its shard and place, and what crops it.

        Slots that are left out, bool (B,), stay as padding is.
        """
        ids = self._ids(request)
        keys = self._keys(request.epoch, ids)
        is_asked = ids != PADDING if is_left_out is None else (ids != PADDING) & ~is_left_out
        located = {
            slot: self.order.locate(int(ids[slot])) for slot in np.flatnonzero(is_asked).tolist()
        }
        places = {slot: self._place_of(request, slot, *found) for slot, found in located.items()}
        return fill_batch(
            keys,
            places,
            (self.channels, *self.size),
            lambda slot: read(*located[slot]),
            crop,
            self.num_classes,
        )

    def _place_of(self, request: Request, slot: int, shard: int, place: int) -> SamplePlace:
        name, key = self.manifest.shards.names[shard], self.reader.key(shard, place)
        return SamplePlace(request.epoch, request.start + slot, name, key)

    @property
    def constants(self) -> dict[str, Any]:
        """What decides which samples come when; a checkpoint holds it."""
        return {**self.order.constants}

    def name(self, sample_id: int) -> str:
        """Return SHARD/KEY of a sample by its place among all that are listed."""
        request = Request(0, sample_id, sample_id + 1)
        return self._place_of(request, 0, *self.order.locate(sample_id)).name

    def _ids(self, request: Request) -> np.ndarray:
        """Return the sample ids of a request's slots; padding has the id -1."""
        return self._at(request.epoch, np.arange(request.start, request.stop))

    def _at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Return the sample ids at positions; -1 where there is no such position."""
        ids = np.full(positions.size, PADDING)
        is_there = (positions >= 0) & (positions < self.manifest.num_samples)
        known = positions[is_there]
        ids[is_there] = self.order.samples(epoch, known) if self.is_training else known
        return ids

    def _keys(self, epoch: int, ids: np.ndarray) -> np.ndarray:
        """Return the random key of each sample in an epoch."""
        return combine(np.full(ids.size, derive(self.order.seed, epoch)), ids)

    def _read(self, shard: int, place: int) -> tuple[bytes, int | np.ndarray]:
        """Return the image's bytes and the label."""
        return self._choose(shard, self._members(shard, place))

    def _members(self, shard: int, place: int) -> dict[str, bytes]:
        """Read what is used of a sample, an image among it; a label only where it matters."""
        wanted = self._wanted | {LABEL_EXTENSION} if self.labelled else self._wanted
        members = self.reader.read(shard, place, wanted)
        if choose_image(members, self.channels) is None:
            members |= self.reader.read(shard, place, {ARRAY_EXTENSION})
        if choose_image(members, self.channels) is None:
            raise BadSample(_without_image(self.reader.extensions(shard, place)))
        return members

    def _choose(self, shard: int, members: dict[str, bytes]) -> tuple[bytes, int | np.ndarray]:
        """Return the image's bytes and the label among what was read."""
        label = self._label(shard, members) if self.labelled else NO_LABEL
        return pick_image(members, self.channels), label

    def _label(self, shard: int, members: dict[str, bytes]) -> int | np.ndarray:
        """Return a sample's class, or those of a multi-label set as 0 and 1."""
        renumber = self.numbering or as_it_is
        if self.num_classes is None:
            return renumber(shard, read_label(members))
        classes = [renumber(shard, number) for number in read_label_set(members)]
        return multi_hot(classes, self.num_classes)

    def _crop(self, content: bytes, numbers: np.ndarray) -> Tensor:
        if self.crop_area is None:
            return evaluation_crop(content, self.size, self.channels)
        crop = training_crop(content, numbers, self.size, self.crop_area, self.channels)
        return self.augment(crop, int(numbers[AUGMENTATION] * 2**32)) if self.augment else crop


def crop_numbers(keys: np.ndarray) -> np.ndarray:
    """Draw what decides the crops of samples: their random keys, int64 (B,) -> (B, NUM_UNIFORM)."""
    return uniform(combine(keys, _CROP), NUM_UNIFORM)


def fill_batch(
    keys: np.ndarray,
    places: Mapping[int, SamplePlace],
    shape: tuple[int, int, int],
    read: Callable[[int], tuple[_Content, int | np.ndarray]],
    crop: Callable[[_Content, np.ndarray], Tensor],
    num_classes: int | None = None,
) -> Batch:
    """Decode and crop samples into a batch; one that cannot be used keeps its slot with weight 0.

    Args:
        keys: int64 (B,), each slot's random key.
        places: The samples by slot; the other slots are padding.
        shape: (C, H, W) of the images.
        read: A slot -> its content, such as the image's bytes, and the label; may raise
            `BadSample`.
        crop: That content and its (NUM_UNIFORM,) numbers -> uint8 (C, H, W); may raise
            `UnreadableImage` and `BadSample`.
        num_classes: K of a multi-label set.
    """
    numbers = crop_numbers(keys)
    image = blank_images((keys.size, *shape))
    pixels = image.numpy()  # its item assignment takes a tenth of a tensor's time
    weight = np.zeros(keys.size, np.float32)
    label = np.full((keys.size, *([] if num_classes is None else [num_classes])), NO_LABEL)
    bad: list[LedgerEntry] = []
    for slot, place in places.items():
        try:
            content, label[slot] = read(slot)
            pixels[slot] = crop(content, numbers[slot]).numpy()
        except (BadSample, UnreadableImage) as error:
            bad.append(LedgerEntry(*place, str(error)))
            continue
        weight[slot] = 1
    arrays = {"weight": weight, "random_key": keys, "label": label}
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    good = [place for slot, place in places.items() if weight[slot]]
    return Batch({"image": image, **tensors}, good, bad)


def pick_image(members: dict[str, bytes], channels: int = 3) -> bytes:
    """Return the image among a sample's members, given by extension.

    Raises:
        BadSample: There is none.
    """
    extension = choose_image(members, channels)
    if extension is None:
        raise BadSample(_without_image([name for name in members if not name.startswith("__")]))
    return members[extension]


def _without_image(extensions: Sequence[str]) -> str:
    endings = name_some([f".{extension}" for extension in extensions])
    return f"no image among its members ({endings}); a key ends at the first dot of a name"
