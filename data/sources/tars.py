"""A tar archive as a source, plain or compressed; nothing is unpacked to disk.

Images of a plain tar are read where they lie. A compressed one is read forwards: once to list it,
and once for each window of images that fits into memory.
"""

import bz2
import gzip
import importlib
import logging
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from data.disks import one_line
from data.folder.plan import Reader, SourceImage, SourceImages
from data.settings import UserError, require
from data.shards import IMAGE_EXTENSIONS, LABEL_EXTENSION, compression_of, split_name
from data.sources.members import Member, describe, sort_members
from data.sources.options import SourceOptions, windows
from data.text import count, printable

_DAMAGE = (
    *(tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError),
    *(ValueError, LookupError, OverflowError, RecursionError),  # of hostile headers
)
_MAX_HEADER = 1 << 20  # bytes: an extended header may claim any size, and is held in memory
_BESIDE = frozenset({LABEL_EXTENSION, "json", "txt"})  # what a sample holds beside its image
_logger = logging.getLogger(__name__)


def find_in_tar(source: Path, options: SourceOptions, inner: str = "") -> SourceImages:
    """List the images of a tar archive.

    Args:
        source: The archive; plain, or compressed by gzip, bzip2, xz or zstd.
        options: How it is looked at. With `skip_unreadable` a damaged one is taken up to there.
        inner: The folder of the archive that is meant; "" for all.

    Raises:
        UserError: It is damaged, holds no image, or is a webdataset shard.
    """
    options.refuse_those_of_tables("an archive")
    kind = _compression(source)
    looks = _Looks()
    found = sort_members(_list(source, kind, looks), inner, options.classes)
    if looks.damage is not None:
        found.found.unreadable[""] = looks.damage  # of the archive itself
    if looks.is_shard and not options.is_unlabelled:
        _refuse_shard(source, kind, looks)
    read: Reader = partial(_read_plain if kind is None else _read_forwards, source, found.places)
    what = "a tar archive" if kind is None else f"a tar archive compressed by {kind}"
    return describe(source, what, found, read, options)


def is_tar(source: Path) -> bool:
    """Tell whether a file is a tar archive, compressed or not."""
    try:
        with _open(source, _compression(source)) as file:
            block = file.read(tarfile.BLOCKSIZE)
            tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except UserError:
        raise
    except _DAMAGE as error:
        _raise_of_disk(error)
        return False
    return True


class _Looks:
    """What is seen of a tar beside its members.

    Attributes:
        damage: Why it cannot be read to its end; None if it is sound.
        first: An image and a member of its key beside it, as webdataset has them; or None.
    """

    def __init__(self) -> None:
        self.damage: str | None = None
        self.first: tuple[str, str] | None = None
        self._last: tuple[str, str, str] = ("", "", "")  # key, extension and name
        self._num_images = self._num_pairs = 0

    @property
    def is_shard(self) -> bool:
        """Whether each image has a label or the like beside it, as a sample of webdataset has."""
        return 0 < self._num_images <= self._num_pairs

    def add(self, name: str) -> None:
        """Look at the next file."""
        key, extension = split_name(name) or (name, "")
        is_image = extension in IMAGE_EXTENSIONS
        self._num_images += is_image
        key_before, before, name_before = self._last
        if key == key_before and {extension, before} & _BESIDE:
            is_pair = is_image or before in IMAGE_EXTENSIONS
            self._num_pairs += is_pair
            if is_pair and self.first is None:
                self.first = (name_before, name)
        self._last = (key, extension, name)


def _refuse_shard(source: Path, kind: str | None, looks: _Looks) -> None:
    assert looks.first is not None
    names = " beside ".join(printable(name) for name in looks.first)
    how = "" if kind is None else f" once it is unpacked to a plain tar ({kind} -d)"
    raise UserError(
        f"SOURCE={printable(str(source))} is a webdataset shard already ({names}); use it as it "
        f"is{how}: data.shards={printable(str(source))}. Or give --unlabelled, to make new shards "
        "of its images alone"
    )


# ---------------------------------------------------------------- reading


class _Headers:
    """A file as tarfile reads headers from it: no header is larger than any honest one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell = file.tell
        self.seek = file.seek
        self.last = b""

    def read(self, size: int) -> bytes:
        """Return the next bytes.

        Raises:
            tarfile.ReadError: For more than any honest header holds.
        """
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError("a header is too long")
        self.last = self._file.read(size)
        return self.last


class _NoEnd(tarfile.ReadError):
    """No end marker follows the last member, which is whole."""


class _Place(NamedTuple):
    member: tarfile.TarInfo
    number: int  # of the member in the archive


def _walk(file: BinaryIO) -> Iterator[_Place]:
    """Yield the members of a tar; the file stands at the start of each one's data.

    Raises:
        tarfile.ReadError: It is damaged; tarfile alone would end in silence there.
    """
    headers = _Headers(file)
    tar = tarfile.open(fileobj=cast(Any, headers), mode="r:")  # noqa: SIM115 - holds no file
    number, end = 0, 0
    while (member := tar.next()) is not None:
        if member.size < 0 or cast(Any, tar).offset < end:
            raise tarfile.ReadError("a member's size is below 0")
        end = cast(Any, tar).offset
        cast(Any, tar).members.clear()  # tarfile would keep every member
        yield _Place(member, number)
        number += 1
    if len(headers.last) < tarfile.BLOCKSIZE or any(headers.last):
        raise _NoEnd(f"it breaks off after {count(number, 'member')}")


def _list(source: Path, kind: str | None, looks: _Looks) -> Iterator[Member]:
    """Yield the members, up to the end or the damage."""
    last: Member | None = None  # given when it is known to be whole
    try:
        with _open(source, kind) as file:
            for member, number in _walk(file):
                if last is not None:
                    yield last
                if member.isreg():
                    looks.add(member.name)
                place = member.offset_data if kind is None else number
                last = Member(member.name, member.size, _kind(member), place)
    except _NoEnd as error:
        looks.damage = one_line(error)
    except UserError:
        raise
    except _DAMAGE as error:
        _raise_of_disk(error)
        looks.damage = one_line(error) + (f", in {last.name} or after it" if last else "")
        last = None
    if last is not None:
        yield last


def _raise_of_disk(error: BaseException) -> None:
    """Raise what the disk said: it says nothing of the archive. gzip's own have no number."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _kind(member: tarfile.TarInfo) -> str:
    if member.isdir():
        return "folder"
    if member.issym() or member.islnk():
        return "link"
    return "file" if member.isreg() and not member.issparse() else "special"


def _read_plain(
    source: Path, places: dict[str, int], images: Sequence[SourceImage]
) -> Iterator[bytes]:
    with source.open("rb") as file:
        for image in images:
            file.seek(places[image.path])
            yield file.read(image.num_bytes)


def _read_forwards(
    source: Path, places: dict[str, int], images: Sequence[SourceImage]
) -> Iterator[bytes]:
    """Read a window of images in one passage over the archive, then give them in their order."""
    own = list(windows(images))
    if len(own) > 1:
        _logger.info(
            "%s is read %s, as it is compressed; unpacked to a plain tar it would be read once",
            source,
            count(len(own), "time"),
        )
    for window in own:
        wanted = {places[image.path]: image for image in window}
        contents = _passage(source, wanted)
        yield from (contents.pop(image.path, b"") for image in window)


def _passage(source: Path, wanted: dict[int, SourceImage]) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    try:
        with _open(source, _compression(source)) as file:
            for _, number in _walk(file):
                if (image := wanted.get(number)) is not None:
                    contents[image.path] = file.read(image.num_bytes)
                if len(contents) == len(wanted):
                    break
    except UserError:
        raise
    except _DAMAGE as error:
        _raise_of_disk(error)
        raise UserError(
            f"SOURCE={source} has changed since it was listed ({one_line(error)}); start again"
        ) from error
    return contents


# ---------------------------------------------------------------- compression


def _compression(source: Path) -> str | None:
    with source.open("rb") as file:
        return compression_of(file.read(16))


def _open(source: Path, kind: str | None) -> BinaryIO:
    """Open a tar to read it forwards, uncompressed."""
    if kind is None:
        return source.open("rb")
    if kind == "zstd":
        return _open_zstd(source)
    modules: dict[str, Any] = {"gzip": gzip, "bzip2": bz2, "xz": lzma}
    return cast(BinaryIO, modules[kind].open(source, "rb"))


def _open_zstd(source: Path) -> BinaryIO:
    """Open it by Python's own module (3.14 on), or by pyarrow."""
    if find_spec("compression") is not None:
        return importlib.import_module("compression.zstd").open(source, "rb")
    require(
        find_spec("pyarrow") is not None,
        f"SOURCE={source} is compressed by zstd, which this Python does not read; unpack it to a "
        "plain tar (zstd -d), or pip install -e '.[parquet]'",
    )
    return cast(BinaryIO, _Forwards(importlib.import_module("pyarrow").input_stream(str(source))))


class _Forwards:
    """A stream that cannot go to a place, as one that goes there by reading."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._place = 0

    def __enter__(self) -> "_Forwards":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def tell(self) -> int:
        """Return the next byte's offset."""
        return self._place

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        data = bytes(self._stream.read(size))
        self._place += len(data)
        return data

    def seek(self, offset: int) -> None:
        """Read on up to a place."""
        while self._place < offset and self.read(min(1 << 20, offset - self._place)):
            pass
