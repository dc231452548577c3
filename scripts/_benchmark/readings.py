"""One epoch of shards read by us, and by plain webdataset: what came, what was said of the rest.

webdataset is used as its README shows, and told to go on after errors and to warn of them:

    WebDataset(shards, shardshuffle=False, handler=warn_and_continue)
        .decode("pil", handler=warn_and_continue)
        .to_tuple("__url__", "__key__", "png;jpg", "cls", handler=warn_and_continue)
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from webdataset.compat import WebDataset
from webdataset.handlers import warn_and_continue

from data.batch import Batch
from data.index.manifest import Manifest
from data.index.open import open_manifest
from data.samples import Samples
from data.settings import RunStopped, UserError
from data.stream import Share, evaluation_batches
from scripts._benchmark.faulty_files import SIZE

_BATCH_SIZE = 8


@dataclass(frozen=True, order=True)
class Name:
    """A sample's name: its shard's file name and its key."""

    shard: str
    key: str


@dataclass
class Reading:
    """What one reading of an epoch gave.

    Attributes:
        seen: Each sample that came, with a digest of its pixels and its label.
        named: Samples that a message names.
        named_shards: Shards that a message names.
        messages: Warnings, ledger entries and errors.
        has_stopped: It ended with an error, so nobody takes it for a whole epoch.
    """

    seen: list[tuple[Name, str]] = field(default_factory=list[tuple[Name, str]])
    named: set[Name] = field(default_factory=set[Name])
    named_shards: set[str] = field(default_factory=set[str])
    messages: list[str] = field(default_factory=list[str])
    has_stopped: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of an epoch's samples; the first four add up to all of them.

    Attributes:
        read: Came, with the pixels and the label that were written.
        mixed_up: Came with other pixels or another label.
        told: Did not come, and a message names the sample or its shard, or the reading stopped.
        silent: Did not come, and nothing says so.
        repeated: Came again, beyond the first time.
        invented: Came under a name that was never written.
        messages: What was said, the first ones.
    """

    read: int
    mixed_up: int
    told: int
    silent: int
    repeated: int
    invented: int
    num_messages: int
    messages: list[str]


_NUM_KEPT = 3  # messages in an outcome


def judge(reference: dict[Name, str], reading: Reading) -> Outcome:
    """Compare a reading with what the same reader saw of the shards before the fault."""
    times = Counter(name for name, _ in reading.seen)
    digests: dict[Name, set[str]] = {name: set() for name in reference}
    for name, digest in reading.seen:
        digests.setdefault(name, set()).add(digest)
    came = [name for name in reference if digests[name]]
    lost = [name for name in reference if not digests[name]]
    whole = sum(digests[name] == {reference[name]} for name in came)
    told = sum(
        reading.has_stopped or name in reading.named or name.shard in reading.named_shards
        for name in lost
    )
    return Outcome(
        read=whole,
        mixed_up=len(came) - whole,
        told=told,
        silent=len(lost) - told,
        repeated=sum(times[name] - 1 for name in came),
        invented=sum(name not in reference for name in times),
        num_messages=len(reading.messages),
        messages=[message[:200] for message in reading.messages[:_NUM_KEPT]],
    )


def read_ours(shards: Sequence[str], manifest: Manifest | None = None) -> Reading:
    """Read an epoch as a run does: manifest, index, checksums, decoder, ledger.

    Args:
        shards: Paths or URLs.
        manifest: What a run holds that opened them before; None opens them now.
    """
    reading = Reading()
    try:
        manifest = manifest or open_manifest(list(shards), "data.shards")
        for shard in manifest.shards:
            if shard.damage is not None:
                reading.messages.append(f"{shard.name}: {shard.damage}")
                reading.named_shards.add(shard.name.rpartition("/")[2])
        samples = Samples(manifest, SIZE, seed=0, labelled=True)
        with closing(samples.reader):
            for batch in evaluation_batches(samples, Share(0, 1, _BATCH_SIZE), workers=0):
                _add_batch(reading, batch)
    except (UserError, RunStopped, OSError) as error:
        reading.messages.append(str(error))
        reading.has_stopped = True
    return reading


def _add_batch(reading: Reading, batch: Batch) -> None:
    good = torch.nonzero(batch.tensors["weight"]).flatten().tolist()
    for slot, place in zip(good, batch.places, strict=True):
        pixels = batch.tensors["image"][slot].permute(1, 2, 0).numpy()
        name = Name(place.shard.rpartition("/")[2], place.key)
        reading.seen.append((name, _digest(pixels, int(batch.tensors["label"][slot]))))
    for entry in batch.bad:
        reading.messages.append(f"{entry.shard}/{entry.key}: {entry.reason}")
        reading.named.add(Name(entry.shard.rpartition("/")[2], str(entry.key)))


def read_webdataset(shards: Sequence[str]) -> Reading:
    """Read an epoch with plain webdataset, as this module's first lines state."""
    reading = Reading()
    source: Any = WebDataset(list(shards), shardshuffle=False, handler=warn_and_continue)
    dataset = source.decode("pil", handler=warn_and_continue).to_tuple(
        "__url__", "__key__", "png;jpg", "cls", handler=warn_and_continue
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for url, key, image, label in dataset:
                name = Name(url.rpartition("/")[2], key)
                pixels = np.asarray(image.convert("RGB"))
                reading.seen.append((name, _digest(pixels, int(label))))
        except Exception as error:  # whatever ends the epoch tells of it
            reading.messages.append(repr(error))
            reading.has_stopped = True
    texts = [str(warning.message) for warning in caught if _is_handlers(warning)]
    reading.messages += texts
    names = [Path(shard).name for shard in shards]
    for text in texts:  # a warning that names no shard is held to tell of all of them
        reading.named_shards |= {name for name in names if name in text} or set(names)
    return reading


def _is_handlers(warning: warnings.WarningMessage) -> bool:
    """Tell whether webdataset's handler warned, and not Python of an unclosed file."""
    return Path(warning.filename).name == "handlers.py"


def _digest(pixels: np.ndarray, label: int) -> str:
    return sha256(np.ascontiguousarray(pixels).tobytes() + label.to_bytes(4, "little")).hexdigest()
