"""Shards: the sample schema, and writing one tar.

A sample is what webdataset makes of consecutive members of a tar: those that share a key. Here it
holds one image, as its file was on disk, and at most one label: an ASCII integer in a `cls` member.
A captioned one has a `txt` member, too: UTF-8, a caption a line. A `json` member holds what else is
known of it. A `seg.png` member holds the class of each pixel of the image.
Images of other channels than RGB's are `npy` and `tif` members; see data/images/multichannel.py.
"""

import json
import os
import re
import secrets
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data.settings import require

ARRAY_EXTENSION = "npy"
HEIF_EXTENSIONS = frozenset({"heic", "heif", "hif"})  # Pillow reads them with an extra alone
PICTURE_EXTENSIONS = HEIF_EXTENSIONS.union(
    ("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "avif", "avifs", "gif", "bmp"),
    ("dib", "tif", "tiff", "tga", "ppm", "pgm", "pbm", "pnm", "qoi", "ico", "pcx", "sgi", "dds"),
    ("jp2", "j2k", "j2c", "jpc", "jpf", "jpx"),
)
IMAGE_EXTENSIONS = PICTURE_EXTENSIONS | {ARRAY_EXTENSION}
LABEL_EXTENSION = "cls"
TEXT_EXTENSION = "txt"
JSON_EXTENSION = "json"
MASK_EXTENSION = "seg.png"
INDEX_SUFFIX = ".index"
MAX_TEXT_BYTES = 4 << 20  # of a member with captions: beyond, it holds something else
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}

# webdataset's own expressions (tariterators.py: base_plus_ext, skip_meta), so that both agree.
_KEY_AND_EXTENSION = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_METADATA = re.compile(r"__[^/]*__($|/)")

# What systems and programs leave beside files: hidden files and folders, macOS' `._x.jpg` among
# them, and a few with names. "." and ".." are no names.
_HIDDEN = re.compile(
    r"(?:^|/)(?:\.(?!\.?(?:/|$))|(?:__MACOSX|PaxHeaders?(?:\.[^/]*)?|@eaDir)/"
    r"|(?i:thumbs\.db|desktop\.ini)$)"
)


@dataclass(frozen=True)
class ImageFile:
    """One sample to write.

    Attributes:
        key: Unique in its shard; "/" may occur, but no dot after the last "/".
        extension: One of `IMAGE_EXTENSIONS`.
        data: The image file's bytes, as they are written.
        label: The class number, or None without labels.
        captions: Of the image, each a line; none without captions.
        record: What else is known of it, for a `json` member; or None.
    """

    key: str
    extension: str
    data: bytes
    label: int | None = None
    captions: tuple[str, ...] = ()
    record: Mapping[str, object] | None = None


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


def is_hidden(member_name: str) -> bool:
    """Tell whether a member is no part of the data, but what a system left beside it."""
    return _HIDDEN.search(member_name) is not None


def has_image(extensions: Iterable[str]) -> bool:
    """Tell whether members of these extensions are a sample, whatever its channels."""
    return not IMAGE_EXTENSIONS.isdisjoint(extensions)


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


def caption_lines(content: bytes) -> list[str]:
    """Return the captions of a `txt` member, a line each; blank lines are none.

    Raises:
        ValueError: It is not in UTF-8, or longer than any caption.
    """
    text = member_text(content).replace("\ufeff", " ")
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def member_text(content: bytes) -> str:
    """Return the text of a member that holds captions, which a BOM may begin.

    Raises:
        ValueError: It is not in UTF-8, or longer than any caption.
    """
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"{len(content)} bytes, more than a caption has")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not in UTF-8 (byte {error.start})") from error


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
    for caption in sample.captions:
        require(
            caption_lines(caption.encode()) == [caption],
            f"{path}: {name}: the caption {caption[:40]!r} is no line of text; leave out line "
            "breaks, and spaces around it",
        )


def _members(sample: ImageFile) -> dict[str, str | bytes]:
    members: dict[str, str | bytes] = {"__key__": sample.key, sample.extension: sample.data}
    if sample.label is not None:
        members[LABEL_EXTENSION] = str(sample.label).encode()
    if sample.captions:
        members[TEXT_EXTENSION] = "".join(f"{line}\n" for line in sample.captions).encode()
    if sample.record is not None:
        members[JSON_EXTENSION] = json.dumps(sample.record).encode()
    return members
