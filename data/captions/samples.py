"""Requests -> batches of images and captions.

A text for image-text matching is the image's own, or that of its neighbour in the epoch's order:
position `p` and `p XOR 1`. So it is the same on any number of ranks and loader processes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from data.batch import Batch, Request
from data.captions.aspect import Aspect
from data.captions.config import CaptionConfig
from data.captions.labels import KeyedClasses
from data.captions.read import caption_extension, read_captions
from data.captions.vocabulary import Encoded, Vocabulary
from data.images.boxes import FLIP
from data.index.manifest import Manifest
from data.labels.classes import Numbering
from data.labels.parse import NO_LABEL
from data.randomness import combine, uniform
from data.reading.bad import BadSample
from data.samples import Samples
from data.shards import JSON_EXTENSION
from data.text import name_some

VOCABULARY = "data.vocabulary (sha256)"  # among what a checkpoint holds of the samples
_CAPTION, _SWAP = 16, 17  # purposes of a sample's random numbers
_SWAP_RATIO = 0.5
_UNFLIPPED = 1.0  # as the number that decides a flip

_Place = tuple[int, int]  # a shard, and the sample's place in it
_Grid = tuple[int, int]  # rows and columns of patches


class _Caption(NamedTuple):
    """A sample's captions, the one that was drawn, and that as numbers."""

    texts: list[str]
    drawn: str
    encoded: Encoded


class CaptionedSamples(Samples):
    """Requests -> batches of images and captions, with no state.

    A sample without a usable caption is bad, as one without an image is. The batches have these
    tensors more, with L = `config.max_tokens`; of a slot with weight 0 the text is empty:

    - `tokens` int64 (B, L): a caption's pieces, as in `Encoded`; where there are several captions,
      one is drawn while training, and the first is taken in evaluation.
    - `words` int64 (B, L): the number of the word that each piece belongs to, else -1.
    - `num_cut` int64 (B,): pieces that had no room.
    - `pair_tokens` int64 (B, L), `is_match` int64 (B,): the own caption (1), or half of the time
      the one that the neighbour in the order has (0). A neighbour without a usable caption, or with
      an equal one, leaves it unswapped.
    - with `config.long_side`, `grid` int64 (B, 2): the rows and columns of patches of each image,
      which lies at the top left of (C, long_side, long_side), zeros elsewhere.

    Args:
        manifest: The indexed shards.
        size: (H, W) of the images; with `config.long_side`, twice the short side.
        seed: The run's seed.
        vocabulary: What the captions are encoded by.
        config: Where captions are, how long, and how images are cut.
        is_training: In each epoch's order, with `config.crop_area`; else in listed order, whole.
        patch_size: Pixels a side of a patch, where `config.long_side` is given.
        labelled: As in `Samples`.
        num_classes: As in `Samples`.
        channels: As in `Samples`.
        numbering: As in `Samples`.
        classes: The classes where a key of KEY.json has the label. One of no class has the label
            `NO_LABEL`; its weight is 0 while training, though it is not bad.
    """

    def __init__(
        self,
        manifest: Manifest,
        size: tuple[int, int],
        *,
        seed: int,
        vocabulary: Vocabulary,
        config: CaptionConfig,
        is_training: bool,
        patch_size: int | None = None,
        labelled: bool = False,
        num_classes: int | None = None,
        channels: int = 3,
        numbering: Numbering | None = None,
        classes: KeyedClasses | None = None,
    ) -> None:
        self._aspect = _aspect(size, config.long_side, patch_size)
        super().__init__(
            manifest,
            size if self._aspect is None else (self._aspect.long, self._aspect.long),
            seed=seed,
            crop_area=config.crop_area if is_training else None,
            labelled=labelled,
            num_classes=num_classes,
            channels=channels,
            numbering=numbering,
        )
        self.is_training = is_training
        self.vocabulary = vocabulary
        self.config = config
        self._images = self._wanted
        self._texts = frozenset({caption_extension(config.caption_key)})
        self._classes = classes
        labels = frozenset[str]() if classes is None else {JSON_EXTENSION}
        self._wanted = self._images | self._texts | labels

    def __getitem__(self, request: Request) -> Batch:
        """Read, decode, crop and encode one request's samples."""
        captions: dict[_Place, _Caption] = {}
        grids: list[_Grid] = []

        def read(shard: int, place: int) -> tuple[bytes, int | np.ndarray]:
            self._require_one_image(shard, place)
            members = self._members(shard, place)
            captions[shard, place] = self._caption(members, request.epoch, (shard, place))
            return self._choose(shard, members)

        def place(content: bytes, _: np.ndarray) -> torch.Tensor:
            assert self._aspect is not None
            image, grid = self._aspect.place(content, self.channels)
            grids.append(grid)
            return image

        batch = self._fill(request, read, self._crop if self._aspect is None else place)
        is_used = batch.tensors["weight"].numpy() > 0
        more = self._encode(request, is_used, captions)
        if self._aspect is not None:
            more["grid"] = _fill_grids(is_used, grids)
        batch = batch._replace(tensors=batch.tensors | more)
        return _without_others(batch) if self._classes is not None and self.is_training else batch

    def _label(self, shard: int, members: dict[str, bytes]) -> int | np.ndarray:
        if self._classes is not None:
            return self._classes.number(members)
        return super()._label(shard, members)

    @property
    def constants(self) -> dict[str, Any]:
        """What decides which samples come when, and what numbers their captions become."""
        return {**super().constants, VOCABULARY: self.vocabulary.sha256}

    def _encode(
        self, request: Request, is_used: np.ndarray, captions: Mapping[_Place, _Caption]
    ) -> dict[str, torch.Tensor]:
        """Return the tensors of the texts, given the captions that were read."""
        positions = np.arange(request.start, request.stop)
        ids, others = self._at(request.epoch, positions), self._neighbours(request.epoch, positions)
        blank = self.vocabulary.encode("", self.config.max_tokens)
        is_drawn = uniform(combine(self._keys(request.epoch, ids), _SWAP), 1)[:, 0] < _SWAP_RATIO
        own, pairs = [blank] * ids.size, [blank.tokens] * ids.size
        is_match = np.ones(ids.size, np.int64)
        for slot in np.flatnonzero(is_used).tolist():
            caption = captions[self.order.locate(int(ids[slot]))]
            own[slot], pairs[slot] = caption.encoded, caption.encoded.tokens
            if is_drawn[slot] and others[slot] >= 0:
                place = self.order.locate(int(others[slot]))
                other = captions.get(place) or self._read_caption(place, request.epoch)
                if other is not None and not _is_same(other, caption):
                    pairs[slot], is_match[slot] = other.encoded.tokens, 0
        arrays = {
            "tokens": np.stack([text.tokens for text in own]),
            "words": np.stack([text.words for text in own]),
            "num_cut": np.array([text.num_cut for text in own], np.int64),
            "pair_tokens": np.stack(pairs),
            "is_match": is_match,
        }
        return {name: torch.from_numpy(values) for name, values in arrays.items()}

    def _neighbours(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Return the id of the sample whose text may stand beside each position's image, or -1."""
        others = positions ^ 1
        is_last = others == self.manifest.num_samples  # of an odd number
        return self._at(epoch, np.where(is_last, positions - 1, others))

    def _read_caption(self, place: _Place, epoch: int) -> _Caption | None:
        """Read a caption alone: of another request, or of a sample without a usable image."""
        try:
            return self._caption(self.reader.read(*place, self._texts), epoch, place)
        except BadSample:
            return None

    def _caption(self, members: Mapping[str, bytes], epoch: int, place: _Place) -> _Caption:
        """Draw one of a sample's captions, and encode it."""
        config = self.config
        texts = read_captions(members, config.caption_key)
        drawn = texts[self._draw(epoch, place, len(texts)) if self.is_training else 0]
        encoded = self.vocabulary.encode(drawn, config.max_tokens)
        if not (encoded.words >= 0).any():
            raise BadSample("the caption holds no word")
        if encoded.num_cut and config.long_captions == "refuse":
            num_tokens = config.max_tokens + encoded.num_cut
            raise BadSample(
                f"the caption has {num_tokens} tokens, data.max_tokens={config.max_tokens}"
            )
        return _Caption(texts, drawn, encoded)

    def _draw(self, epoch: int, place: _Place, number: int) -> int:
        """Draw one of so many captions by (seed, epoch, sample)."""
        if number == 1:
            return 0
        sample_id = self.order.starts[place[0]] + place[1]
        [[share]] = uniform(combine(self._keys(epoch, np.array([sample_id])), _CAPTION), 1)
        return int(share * number)

    def _require_one_image(self, shard: int, place: int) -> None:
        """Raise `BadSample` for several images: it is not said which one the caption tells of."""
        images = images_among(self.reader.extensions(shard, place), self._images)
        if len(images) > 1:
            endings = name_some([f".{extension}" for extension in images])
            raise BadSample(f"{len(images)} images ({endings}), and a caption tells of one")

    def _crop(self, content: bytes, numbers: np.ndarray) -> torch.Tensor:
        numbers = numbers.copy()
        numbers[FLIP] = _UNFLIPPED  # the caption may say "left"
        return super()._crop(content, numbers)


def _without_others(batch: Batch) -> Batch:
    """Leave the samples of no class out of the loss: their weight is 0, but they have come."""
    weight = batch.tensors["weight"] * (batch.tensors["label"] != NO_LABEL)
    return batch._replace(tensors=batch.tensors | {"weight": weight})


def _is_same(other: _Caption, own: _Caption) -> bool:
    """Tell whether a text is one of an image's own, or looks so to the model."""
    return other.drawn in own.texts or np.array_equal(other.encoded.tokens, own.encoded.tokens)


def _aspect(size: tuple[int, int], long: int | None, patch_size: int | None) -> Aspect | None:
    if long is None:
        return None
    assert patch_size is not None
    assert size[0] == size[1]
    return Aspect(size[0], long, patch_size)


def _fill_grids(is_used: np.ndarray, grids: Sequence[_Grid]) -> torch.Tensor:
    """Return the grid of each slot; a blank one has a single patch, so that none is empty."""
    filled = np.ones((is_used.size, 2), np.int64)
    filled[is_used] = np.array(grids, np.int64).reshape(-1, 2)
    return torch.from_numpy(filled)


def images_among(extensions: Sequence[str], known: frozenset[str]) -> list[str]:
    """Return which of a sample's extensions are images of a kind that is read."""
    return [extension for extension in extensions if extension in known]
