"""The captions among which is searched: all of the first samples', equal ones once."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

import numpy as np

from data.captions.config import CaptionConfig
from data.captions.read import caption_extension, read_captions
from data.captions.vocabulary import Vocabulary
from data.index.manifest import Manifest
from data.reading.bad import BadSample
from data.reading.reader import ShardReader
from data.settings import require


class Gallery(NamedTuple):
    """Captions, distinct to the model: those of equal pieces are one.

    Attributes:
        tokens: int64 (U, L), as `Vocabulary.encode` gives them, short ones first.
        words: int64 (U, L), the word that each piece belongs to, as it gives them.
        texts: One text of each.
        owned: int64 (N, U), how many captions of each sample are each of them.
        num_cut: Captions of which `data.max_tokens` cuts some pieces off.
    """

    tokens: np.ndarray
    words: np.ndarray
    texts: list[str]
    owned: np.ndarray
    num_cut: int


def open_gallery(
    manifest: Manifest, number: int, vocabulary: Vocabulary, config: CaptionConfig
) -> Gallery:
    """Read and encode all captions of the first samples, in listed order.

    Args:
        manifest: The indexed shards.
        number: N, of samples; one without a usable caption owns none.
        vocabulary: Of the model.
        config: Where captions are, and how long.

    Raises:
        UserError: There is no caption in them.
    """
    found = [
        (sample, text, vocabulary.encode(text, config.max_tokens))
        for sample, texts in enumerate(_read(manifest, number, config.caption_key))
        for text in texts
    ]
    found = [(sample, text, encoded) for sample, text, encoded in found if encoded.words.max() >= 0]
    require(bool(found), f"no caption that can be used in the first {number} samples of SHARDS")
    rows = np.stack([encoded.tokens for _, _, encoded in found])
    lengths = (rows != vocabulary.pad).sum(axis=1, keepdims=True)
    unique, first, inverse = np.unique(
        np.hstack([lengths, rows]), axis=0, return_index=True, return_inverse=True
    )
    owned = np.zeros((number, len(unique)), np.int64)
    owners = np.array([sample for sample, _, _ in found])
    np.add.at(owned, (owners, inverse.reshape(-1)), 1)
    texts = [found[place][1] for place in first]
    words = np.stack([found[place][2].words for place in first])
    num_cut = sum(encoded.num_cut > 0 for _, _, encoded in found)
    return Gallery(unique[:, 1:], words, texts, owned, num_cut)


def _read(manifest: Manifest, number: int, caption_key: str | None) -> Iterator[list[str]]:
    """Yield the captions of the first samples."""
    reader, wanted = ShardReader(manifest), {caption_extension(caption_key)}
    places = ((s, i) for s, shard in enumerate(manifest.shards) for i in range(shard.num_samples))
    for place in islice(places, number):
        texts: list[str] = []
        with suppress(BadSample):  # the pass over the images names it
            texts = read_captions(reader.read(*place, wanted), caption_key)
        yield texts
    reader.close()
