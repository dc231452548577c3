"""Shards: the sample schema, writing one tar, and listing the tars that a configuration names.

A sample is what webdataset makes of consecutive members of a tar: those that share a key. Here it
holds one image, as its file was on disk, and at most one label: an ASCII integer in a `cls` member.
"""

import glob
import os
import re
import secrets
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import braceexpand

from data.settings import UserError, require

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm"})
LABEL_EXTENSION = "cls"
INDEX_SUFFIX = ".index"

# webdataset's own expressions (tariterators.py: base_plus_ext, skip_meta), so that both agree.
_KEY_AND_EXTENSION = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_METADATA = re.compile(r"__[^/]*__($|/)")


@dataclass(frozen=True)
class ImageFile:
    """One sample to write.

    Attributes:
        key: Unique in its shard; "/" may occur, but no dot after the last "/".
        extension: One of `IMAGE_EXTENSIONS`.
        data: The image file's bytes, never encoded again.
        label: The class number, or None without labels.
    """

    key: str
    extension: str
    data: bytes
    label: int | None = None


def split_name(member_name: str) -> tuple[str, str] | None:
    """Split a member's name into key and extension by webdataset's rule.

    The key ends at the first dot after the last "/". The extension is in lower case.

    Returns:
        None for names that webdataset skips: those without a key or a dot, and `__metadata__`.
    """
    match = _KEY_AND_EXTENSION.match(member_name)
    if match is None or _METADATA.match(member_name):
        return None
    return match.group(1), match.group(2).lower()


# ---------------------------------------------------------------- writing


@contextmanager
def atomic_write(path: Path) -> Generator[BinaryIO]:
    """Open a file that appears under `path` whole, synced to disk, or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_shard(path: Path, samples: Iterable[ImageFile]) -> int:
    """Write one shard, whole or not at all; equal samples give equal bytes.

    Returns:
        The number of samples.

    Raises:
        UserError: If a key or an extension cannot be read back, or a key occurs twice.
    """
    # Here, because it imports torch: seconds that listing shards need not pay.
    from webdataset.writer import TarWriter

    keys: set[str] = set()
    with (
        atomic_write(path) as file,
        TarWriter(file, user="", group="", mtime=0, encoder=False) as tar,
    ):
        for sample in samples:
            _check_sample(path, sample, keys)
            keys.add(sample.key)
            tar.write(_members(sample))
    return len(keys)


def _check_sample(path: Path, sample: ImageFile, keys: set[str]) -> None:
    name = f"{sample.key}.{sample.extension}"
    require(
        split_name(name) == (sample.key, sample.extension),
        f"{path}: webdataset would not read the key {sample.key!r} back; use one without dots",
    )
    require(
        sample.extension in IMAGE_EXTENSIONS,
        f"{path}: {name} is not an image; use one of {', '.join(sorted(IMAGE_EXTENSIONS))}",
    )
    require(sample.key not in keys, f"{path}: the key {sample.key!r} occurs twice; make it unique")


def _members(sample: ImageFile) -> dict[str, str | bytes]:
    members: dict[str, str | bytes] = {"__key__": sample.key, sample.extension: sample.data}
    if sample.label is not None:
        members[LABEL_EXTENSION] = str(sample.label).encode()
    return members


# ---------------------------------------------------------------- listing


def list_shards(spec: object, key: str) -> list[Path]:
    """List the shards that a configuration names, as absolute paths.

    Args:
        spec: A brace pattern ("a-{000..009}.tar"), a glob, a folder (its *.tar, without
            subfolders), or a list of those. Brace order is kept, globs and folders are sorted.
        key: The configuration's key, for error texts.

    Raises:
        UserError: If nothing is given, a pattern or folder holds nothing, a named file is missing,
            or one file is named twice.
    """
    paths = [path for item in _patterns(spec, key) for path in _expand(item, key)]
    seen: dict[tuple[int, int], Path] = {}
    for path in paths:
        try:
            stat = path.stat()
        except FileNotFoundError as error:
            message = f"{key}: {path} does not exist; correct the path or the pattern"
            raise UserError(message) from error
        first = seen.setdefault((stat.st_dev, stat.st_ino), path)
        twice = f"{key} names the same file twice: {first} and {path}; name it once"
        require(first is path, twice)
    return paths


def _patterns(spec: object, key: str) -> list[str]:
    """Check the specification's type and make it a list."""
    remedy = "give a pattern such as shards/train-{000000..000009}.tar, a folder, or a list"
    items = cast(Sequence[object], spec) if isinstance(spec, list | tuple) else [spec]
    for item in items:
        require(isinstance(item, str | Path) and str(item) != "", f"{key}={spec!r}: {remedy}")
    require(len(items) > 0, f"{key}={spec!r} names no shards; {remedy}")
    return [str(Path(str(item)).expanduser()) for item in items]


def _expand(item: str, key: str) -> list[Path]:
    """Turn one item of the specification into paths."""
    if Path(item).exists():  # a name that holds braces or brackets itself
        return _matches(item, key)
    try:
        patterns = list(braceexpand.braceexpand(item))
    except ValueError as error:
        message = f"{key}={item}: {error}; balance the braces, as in a-{{000..009}}.tar"
        raise UserError(message) from error
    return [path for pattern in patterns for path in _matches(pattern, key)]


def _matches(pattern: str, key: str) -> list[Path]:
    """List what one pattern without braces stands for."""
    path = Path(pattern).absolute()
    if path.is_dir():
        found = sorted(file for file in path.glob("*.tar") if not file.name.startswith("."))
        require(len(found) > 0, f"{key}={pattern}: the folder holds no *.tar file")
        return found
    if path.exists() or not glob.has_magic(pattern):
        return [path]
    names = sorted(name for name in glob.glob(pattern) if not name.endswith(INDEX_SUFFIX))  # noqa: PTH207
    require(len(names) > 0, f"{key}={pattern} matches no file; correct the pattern")
    return [Path(name).absolute() for name in names]


def shard_names(paths: Sequence[Path]) -> list[str]:
    """Name each shard by its path below the deepest folder that holds them all.

    So equal file names in two folders stay distinct: "train/000.tar" and "val/000.tar".
    """
    if not paths:
        return []
    parents = [str(path.absolute().parent) for path in paths]
    common = os.path.commonpath(parents)
    return [path.absolute().relative_to(common).as_posix() for path in paths]
