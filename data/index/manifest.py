"""The manifest of a set of shards, in memory and as rows in a folder's `manifest.jsonl`.

A folder of images, or a list of them, counts as one shard, whose index is the table of its files.

In memory it is a few arrays, not an object a shard: 1e5 shards cost megabytes, fork without copies
and are pickled at once.
"""

import fcntl
import json
import os
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass, field, replace
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, overload
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from data.index.parts import Part
from data.shards import INDEX_SUFFIX, atomic_write
from data.storage.locations import Storage, is_remote, protocol_of

MANIFEST_NAME = "manifest.jsonl"
_MAX_NAME = 240  # bytes; file systems allow 255, and the index adds its suffix
_HEX_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard of a manifest.

    Attributes:
        name: Its path below the deepest folder common to all shards of the manifest.
        location: The tar, or the folder or list of images: an absolute path or a URL.
        index_path: Its index, for `data.index.open.load_index`.
        is_tar: It is a tar, and not a folder or list of images.
        num_samples: Samples that are used.
        num_indexed: Readable samples when it was indexed; more than are used of a `thinned` one, or
            of a part.
        num_bytes: The tar's size, or that of all images.
        sha256: Of the whole tar that was indexed, or of the table of files, in hex.
        etag: What the server called that tar; None of local ones, and where it is not known.
        damage: What is wrong with the tar, or None.
        part: The part of its samples that is used, or None for all.
    """

    name: str
    location: str
    index_path: Path
    is_tar: bool
    num_samples: int
    num_indexed: int
    num_bytes: int
    sha256: str
    etag: str | None
    damage: str | None
    part: Part | None


class Strings(Sequence[str]):
    """Many strings in one piece of memory."""

    def __init__(self, values: Sequence[str]) -> None:
        encoded = [value.encode("utf-8", "surrogateescape") for value in values]
        self._ends = np.fromiter(accumulate(map(len, encoded)), np.int64, len(encoded))
        self._data = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        start = int(self._ends[place - 1]) if place else 0
        return self._data[start : int(self._ends[place])].decode("utf-8", "surrogateescape")


@dataclass(frozen=True, eq=False)
class Shards(Sequence[Shard]):
    """The shards of a manifest, of which each is made when it is asked for.

    Attributes:
        names: As in `Shard`, and so are the following.
        locations: One a shard.
        etags: Empty for None.
        num_samples: int64.
        num_indexed: int64.
        num_bytes: int64.
        sha256s: uint8, (number of shards, 32).
        damages: By place, for the damaged ones alone.
        index_folders: The distinct folders of indexes.
        index_folder_ids: int32, the place of each shard's folder there.
        tables: The indexes of folders and lists of images, by place.
        part: The part of the samples that is used, or None for all.
    """

    names: Strings
    locations: Strings
    etags: Strings
    num_samples: npt.NDArray[np.int64]
    num_indexed: npt.NDArray[np.int64]
    num_bytes: npt.NDArray[np.int64]
    sha256s: npt.NDArray[np.uint8]
    damages: dict[int, str]
    index_folders: tuple[str, ...]
    index_folder_ids: npt.NDArray[np.int32]
    tables: dict[int, Path] = field(default_factory=dict[int, Path])
    part: Part | None = None

    def __len__(self) -> int:
        return len(self.num_samples)

    @overload
    def __getitem__(self, place: int) -> Shard: ...
    @overload
    def __getitem__(self, place: slice) -> list[Shard]: ...
    def __getitem__(self, place: int | slice) -> Shard | list[Shard]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        location = self.locations[place]
        table = self.tables.get(place)
        return Shard(
            name=self.names[place],
            location=location,
            index_path=self._index_path(place, location) if table is None else table,
            is_tar=table is None,
            num_samples=int(self.num_samples[place]),
            num_indexed=int(self.num_indexed[place]),
            num_bytes=int(self.num_bytes[place]),
            sha256=self.sha256s[place].tobytes().hex(),
            etag=self.etags[place] or None,
            damage=self.damages.get(place),
            part=self.part,
        )

    def _index_path(self, place: int, location: str) -> Path:
        folder = self.index_folders[self.index_folder_ids[place]]
        return Path(folder, split_location(location).file + INDEX_SUFFIX)

    @property
    def damaged(self) -> list[Shard]:
        """The damaged shards, without a look at the others."""
        return [self[place] for place in sorted(self.damages)]

    @property
    def empty(self) -> list[str]:
        """The names of the shards without a sample that are not named as damaged."""
        places = map(int, np.flatnonzero(self.num_indexed == 0))
        return [self.names[place] for place in places if place not in self.damages]


@dataclass(frozen=True, eq=False)
class Manifest:
    """The shards of a stream, in order.

    Attributes:
        shards: A sequence of `Shard`.
        starts: int64, (number of shards + 1,): how many samples lie before each shard, then in all.
        fingerprint: sha256 (hex) over the shards' names, contents and sample counts, in order.
        content: The same without the names: what decides which samples a run is trained on.
        storage: How the shards are read.
    """

    shards: Shards
    starts: npt.NDArray[np.int64]
    fingerprint: str
    content: str
    storage: Storage

    @property
    def num_samples(self) -> int:
        """Readable samples in all shards."""
        return int(self.starts[-1])


def make_manifest(shards: Shards, storage: Storage) -> Manifest:
    """Count the samples and take the fingerprints, which do not depend on where shards lie."""
    digest, content = sha256(), sha256()
    hexes = (content.tobytes().hex() for content in shards.sha256s)
    for row in zip(shards.names, hexes, shards.num_samples.tolist(), strict=True):
        digest.update(json.dumps(row).encode() + b"\n")
        content.update(json.dumps(row[1:]).encode() + b"\n")
    if shards.part is not None:
        for each in (digest, content):
            each.update(json.dumps(astuple(shards.part)).encode())
    starts = np.concatenate([[0], np.cumsum(shards.num_samples)]).astype(np.int64)
    return Manifest(shards, starts, digest.hexdigest(), content.hexdigest(), storage)


def thinned(manifest: Manifest, ratio: float) -> Manifest:
    """Use `ratio` of the samples alone: of each shard its share, the same ones in each run.

    Which ones, `data.index.open.load_index` decides by a hash; those of a smaller ratio are nearly
    all among those of a larger one.
    """
    if ratio == 1:
        return manifest
    kept = np.diff(np.round(manifest.starts * ratio).astype(np.int64))
    return make_manifest(replace(manifest.shards, num_samples=kept), manifest.storage)


def whole(manifest: Manifest) -> Manifest:
    """Use all samples again of what was thinned, or is a part."""
    shards = replace(manifest.shards, num_samples=manifest.shards.num_indexed, part=None)
    return make_manifest(shards, manifest.storage)


# ---------------------------------------------------------------- folders


class ShardPlace(NamedTuple):
    """Where a shard lies.

    Attributes:
        folder: The absolute path or URL of its folder.
        file: Its name there, as rows of manifests and indexes have it.
        path: The location without the query.
        query: What follows it in an http URL, such as a signature; what lies beside has it too.
    """

    folder: str
    file: str
    path: str
    query: str

    @property
    def index_location(self) -> str:
        """The location of the index that may lie beside it."""
        return f"{self.path}{INDEX_SUFFIX}{self.query}"

    @property
    def manifest_location(self) -> str:
        """The location of the manifest that may lie beside it."""
        return f"{self.folder}/{MANIFEST_NAME}{self.query}"


def split_location(location: str) -> ShardPlace:
    """Split a location into its folder and its name there."""
    if not (is_remote(location) and protocol_of(location) in ("http", "https")):
        folder, _, file = location.rpartition("/")
        return ShardPlace(folder or "/", file, location, "")
    path = re.split(r"[?#]", location, maxsplit=1)[0]
    folder, _, name = path.rpartition("/")
    query = location[len(path) :]
    return ShardPlace(folder, _file_name(unquote(name), query), path, query)


def _file_name(name: str, query: str) -> str:
    """Return what a URL's file is called on this machine; a name may hide a path, or be none."""
    is_name = "/" not in name and "\0" not in name and len(os.fsencode(name)) <= _MAX_NAME
    if is_name and (name.endswith(".tar") or not query):
        return name
    return sha256(f"{name}{query}".encode()).hexdigest()[:32]


# ---------------------------------------------------------------- the rows of a folder


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a folder's manifest: what was indexed, and of which state of the file it holds.

    Attributes:
        file: The shard's name in the folder.
        num_samples: As indexed.
        num_bytes: The size at which the row holds.
        mtime_ns: The modification time at which the row holds; None of remote shards.
        sha256: As indexed, in hex.
        damage: What is wrong with the shard, or None.
        etag: The etag at which the row holds; None of local shards.
    """

    file: str
    num_samples: int
    num_bytes: int
    mtime_ns: int | None
    sha256: str
    damage: str | None
    etag: str | None = None


def read_rows(folder: Path) -> Iterator[Row]:
    """Yield the rows of a folder's manifest; of several of one file, the last one counts.

    A line that cannot be read only costs another scan.
    """
    with suppress(FileNotFoundError), (folder / MANIFEST_NAME).open("rb") as file:
        for line in file:
            row = _parse(line)
            if row is not None:
                yield row


def _parse(line: bytes) -> Row | None:
    try:
        row = Row(**json.loads(line.decode()))
        is_right = (
            _is_count(row.num_samples)
            and _is_count(row.num_bytes)
            and type(row.file) is str
            and _HEX_SHA256.fullmatch(row.sha256) is not None
            and (row.damage is None or row.damage.isprintable())  # it becomes a line of a log
            and (row.etag is None or type(row.etag) is str)
        )
    except (AttributeError, RecursionError, TypeError, ValueError):
        return None
    return row if is_right else None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _line(row: Row) -> bytes:
    return json.dumps(asdict(row)).encode() + b"\n"


def append_rows(folder: Path, rows: Iterable[Row]) -> None:
    """Add rows to a folder's manifest, which costs the same however long it is."""
    lines = b"".join(map(_line, rows))
    with _locked(folder), (folder / MANIFEST_NAME).open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            is_torn = file.read(1) != b"\n"  # by a kill or a full disk
            lines = b"\n" * is_torn + lines
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def tidy_rows(folder: Path) -> None:
    """Write a folder's manifest anew, sorted and with one row a shard, whole or not at all."""
    with _locked(folder):
        rows = {row.file: row for row in read_rows(folder)}
        with atomic_write(folder / MANIFEST_NAME) as file:
            file.writelines(_line(rows[name]) for name in sorted(rows))


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Keep other processes from a folder's manifest meanwhile.

    Network disks that know no such lock go without: a row lost there costs another scan.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
