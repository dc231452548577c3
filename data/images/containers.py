"""Damaged text and HEIF: the parts of image files beside the pixels."""

import importlib
import zlib
from collections.abc import Iterator
from functools import cache

_PNG = b"\x89PNG\r\n\x1a\n"
_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")  # what a PNG's pixels need
_EXIF = b"eXIf"
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"mif2")


def without_extras(content: bytes) -> bytes | None:
    """Return a PNG without what its pixels do not need; None where that would change nothing.

    Text, profiles and times may be spoilt while the pixels are whole. EXIF stays where its checksum
    holds.
    """
    if not content.startswith(_PNG):
        return None
    plain = _PNG + b"".join(
        chunk
        for chunk in _chunks(content)
        if chunk[4:8] in _KEPT or (chunk[4:8] == _EXIF and _is_whole(chunk))
    )
    return None if plain == content else plain


def _chunks(content: bytes) -> Iterator[bytes]:
    place = len(_PNG)
    while place + 12 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4])
        yield content[place:end]
        place = end


def _is_whole(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])


def is_heif(content: bytes) -> bool:
    """Tell whether a file says that it is a HEIC or HEIF image."""
    return content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS


@cache
def reads_heif() -> bool:
    """Let Pillow read HEIC, in this process, where the extra `heic` is installed; tell whether."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True
