"""The manifest of a set of shards: open it, and make what is missing of it.

Beside the shards of a folder lie one `NAME.tar.index` each and one `manifest.jsonl` with a row a
shard. A row holds while the shard's size and modification time are those in the row; else the shard
is scanned again. For a folder that cannot be written, both go to a cache folder.
"""

import json
import logging
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data.offsets import Member, ShardIndex
from data.scan import ScanResult, scan
from data.settings import UserError, require
from data.shards import INDEX_SUFFIX, atomic_write, list_shards, shard_names

__all__ = ["Manifest", "Member", "ScanResult", "Shard", "ShardIndex", "open_manifest", "scan"]

MANIFEST_NAME = "manifest.jsonl"
_CACHE = Path("masked-patch-pretraining") / "index"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """One shard of a manifest.

    Attributes:
        name: Its path below the deepest folder common to all shards of the manifest.
        path: The tar.
        index_path: Its index, for `ShardIndex.load`.
        num_samples: Readable samples.
        num_bytes: The tar's size.
        sha256: Of the whole tar, in hex.
        damage: What is wrong with the tar, or None.
    """

    name: str
    path: Path
    index_path: Path
    num_samples: int
    num_bytes: int
    sha256: str
    damage: str | None


@dataclass(frozen=True, eq=False)
class Manifest:
    """The shards of a stream, in order.

    Attributes:
        shards: One row a shard.
        starts: int64, (number of shards + 1,): how many samples lie before each shard, then in all.
        fingerprint: sha256 (hex) over the shards' names, contents and sample counts, in order.
    """

    shards: tuple[Shard, ...]
    starts: npt.NDArray[np.int64]
    fingerprint: str

    @property
    def num_samples(self) -> int:
        """Readable samples in all shards."""
        return int(self.starts[-1])


def open_manifest(spec: object, key: str) -> Manifest:
    """Open the manifest of the shards that a configuration names, scanning what is new or changed.

    Only one process may call it while something is new; where nothing is, it costs one `stat` a
    shard and one file a folder. Damaged shards are used up to the damage, with a warning.

    Args:
        spec: As for `data.shards.list_shards`.
        key: The configuration's key, for error texts.

    Raises:
        UserError: For what `list_shards` and `data.scan.scan` refuse, or if there is no sample.
    """
    paths = list_shards(spec, key)
    names = shard_names(paths)
    found = _find_rows(paths, names)
    new = [i for i, shard in enumerate(found) if shard is None]
    if new:
        _index_shards([paths[i] for i in new], [names[i] for i in new])
        found = _find_rows(paths, names)
    shards = tuple(_require_found(*parts) for parts in zip(names, found, strict=True))
    for shard in shards:
        if shard.damage is not None:
            _logger.warning("shard %s is damaged: %s", shard.name, shard.damage)
    manifest = _manifest(shards)
    require(manifest.num_samples > 0, f"{key}={spec}: the shards hold no samples; name others")
    return manifest


def _require_found(name: str, shard: Shard | None) -> Shard:
    if shard is None:
        raise UserError(f"shard {name} changed while it was indexed; start again when it is whole")
    return shard


def _manifest(shards: tuple[Shard, ...]) -> Manifest:
    digest = sha256()
    for shard in shards:
        row = [shard.name, shard.sha256, shard.num_samples]
        digest.update(json.dumps(row).encode() + b"\n")
    counts = [shard.num_samples for shard in shards]
    return Manifest(shards, np.cumsum([0, *counts], dtype=np.int64), digest.hexdigest())


# ---------------------------------------------------------------- the manifest's rows


@dataclass(frozen=True)
class _Row:
    """One line of a folder's manifest; it is valid for a file of this size and time."""

    file: str
    num_samples: int
    num_bytes: int
    mtime_ns: int
    sha256: str
    damage: str | None


@dataclass(frozen=True)
class _Folder:
    """A folder of indexes: the rows of its manifest, and the file names it holds."""

    path: Path
    rows: dict[str, _Row]
    files: frozenset[str]

    def valid_row(self, name: str, stat: os.stat_result) -> _Row | None:
        row = self.rows.get(name)
        if row is None or (row.num_bytes, row.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
            return None
        return row if name + INDEX_SUFFIX in self.files else None


def _open_folder(path: Path) -> _Folder:
    try:
        return _Folder(path, _read_rows(path), frozenset(os.listdir(path)))  # noqa: PTH208
    except FileNotFoundError:
        return _Folder(path, {}, frozenset())


def _read_rows(folder: Path) -> dict[str, _Row]:
    """Read a folder's manifest; a line that cannot be read only costs another scan."""
    rows: dict[str, _Row] = {}
    manifest = folder / MANIFEST_NAME
    lines = manifest.read_text("utf-8").splitlines() if manifest.exists() else []
    for line in lines:
        with suppress(TypeError, ValueError):
            row = _Row(**json.loads(line))
            rows[row.file] = row
    return rows


def _write_rows(folder: Path, rows: Sequence[_Row]) -> None:
    """Merge rows into a folder's manifest."""
    merged = _read_rows(folder) | {row.file: row for row in rows}
    lines = [json.dumps(asdict(merged[name])) + "\n" for name in sorted(merged)]
    with atomic_write(folder / MANIFEST_NAME) as file:
        file.write("".join(lines).encode())


def _find_rows(paths: Sequence[Path], names: Sequence[str]) -> list[Shard | None]:
    """Find the shards whose rows are valid, beside them or else in the cache folder."""
    open_folder = cache(_open_folder)
    found: list[Shard | None] = []
    for path, name in zip(paths, names, strict=True):
        stat = path.stat()
        folders = (open_folder(path.parent), open_folder(cache_folder(path.parent)))
        rows = [(row, folder) for folder in folders if (row := folder.valid_row(path.name, stat))]
        found.append(_shard(name, path, *rows[0]) if rows else None)
    return found


def _shard(name: str, path: Path, row: _Row, folder: _Folder) -> Shard:
    index_path = folder.path / (path.name + INDEX_SUFFIX)
    return Shard(name, path, index_path, row.num_samples, row.num_bytes, row.sha256, row.damage)


# ---------------------------------------------------------------- indexing


def cache_folder(folder: Path) -> Path:
    """Return where the index of a folder goes that cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / _CACHE / sha256(os.fsencode(folder.absolute())).hexdigest()[:32]


def is_writable(folder: Path) -> bool:
    """Tell whether a file can be made in a folder; `os.access` is wrong on network disks."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _index_shards(paths: Sequence[Path], names: Sequence[str]) -> None:
    """Scan shards in threads: the hashes, most of the work for photographs, free the lock."""
    targets = {folder: _target(folder) for folder in {path.parent for path in paths}}
    places = ", ".join(sorted(str(target) for target in targets.values()))
    _logger.info("indexing %d shards; the index goes to %s", len(paths), places)
    rows: dict[Path, list[_Row]] = {target: [] for target in targets.values()}
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        jobs = {
            pool.submit(_index_shard, path, name, targets[path.parent]): targets[path.parent]
            for path, name in zip(paths, names, strict=True)
        }
        done = tqdm(as_completed(jobs), "indexing", len(jobs), unit="shard", delay=2, disable=None)
        for job in done:
            rows[jobs[job]].append(job.result())
    finally:  # what is done stays done, also after Ctrl-C
        pool.shutdown(cancel_futures=True)
        for target, new in rows.items():
            _write_rows(target, new)


def _target(folder: Path) -> Path:
    """Choose where the index of a folder's shards goes."""
    if is_writable(folder):
        return folder
    target = cache_folder(folder)
    target.mkdir(parents=True, exist_ok=True)
    return target


def _index_shard(path: Path, name: str, target: Path) -> _Row:
    stat = path.stat()  # before the scan, so that a later change makes the row invalid
    result = scan(path, name)
    result.index.save(target / (path.name + INDEX_SUFFIX))
    return _Row(
        file=path.name,
        num_samples=len(result.index),
        num_bytes=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        sha256=result.sha256,
        damage=result.damage,
    )
