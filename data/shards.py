"""Shards: the sample schema, writing one tar, and listing the tars that a configuration names.

A sample is what webdataset makes of consecutive members of a tar: those that share a key. Here it
holds one image, as its file was on disk, and at most one label: an ASCII integer in a `cls` member.
Images of other channels than RGB's are `npy` and `tif` members; see `data.transforms.decode`.
"""

import glob
import os
import re
import secrets
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote

import braceexpand

from data.settings import UserError, require
from data.storage import (
    Storage,
    check_location,
    is_remote,
    list_remote,
    protocol_of,
    public_name,
)

ARRAY_EXTENSION = "npy"
HEIF_EXTENSIONS = frozenset({"heic", "heif", "hif"})  # Pillow reads them with an extra alone
PICTURE_EXTENSIONS = HEIF_EXTENSIONS.union(
    ("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "avif", "avifs", "gif", "bmp"),
    ("dib", "tif", "tiff", "tga", "ppm", "pgm", "pbm", "pnm", "qoi", "ico", "pcx", "sgi", "dds"),
    ("jp2", "j2k", "j2c", "jpc", "jpf", "jpx"),
)
IMAGE_EXTENSIONS = PICTURE_EXTENSIONS | {ARRAY_EXTENSION}
LABEL_EXTENSION = "cls"
INDEX_SUFFIX = ".index"
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}

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


def choose_image(extensions: Iterable[str], channels: int) -> str | None:
    """Return the extension of a sample's image: the first one's, or None.

    For grey and RGB an `npy` member comes last, as beside a picture it may hold its features. For
    other channels it comes first, as a picture beside it may be a preview. A HEIC picture comes
    after others.
    """
    images = [extension for extension in extensions if extension in IMAGE_EXTENSIONS]
    is_picture = channels in (1, 3)
    images.sort(key=lambda e: ((e == ARRAY_EXTENSION) == is_picture, e in HEIF_EXTENSIONS))
    return images[0] if images else None


def compression_of(block: bytes) -> str | None:
    """Name a file's compression, from its first bytes: the command that undoes it with -dc."""
    kinds = (kind for magic, kind in _COMPRESSIONS.items() if block.startswith(magic))
    return next(kinds, None)


# ---------------------------------------------------------------- writing


@contextmanager
def atomic_write(path: Path) -> Generator[BinaryIO]:
    """Open a file that appears under `path` whole, synced to disk, or not at all."""
    start = os.fsencode(path.name)[:200]  # disks take names of 255 bytes
    temporary = path.with_name(f".{os.fsdecode(start)}.{secrets.token_hex(4)}.tmp")
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


def list_shards(spec: object, key: str) -> list[str]:
    """List the shards that a configuration names: absolute paths, and URLs as they were given.

    Whether a remote file exists is not asked, so that a long list costs nothing.

    Args:
        spec: A brace pattern ("a-{000..009}.tar"), a glob, a folder (its *.tar, without
            subfolders), or a list of those; each a path or a URL. Brace order is kept, globs and
            folders are sorted; http has neither.
        key: The configuration's key, for error texts.

    Raises:
        RunStopped: If a remote folder cannot be listed.
        UserError: If nothing is given, a pattern or folder holds nothing, a local file is missing,
            one file is named twice, or a URL is not read or holds credentials.
    """
    locations = [name for item in _patterns(spec, key) for name in _expand(item, key)]
    seen: dict[object, str] = {}
    for location in locations:
        identity, name = _identity(location, key), public_name(location)
        twice = f"{key} names the same file twice: {seen.get(identity)} and {name}; name it once"
        require(identity not in seen, twice)
        seen[identity] = name
    return locations


def _identity(location: str, key: str) -> object:
    """Return what two names of one file share; of a URL, what messages show of it."""
    if is_remote(location):
        return public_name(location)
    try:
        stat = os.stat(location)  # noqa: PTH116 - a tenth of a Path's time, for 1e5 shards
    except FileNotFoundError as error:
        message = f"{key}: {location} does not exist; correct the path or the pattern"
        raise UserError(message) from error
    return stat.st_dev, stat.st_ino


def _patterns(spec: object, key: str) -> list[str]:
    """Check the specification's type and make it a list."""
    remedy = "give a pattern such as shards/train-{000000..000009}.tar, a folder, or a list"
    items = cast(Sequence[object], spec) if isinstance(spec, list | tuple) else [spec]
    for item in items:
        is_name = isinstance(item, str | Path) and str(item) != ""
        require(is_name, f"{key}={item!r}: {remedy}")
        _refuse_streams(str(item), key)
    require(len(items) > 0, f"{key}={spec!r} names no shards; {remedy}")
    names = [str(item) for item in items]
    return [name if is_remote(name) else str(Path(name).expanduser()) for name in names]


def _refuse_streams(item: str, key: str) -> None:
    if item == "-" or item.startswith("pipe:"):
        name = item[:5]  # a command may hold a password
        raise UserError(
            f"{key}={name} only goes forwards, so no sample can be read by its place; "
            "set data.read=sequential"
        )


def _expand(item: str, key: str) -> list[str]:
    """Turn one item of the specification into locations."""
    if not is_remote(item) and Path(item).exists():  # a name that holds braces or brackets itself
        return _matches(item, key)
    try:
        patterns = list(braceexpand.braceexpand(item))
    except ValueError as error:
        name = public_name(item)
        reason = str(error).replace(item, name)
        message = f"{key}={name}: {reason}; balance the braces, as in a-{{000..009}}.tar"
        raise UserError(message) from error
    matches = _remote_matches if is_remote(item) else _matches
    return [location for pattern in patterns for location in matches(pattern, key)]


def _matches(pattern: str, key: str) -> list[str]:
    """List what one local pattern without braces stands for."""
    path = Path(pattern).absolute()
    if path.is_dir():
        found = sorted(str(file) for file in path.glob("*.tar") if not file.name.startswith("."))
        require(len(found) > 0, f"{key}={pattern}: the folder holds no *.tar file")
        return found
    if not glob.has_magic(pattern) or path.exists():
        return [str(path)]
    names = sorted(name for name in glob.glob(str(path)) if not name.endswith(INDEX_SUFFIX))  # noqa: PTH207
    require(len(names) > 0, f"{key}={pattern} matches no file; correct the pattern")
    return names


def _remote_matches(pattern: str, key: str) -> list[str]:
    """List what one URL without braces stands for."""
    check_location(pattern, key)
    name = public_name(pattern)
    path = name.partition("://")[2].partition("/")[2]
    is_folder = path.endswith("/") or path == ""
    if protocol_of(pattern) in ("http", "https"):
        is_many = is_folder or "*" in path or "[" in path
        remedy = "list them with braces, as in https://host/a-{000..009}.tar"
        require(not is_many, f"{key}={name}: http has no listing of its files; {remedy}")
        return [pattern]
    is_folder = is_folder or "." not in path.rpartition("/")[2]
    if not is_folder and not glob.has_magic(path):
        return [pattern]
    files = list_remote(pattern.rstrip("/") + "/*.tar" if is_folder else pattern, Storage())
    found = [file for file in files if file.endswith(".tar")]
    require(len(found) > 0, f"{key}={name} matches no *.tar file; correct the pattern")
    return found


def shard_names(locations: Sequence[str]) -> list[str]:
    """Name each shard by its path below the deepest folder that holds them all.

    So equal file names in two folders stay distinct: "train/000.tar" and "val/000.tar". A folder
    has the same names on this machine and behind a URL.

    Args:
        locations: Absolute paths and URLs, as `list_shards` gives them.
    """
    paths = [_plain_path(location) for location in locations]
    folders = [folder.split("/") for folder in {path.rpartition("/")[0] for path in paths}]
    # the first and the last in order share only what all share
    ends = zip(min(folders), max(folders), strict=False) if folders else ()
    common = [first for first, _ in takewhile(lambda pair: pair[0] == pair[1], ends)]
    start = sum(len(folder) + 1 for folder in common)
    return [path[start:] for path in paths]


def _plain_path(location: str) -> str:
    """Return a location without a query, and as its folders are called on a disk."""
    if not is_remote(location):
        return location
    name = public_name(location)
    # an object's key is not quoted, a URL's path is
    return unquote(name) if protocol_of(name) in ("http", "https") else name
