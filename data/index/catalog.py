"""The catalog of a set of shards when a run starts, and where their indexes lie.

Beside the shards of a folder lie one `NAME.tar.index` each and one `manifest.jsonl` with a row a
shard. What they say of a local shard holds while its size and modification time are those in the
row. For a folder that cannot be written, both go to a cache folder.

The table of a folder of images, or of a list, is made at each start, and lies in the cache folder.

Of remote shards, the rows and indexes on the server count if they were uploaded with the shards;
else those in the cache folder, each of one etag. Neither costs a request a shard: who reads a shard
refuses one that is not the one indexed.
"""

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from data.disks import explain
from data.index.files import FileTable
from data.index.making import Job, Known, index_path, is_index_of
from data.index.manifest import (
    MANIFEST_NAME,
    Manifest,
    Row,
    Shards,
    Strings,
    make_manifest,
    read_rows,
    split_location,
)
from data.index.offsets import ShardIndex
from data.index.tables import folder_of, is_images, list_files
from data.listing.shards import list_shards, shard_names
from data.settings import RunStopped, UserError, require
from data.shards import INDEX_SUFFIX, atomic_write
from data.storage.files import read_file
from data.storage.locations import Missing, Storage, is_remote, public_name, user_cache
from data.text import printable

_MAX_MANIFEST = 1 << 30  # bytes that are taken from a server
_logger = logging.getLogger(__name__)


class Catalog:
    """The shards that a configuration names, in arrays with one entry a shard.

    Args:
        spec: As for `data.listing.shards.list_shards`.
        key: The configuration's key, for error texts.
        storage: How remote shards are read.

    Attributes:
        locations: The shards.
        names: Their names in messages and in traces.
    """

    def __init__(self, spec: object, key: str, storage: Storage) -> None:
        self.locations = list_shards(spec, key)
        self.names = shard_names(self.locations)
        self._storage = storage
        number = len(self.locations)
        self._num_samples = np.full(number, -1, np.int64)  # -1: there is no row that holds
        self._num_bytes = np.zeros(number, np.int64)
        self._mtimes = np.zeros(number, np.int64)  # ns, of the local files as they are now
        self._sha256s = np.zeros((number, 32), np.uint8)
        self._folder_ids = np.zeros(number, np.int32)
        self._folders: dict[Path, int] = {}
        self._served: set[Path] = set()
        self._etags: dict[int, str] = {}
        self._damages: dict[int, str] = {}
        self._stale: dict[int, Known] = {}
        self._targets: dict[str, Path] = {}
        self._key = key
        self._images = [i for i, location in enumerate(self.locations) if is_images(location)]
        self._tables: dict[int, Path] = {}
        for folder, places in self._by_folder(key).items():
            look_up = self._look_up_remote if is_remote(folder) else self._look_up_local
            look_up(folder, places)

    def __len__(self) -> int:
        return len(self.locations)

    def put(self, place: int, row: Row, folder: Path) -> None:
        """Take in a shard's row, whose index lies in a folder."""
        self._num_samples[place] = row.num_samples
        self._num_bytes[place] = row.num_bytes
        self._sha256s[place] = np.frombuffer(bytes.fromhex(row.sha256), np.uint8)
        self._folder_ids[place] = self._folders.setdefault(folder, len(self._folders))
        self._etags.pop(place, None)
        self._damages.pop(place, None)
        if row.etag is not None:
            self._etags[place] = row.etag
        if row.damage is not None:
            self._damages[place] = row.damage

    def list_images(self, begun: Mapping[int, Path] | None = None) -> None:
        """List the folders and lists of images among the shards.

        Args:
            begun: By place, the tables on which a run was begun (see `list_files`).

        Raises:
            RunStopped: A table cannot be written.
            UserError: One has no image, or what cannot be read; or an image is in two of them.
        """
        files: dict[str, int] = {}
        for place in self._images:
            location = self.locations[place]
            former = (begun or {}).get(place)
            table, path = list_files(location, self._key, cache_folder(location), former)
            if len(self._images) > 1:
                self._require_apart(table, place, files)
            self._put_table(place, table, path)

    def _put_table(self, place: int, table: FileTable, path: Path) -> None:
        self._num_samples[place] = len(table)
        self._num_bytes[place] = table.num_bytes
        self._sha256s[place] = np.frombuffer(bytes.fromhex(table.sha256), np.uint8)
        self._tables[place] = path

    def _require_apart(self, table: FileTable, place: int, files: dict[str, int]) -> None:
        """Refuse images that are in two folders or lists, which would be trained on twice."""
        folder = folder_of(self.locations[place])
        for path in table.states:
            file = os.path.normpath(folder / path)
            other = self.locations[files.setdefault(file, place)]
            require(
                other == self.locations[place],
                f"{self._key}: {printable(file)} is in {printable(other)} and in "
                f"{printable(self.locations[place])}, and would be read twice; name it once",
            )

    def is_missing(self, place: int) -> bool:
        """Tell whether no row of a shard holds."""
        return bool(self._num_samples[place] < 0)

    def drop(self, place: int) -> None:
        """Leave out a shard that cannot be used, whatever was known of it."""
        self._num_samples[place] = -1

    def missing(self) -> list[int]:
        """Return the places of the shards of which no row holds."""
        return np.flatnonzero(self._num_samples < 0).tolist()

    def target(self, place: int) -> Path:
        """Return the folder for a shard's index, which is made.

        Raises:
            RunStopped: If there is none that can be written.
        """
        folder = split_location(self.locations[place]).folder
        if folder not in self._targets:
            self._targets[folder] = _target(folder)
        return self._targets[folder]

    def job(self, place: int, *, again: bool = False) -> Job:
        """Return the job that indexes a shard; `again` scans also what has not changed."""
        return Job(
            place=place,
            name=self.names[place],
            location=self.locations[place],
            target=self.target(place),
            known=self._known(place),
            storage=self._storage,
            again=again,
        )

    def manifest(self) -> Manifest:
        """Return the manifest of the shards of which a row holds."""
        there = np.flatnonzero(self._num_samples >= 0)
        places: Sequence[int] = there.tolist()
        shards = Shards(
            names=Strings([self.names[i] for i in places]),
            locations=Strings([self.locations[i] for i in places]),
            etags=Strings([self._etags.get(i, "") for i in places]),
            num_samples=self._num_samples[there],
            num_indexed=self._num_samples[there],
            num_bytes=self._num_bytes[there],
            sha256s=self._sha256s[there],
            damages={i: self._damages[p] for i, p in enumerate(places) if p in self._damages},
            index_folders=tuple(map(str, self._folders)),
            index_folder_ids=self._folder_ids[there],
            tables={i: self._tables[p] for i, p in enumerate(places) if p in self._tables},
        )
        return make_manifest(shards, self._storage)

    def _known(self, place: int) -> Known | None:
        """Return what an earlier start knew of a shard, whether it holds or not."""
        if self._num_samples[place] < 0:
            return self._stale.get(place)
        location = self.locations[place]
        folder = list(self._folders)[self._folder_ids[place]]
        row = Row(
            file=split_location(location).file,
            num_samples=int(self._num_samples[place]),
            num_bytes=int(self._num_bytes[place]),
            mtime_ns=None if is_remote(location) else int(self._mtimes[place]),
            sha256=self._sha256s[place].tobytes().hex(),
            damage=self._damages.get(place),
            etag=self._etags.get(place),
        )
        return Known(row, folder, folder in self._served)

    # ------------------------------------------------------------ looking up

    def _by_folder(self, key: str) -> dict[str, dict[str, int]]:
        """Group the shards' places by folder and file name."""
        folders: dict[str, dict[str, int]] = {}
        images = set(self._images)
        for place, location in enumerate(self.locations):
            if place in images:
                continue
            lies = split_location(location)
            first = folders.setdefault(lies.folder, {}).setdefault(lies.file, place)
            name = public_name(location)
            require(first == place, f"{key}: {name} is named twice; name it once")
        return folders

    def _look_up_local(self, folder: str, places: dict[str, int]) -> None:
        for place in places.values():
            stat = os.stat(self.locations[place])  # noqa: PTH116 - a tenth of a Path's time
            self._num_bytes[place], self._mtimes[place] = stat.st_size, stat.st_mtime_ns
        self._take_local_rows(Path(folder), places)
        if rest := {file: i for file, i in places.items() if self._num_samples[i] < 0}:
            self._take_local_rows(cache_folder(folder), rest)

    def _take_local_rows(self, folder: Path, places: dict[str, int]) -> None:
        """Take the rows of a folder that hold; note the others, of which the newest counts."""
        is_indexed = _indexed(folder, places, len(self))
        stale: dict[int, Known] = {}
        for row in read_rows(folder):
            place = places.get(row.file)
            if place is None or not is_indexed[place]:
                continue
            if (row.num_bytes, row.mtime_ns) == (self._num_bytes[place], self._mtimes[place]):
                self.put(place, row, folder)
                stale.pop(place, None)
            else:  # also if an earlier row held: a file's last row counts
                self._num_samples[place] = -1
                stale[place] = Known(row, folder)
        for place, known in stale.items():
            other = self._stale.get(place)
            if other is None or (known.row.mtime_ns or 0) > (other.row.mtime_ns or 0):
                self._stale[place] = known

    def _look_up_remote(self, folder: str, places: dict[str, int]) -> None:
        served = self._fetch_manifest(folder, next(iter(places.values())))
        if served is not None:
            self._served.add(served)
            self._take_served_rows(served, places)
        cached = cache_folder(folder)
        rest = {file: i for file, i in places.items() if self._num_samples[i] < 0}
        is_indexed = _indexed(cached, rest, len(self))
        for row in read_rows(cached):
            place = rest.get(row.file)
            if place is not None and is_indexed[place]:
                self.put(place, row, cached)

    def _fetch_manifest(self, folder: str, place: int) -> Path | None:
        """Fetch the manifest beside remote shards into a folder named by its content."""
        location = split_location(self.locations[place]).manifest_location
        try:
            content = read_file(location, self._storage, _MAX_MANIFEST)
        except Missing:
            return None
        served = cache_folder(folder) / f"served-{sha256(content).hexdigest()[:32]}"
        if not (served / MANIFEST_NAME).exists():
            _make_folder(folder, served)
            with atomic_write(served / MANIFEST_NAME) as file:
                file.write(content)
        return served

    def _take_served_rows(self, served: Path, places: dict[str, int]) -> None:
        """Take the rows of a server's manifest, if the indexes were uploaded with it."""
        taken: list[int] = []
        for row in read_rows(served):
            place = places.get(row.file)
            if place is not None:
                # its etag, if any, is another server's
                self.put(place, replace(row, mtime_ns=None, etag=None), served)
                taken.append(place)
        if taken and not self._has_served_index(taken[0], served):
            _logger.info("the server's %s lacks its indexes and is not used", MANIFEST_NAME)
            self._num_samples[taken] = -1

    def _has_served_index(self, place: int, served: Path) -> bool:
        location = self.locations[place]
        path = index_path(served, location)
        try:
            if not path.exists():
                fetch_index(location, path, self._storage)
            index = ShardIndex.load(path)
        except (Missing, UserError):
            path.unlink(missing_ok=True)
            return False
        sha256 = self._sha256s[place].tobytes().hex()
        return is_index_of(index, int(self._num_samples[place]), sha256)


def _indexed(folder: Path, places: dict[str, int], number: int) -> np.ndarray:
    """Tell of each shard whether its index is in a folder: bool, (number,)."""
    is_indexed = np.zeros(number, np.bool_)
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            name, place = entry.name, None
            if name.endswith(INDEX_SUFFIX):
                place = places.get(name.removesuffix(INDEX_SUFFIX))
            if place is not None:
                is_indexed[place] = True
    return is_indexed


# ---------------------------------------------------------------- servers


def fetch_index(location: str, path: Path, storage: Storage) -> None:
    """Fetch the index that lies beside a remote shard, whole or not at all.

    Raises:
        RunStopped: If it cannot be fetched; `Missing` if it is not there.
    """
    content = read_file(split_location(location).index_location, storage, _MAX_MANIFEST)
    with atomic_write(path) as file:
        file.write(content)


# ---------------------------------------------------------------- where indexes go


def cache_folder(folder: str | Path) -> Path:
    """Return where the index of a folder goes that cannot be written: by its path or URL."""
    name = str(folder) if is_remote(str(folder)) else Path(folder).absolute()
    return user_cache("index") / sha256(os.fsencode(name)).hexdigest()[:32]


def is_writable(folder: Path) -> bool:
    """Tell whether a file can be made in a folder; `os.access` is wrong on network disks."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _target(folder: str) -> Path:
    """Choose where the index of a folder's shards goes."""
    if not is_remote(folder) and is_writable(Path(folder)):
        return Path(folder)
    target = cache_folder(folder)
    _make_folder(folder, target)
    return target


def _make_folder(folder: str, target: Path) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunStopped(
            f"the index of {public_name(folder)} goes to {target}, which cannot be made: "
            f"{explain(error)}; XDG_CACHE_HOME can name another folder"
        ) from error
