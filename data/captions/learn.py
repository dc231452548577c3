"""A vocabulary out of the captions of shards."""

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from tqdm import tqdm

from data.captions.config import CaptionedDataConfig
from data.captions.read import caption_extension, read_captions
from data.captions.vocabulary import NO_WORD, Vocabulary, count_words
from data.index.manifest import Manifest
from data.reading.bad import BadSample
from data.reading.reader import ShardReader
from data.settings import require
from data.storage.files import keep_connections
from data.storage.locations import is_remote
from data.text import count, percent, printable

MOST_CAPTIONS = 100_000  # that a vocabulary is learnt from: more change few of its pieces
_REMOTE_THREADS = 16  # a request a caption: one after the other would take an hour
_CHUNK = 256  # samples
_MAX_OPEN = 4  # shards that a thread holds open
_LOOKS = 500  # captions by which a given vocabulary is judged
_MOSTLY = 0.8  # of their words
_logger = logging.getLogger(__name__)


def learn_vocabulary(manifest: Manifest, config: CaptionedDataConfig) -> Vocabulary:
    """Learn the vocabulary of a run from its first captions, in listed order.

    Args:
        manifest: The training shards.
        config: Says where the captions are, and how many pieces there shall be.

    Raises:
        UserError: There is no caption that can be used.
    """
    captions = read_some(manifest, config.caption_key, "data.shards")
    return Vocabulary.learn(captions, config.vocabulary_size)


def read_some(
    manifest: Manifest, caption_key: str | None, key: str, most: int = MOST_CAPTIONS
) -> list[str]:
    """Read the first captions of shards, all of each sample; bad samples are passed over.

    Args:
        manifest: The indexed shards.
        caption_key: As in `read_captions`.
        key: What names the shards, for messages.
        most: Captions that are read.

    Raises:
        UserError: There is no caption that can be used.
    """
    reasons: list[str] = []
    found = islice(_read(manifest, caption_key, reasons), most)
    captions = list(tqdm(found, "captions", unit="caption", delay=2, disable=None))
    first = f", the first: {reasons[0]}" if reasons else ""
    require(bool(captions), f"{key}: no sample has a caption that can be used{first}")
    if reasons:
        _logger.info(
            "passed over %s without a usable caption%s", count(len(reasons), "sample"), first
        )
    return captions


def _read(manifest: Manifest, caption_key: str | None, reasons: list[str]) -> Iterator[str]:
    """Yield the captions of all samples; note why there are none."""
    reader = ShardReader(manifest)
    for (shard, sample), members in _members(manifest, caption_extension(caption_key)):
        try:
            if isinstance(members, BadSample):
                raise members
            yield from read_captions(members, caption_key)
        except BadSample as error:
            name = printable(f"{manifest.shards.names[shard]}/{reader.key(shard, sample)}")
            reasons.append(f"{name}: {error}")


class _OwnReader(threading.local):
    """A reader for each thread."""

    def __init__(self, manifest: Manifest) -> None:
        self.reader = ShardReader(manifest, max_open=_MAX_OPEN)


def _members(
    manifest: Manifest, extension: str
) -> Iterator[tuple[tuple[int, int], dict[str, bytes] | BadSample]]:
    """Read one member of all samples, in listed order; of remote shards, many at a time."""
    own = _OwnReader(manifest)

    def read(place: tuple[int, int]) -> dict[str, bytes] | BadSample:
        try:
            return own.reader.read(*place, {extension})
        except BadSample as error:
            return error

    num_threads = _REMOTE_THREADS if any(map(is_remote, manifest.shards.locations)) else 1
    places = ((s, i) for s, shard in enumerate(manifest.shards) for i in range(shard.num_samples))
    with keep_connections(), ThreadPoolExecutor(num_threads) as pool:
        while chunk := list(islice(places, _CHUNK)):
            yield from zip(chunk, pool.map(read, chunk), strict=True)


def whole_ratio(vocabulary: Vocabulary, captions: list[str]) -> float:
    """Return what part of the words of captions are a piece of their own."""
    counts: Counter[str] = count_words(captions)
    whole = sum(number for word, number in counts.items() if _is_whole(vocabulary, word))
    return whole / counts.total()


def warn_of_parts(
    vocabulary: Vocabulary, manifest: Manifest, caption_key: str | None, key: str
) -> None:
    """Warn where a vocabulary was not learnt from texts like these, by a look at the first.

    Args:
        vocabulary: A given one.
        manifest: The indexed shards.
        caption_key: As in `read_captions`.
        key: What names the shards, for the message.
    """
    captions = list(islice(_read(manifest, caption_key, []), _LOOKS))
    ratio = whole_ratio(vocabulary, captions) if captions else 1.0
    if ratio < _MOSTLY:
        _logger.warning(
            "%s: %s of the words are whole pieces of the vocabulary, the others are cut into "
            "parts; before pretraining, learn one from these texts too: scripts/make_vocabulary.py",
            key,
            percent(ratio),
        )


def _is_whole(vocabulary: Vocabulary, word: str) -> bool:
    encoded = vocabulary.encode(word, 4)
    [first, second] = encoded.words[1:3].tolist()
    return (first, second) == (0, NO_WORD) and encoded.tokens[1] != vocabulary.unknown
