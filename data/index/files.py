"""The table of a folder of images, or of a list of paths: what the index is to a shard.

A row a file, in the order in which scripts/make_shards.py writes them, with the size and the time
of its last change: a file that has others is no longer the one that was listed.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data.folder.plan import safe_key
from data.index.arrays import Mapped, pick, string_at, strings
from data.shards import LABEL_EXTENSION

TABLE_SUFFIX = ".files"
NO_CLASS = -1


class File(NamedTuple):
    """A file as it was listed.

    Attributes:
        path: Below the table's folder, or absolute.
        num_bytes: Its size.
        mtime_ns: When it was changed last.
        label: Its class number, or `NO_CLASS`.
    """

    path: str
    num_bytes: int
    mtime_ns: int
    label: int


@dataclass(frozen=True, eq=False)
class FileTable(Mapped):
    """The files of a folder or list, with N files.

    Attributes:
        path_ends: (N,) int64, where each path ends in `paths`.
        paths: uint8, the paths as the system has them, one after the other.
        sizes: (N,) int64, bytes.
        mtimes: (N,) int64, ns.
        labels: (N,) int32, class numbers, or `NO_CLASS`.
        classes: The classes' names; empty where there are none.
        sha256: Of all that, in hex: what a run is trained on.
    """

    ARRAYS = ("path_ends", "paths", "sizes", "mtimes", "labels")
    NAMES = "classes"
    KIND = "a table of files"

    path_ends: npt.NDArray[np.int64]
    paths: npt.NDArray[np.uint8]
    sizes: npt.NDArray[np.int64]
    mtimes: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    classes: tuple[str, ...]
    sha256: str

    @classmethod
    def of(cls, files: Sequence[File], classes: Sequence[str]) -> "FileTable":
        """Make a table of files in their order."""
        encoded = [os.fsencode(file.path) for file in files]
        paths = np.frombuffer(b"".join(encoded), np.uint8)
        number = len(files)
        ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, number))
        sizes = np.fromiter((file.num_bytes for file in files), np.int64, number)
        mtimes = np.fromiter((file.mtime_ns for file in files), np.int64, number)
        labels = np.fromiter((file.label for file in files), np.int32, number)
        digest = sha256(json.dumps(list(classes)).encode())
        for values in (ends, paths, sizes, mtimes, labels):
            digest.update(values.data)
        return cls(ends, paths, sizes, mtimes, labels, tuple(classes), digest.hexdigest())

    def __len__(self) -> int:
        return len(self.path_ends)

    @property
    def num_bytes(self) -> int:
        """The size of all files."""
        return int(self.sizes.sum())

    def path(self, sample: int) -> str:
        """Return the path of file 0 <= `sample` < N, below the folder."""
        return os.fsdecode(string_at(self.path_ends, self.paths, sample))

    def key(self, sample: int) -> str:
        """Return the key of a sample, its path, as `data.text.escaped` writes it."""
        name = string_at(self.path_ends, self.paths, sample)
        return name.decode("utf-8", "backslashreplace")

    def file(self, sample: int) -> File:
        """Return file 0 <= `sample` < N."""
        facts = (int(values[sample]) for values in (self.sizes, self.mtimes, self.labels))
        return File(self.path(sample), *facts)

    def extensions(self, sample: int) -> list[str]:
        """Return the extensions of a sample's members: the image's, and `cls` where it has one."""
        extension = self.path(sample).rpartition(".")[2].lower()
        return [extension] if self.labels[sample] == NO_CLASS else [extension, LABEL_EXTENSION]

    @cached_property
    def states(self) -> dict[str, tuple[int, int]]:
        """The size and the time of each file, by its path."""
        facts = zip(self.sizes.tolist(), self.mtimes.tolist(), strict=True)
        return dict(zip(map(self.path, range(len(self))), facts, strict=True))

    def names(self) -> list[bytes]:
        """Return the keys that the files have in the shards of scripts/make_shards.py."""
        paths = strings(self.path_ends, self.paths)
        return [os.fsencode(safe_key(os.fsdecode(path))) for path in paths]

    def only(self, places: npt.NDArray[np.int64]) -> "FileTable":
        """Return a table of some files alone, by their places in order."""
        ends, is_kept = pick(self.path_ends, places)
        rows = {name: getattr(self, name)[places] for name in ("sizes", "mtimes", "labels")}
        return replace(self, path_ends=ends, paths=self.paths[is_kept], **rows)
