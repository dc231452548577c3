"""A zip archive as a source: each image is read where it lies, and nothing is unpacked to disk."""

import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from data.disks import one_line
from data.folder.images import is_image_name
from data.folder.plan import SourceImage, SourceImages
from data.settings import UserError, require
from data.sources.members import Member, describe, sort_members
from data.sources.options import SourceOptions
from data.text import printable

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, OverflowError)
_FAILURES = (*_DAMAGE, NotImplementedError, RuntimeError)
_ENCRYPTED, _UTF8 = 0x1, 0x800  # bits of a member's flags


def find_in_zip(source: Path, options: SourceOptions, inner: str = "") -> SourceImages:
    """List the images of a zip archive.

    Args:
        source: The archive.
        options: How it is looked at. With `skip_unreadable` each image is read to its end, and held
            against its checksum.
        inner: The folder of the archive that is meant; "" for all.

    Raises:
        UserError: It is damaged, or holds no image, or one that cannot be read.
    """
    options.refuse_those_of_tables("an archive")
    with _open(source) as archive:
        infos = archive.infolist()
        packed = sum(info.compress_size for info in infos)
        require(
            packed <= source.stat().st_size,
            f"SOURCE={source}: its members overlap, as in an archive that is made to fill disks; "
            "get it from elsewhere",
        )
        members = (
            _member(archive, info, place, options.skip_unreadable)
            for place, info in enumerate(infos)
        )
        found = sort_members(members, inner, options.classes)
    read = partial(_read, source, found.places)
    return describe(source, "a zip archive", found, read, options)


def _open(source: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source)
    except (*_DAMAGE, NotImplementedError) as error:
        raise UserError(
            f"SOURCE={printable(str(source))} is a zip archive that cannot be read "
            f"({one_line(error)}); get it again"
        ) from error


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, place: int, is_tested: bool) -> Member:
    name = _name(info)
    kind = _kind(info)
    flaw = None
    if info.flag_bits & _ENCRYPTED:
        flaw = "encrypted"
    elif info.compress_type not in _METHODS:
        flaw = f"compressed by method {info.compress_type}, which Python does not read"
    elif is_tested and kind == "file" and is_image_name(name):
        flaw = _damage(archive, info)
    return Member(name, info.file_size, kind, place, flaw)


def _kind(info: zipfile.ZipInfo) -> str:
    mode = stat.S_IFMT(info.external_attr >> 16)  # 0 where no Unix made it
    if info.is_dir() or mode == stat.S_IFDIR:
        return "folder"
    if mode == stat.S_IFLNK:
        return "link"
    return "file" if mode in (0, stat.S_IFREG) else "special"


def _name(info: zipfile.ZipInfo) -> str:
    """Return a member's name; many programs write UTF-8 without the flag that says so."""
    name = info.filename
    if not info.flag_bits & _UTF8:
        try:
            name = name.encode("cp437").decode()
        except UnicodeError:
            name = info.filename
    return name.replace("\\", "/")


def _damage(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str | None:
    """Read a member to its end; return what is wrong with it."""
    num_bytes = 0
    try:
        with archive.open(info) as file:
            while block := file.read(1 << 20):
                num_bytes += len(block)
    except _FAILURES as error:
        return one_line(error)
    return None if num_bytes == info.file_size else "its size is not what it says"


def _read(source: Path, places: dict[str, int], images: Sequence[SourceImage]) -> Iterator[bytes]:
    with _open(source) as archive:
        infos = archive.infolist()
        for image in images:
            place = places[image.path]
            if place >= len(infos) or infos[place].file_size != image.num_bytes:
                raise UserError(f"SOURCE={source} has changed since it was listed; start again")
            flaw = None
            data = b""
            try:
                with archive.open(infos[place]) as file:
                    data = file.read()  # at most as many bytes as it says
            except _FAILURES as error:
                flaw = one_line(error)
            if len(data) != image.num_bytes:
                flaw = flaw or "its size is not what it says"
                raise UserError(
                    f"SOURCE={source}: {printable(image.path)} cannot be read ({flaw}); mend the "
                    "archive, or leave such images out by --skip-unreadable"
                )
            yield data
