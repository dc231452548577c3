"""Which shards a run was begun on: a row a shard in its folder, so that a change can be named.

Of a folder of images, or a list of them, the table of its files lies beside the record.

What a run trains on is decided by the sequence of the shards' contents. Their names are what traces
and messages call them; a run goes on under other names, and the record keeps all of them.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data.index.files import TABLE_SUFFIX, FileTable
from data.index.manifest import Manifest
from data.index.tables import differences
from data.shards import atomic_write
from data.text import name_some

RECORD_NAME = "shards.jsonl"
_TABLES = "files"  # the folder of the tables


@dataclass(frozen=True)
class Recorded:
    """One shard of a run.

    Attributes:
        names: What it was called, the newest name last.
        sha256: Of its content, in hex.
        num_samples: Samples that are used.
    """

    names: tuple[str, ...]
    sha256: str
    num_samples: int

    @property
    def content(self) -> tuple[str, int]:
        """The facts that decide the samples."""
        return self.sha256, self.num_samples


def record(folder: Path, manifest: Manifest) -> None:
    """Write which shards a run is on; of shards with other names, keep the former ones too."""
    known, now = read_record(folder), _rows(manifest)
    for place, table in manifest.shards.tables.items():
        _copy(table, _table_path(folder, now[place].sha256))
    if [row.content for row in known] == [row.content for row in now]:
        if all(old.names[-1] == new.names[0] for old, new in zip(known, now, strict=True)):
            return
        now = [
            Recorded((*old.names, *new.names), *new.content)
            for old, new in zip(known, now, strict=True)
        ]
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / RECORD_NAME) as file:
        file.writelines(json.dumps(asdict(row)).encode() + b"\n" for row in now)


def _copy(table: Path, own: Path) -> None:
    if own.exists():
        return
    own.parent.mkdir(parents=True, exist_ok=True)
    with table.open("rb") as source, atomic_write(own) as file:
        shutil.copyfileobj(source, file)


def _table_path(folder: Path, sha256: str) -> Path:
    return folder / _TABLES / f"{sha256[:32]}{TABLE_SUFFIX}"


def recorded_tables(folder: Path) -> dict[int, Path]:
    """Return the tables of files on which a run was begun, by their place among its shards."""
    paths = (_table_path(folder, row.sha256) for row in read_record(folder))
    return {place: path for place, path in enumerate(paths) if path.exists()}


def read_record(folder: Path) -> list[Recorded]:
    """Read a run's record; empty where there is none that can be read."""
    try:
        rows = [json.loads(line) for line in (folder / RECORD_NAME).read_bytes().splitlines()]
        return [Recorded(tuple(row["names"]), row["sha256"], row["num_samples"]) for row in rows]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def changes(folder: Path, manifest: Manifest) -> str:
    """Say how shards differ from those that a run was begun on; empty where it is not known."""
    known, now = read_record(folder), _rows(manifest)
    if not known:
        return ""
    if len(known) == len(now) and (files := _changed_files(folder, known, manifest)):
        return files
    old, new = {row.content for row in known}, {row.content for row in now}
    gone = [row.names[-1] for row in known if row.content not in new]
    come = [row.names[-1] for row in now if row.content not in old]
    changed = [name for name in come if name in set(gone)]
    differences = {
        "changed": changed,
        "gone": [name for name in gone if name not in set(changed)],
        "new": [name for name in come if name not in set(changed)],
    }
    parts = [f"{what}: {name_some(names)}" for what, names in differences.items() if names]
    return "; ".join(parts) or _moved(known, now)


def _changed_files(folder: Path, known: Sequence[Recorded], manifest: Manifest) -> str:
    """Say how folders of images differ, file by file; empty where it is not known."""
    parts: list[str] = []
    for place, path in manifest.shards.tables.items():
        own = _table_path(folder, known[place].sha256)
        if own.exists() and own.name != path.name:
            change = differences(FileTable.load(own), FileTable.load(path))
            parts.append(f"{manifest.shards.names[place]}: {change}")
    return "; ".join(parts)


def _moved(known: Sequence[Recorded], now: Sequence[Recorded]) -> str:
    """Say which of the same shards have another place."""
    pairs = zip(known, now, strict=False)
    moved = [f"{b.names[-1]} where {a.names[-1]} was" for a, b in pairs if a.content != b.content]
    order = [row.names[-1] for row in known]
    return (
        f"the shards are the same in another order, {name_some(moved, 2)}; a list in data.shards "
        f"keeps the order that it is written in, which was {name_some(order)}"
    )


def _rows(manifest: Manifest) -> list[Recorded]:
    shards = manifest.shards
    contents = zip(shards.names, shards.sha256s, shards.num_samples.tolist(), strict=True)
    return [Recorded((name,), sha.tobytes().hex(), number) for name, sha, number in contents]
