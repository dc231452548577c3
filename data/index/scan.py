"""One reading of a shard, forwards: its members, their checksums, its sha256, and its damage.

Nothing in a shard is believed: names stay names and are never written or opened, sizes are held
against the file's, and a header that no reader could follow is damage with an offset.
"""

import tarfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple, cast

import numpy as np

from data.index.looks import Looks
from data.index.offsets import Member, ShardIndex
from data.listing.foreign import MAKE_SHARDS, kind_by_content
from data.settings import UserError
from data.shards import compression_of, is_hidden, split_name
from data.storage.locations import RangeFile
from data.text import count, printable

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 8 << 20  # bytes read at once: a request each where the shard is remote
_MAX_HEADER = 1 << 20  # bytes: an extended header may claim any size, and is held in memory
_MAX_END = 1 << 20  # bytes of zeros that end a tar; writers fill up to 10,240
_COMPRESSED_NAMES = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst")
_USTAR = slice(257, 262)
_PLAIN_FILES = "write the shard again with plain files (scripts/make_shards.py does)"
_UNIQUE_KEYS = (
    "so samples would be mixed up; write the shard again with unique keys, each sample's members "
    "side by side"
)


class UnusableShard(UserError):  # noqa: N818 - a finding about the data
    """A shard of which no sample can be read by its place.

    Attributes:
        finding: What is wrong, in a line.
        members: The members that are to blame, each with what is wrong; empty if it is the file.
    """

    def __init__(self, name: str, finding: str, remedy: str, members: Sequence[str] = ()) -> None:
        super().__init__(name, finding, remedy, members)  # all, so that it can be pickled
        self.finding = finding
        self.members = members
        separator = ": " if members else " "
        self._line = f"shard {name}{separator}{finding}{remedy}"

    def __str__(self) -> str:
        return self._line


class Beside(NamedTuple):
    """A remark on a shard beside its damage.

    Attributes:
        num_hidden: Hidden files that were passed over.
        first_hidden: The first one's name.
        doubtful: What of its samples is perhaps not meant so, in a line; None if nothing.
    """

    num_hidden: int = 0
    first_hidden: str = ""
    doubtful: str | None = None


@dataclass(frozen=True)
class ScanResult:
    """The result of scanning a shard.

    Attributes:
        index: The readable samples.
        sha256: Of the whole file, in hex.
        num_bytes: The file's size.
        damage: What is wrong, at which offset, and how many samples came before; None if sound.
        beside: What should be said of it beside the damage.
    """

    index: ShardIndex
    sha256: str
    num_bytes: int
    damage: str | None
    beside: Beside


def scan(file: RangeFile, name: str) -> ScanResult:
    """Read a shard once from start to end: its members, their checksums, its sha256.

    A damaged shard is indexed up to the damage; `tarfile` alone would stop there in silence.

    Args:
        file: A plain tar.
        name: The shard's name in error texts.

    Raises:
        UnusableShard: If the file is empty, compressed or no tar, holds links, sparse members or
            two samples of one key, or is sound and no sample in it has an image. What is wrong with
            members is found by reading to the end, to name them all.
    """
    stream = _ForwardReader(file)
    _refuse_other_formats(name, stream.peek())
    builder = _IndexBuilder()
    damage = _read_members(stream, builder, file)
    rest = _drain(stream)
    builder.raise_refused(name)
    damage = damage or rest
    index = builder.finish(stream.sha256.hexdigest(), is_damaged=damage is not None)
    if damage is not None:
        damage = f"{damage}; {count(len(index), 'sample')} before it"
    doubtful = None
    if damage is None:
        if (finding := builder.looks.refusal()) is not None:
            raise UnusableShard(name, *finding)
        doubtful = builder.looks.doubt()
    beside = Beside(builder.num_hidden, builder.first_hidden, doubtful)
    return ScanResult(index, stream.sha256.hexdigest(), stream.num_bytes, damage, beside)


def _refuse_other_formats(name: str, block: bytes) -> None:
    """Refuse what is no plain tar, from the file's first block."""
    if not block:
        raise UnusableShard(name, "has 0 bytes", "; write or copy it again")
    kind = compression_of(block)
    if kind is not None or name.lower().endswith(_COMPRESSED_NAMES):
        remedy = ", so samples cannot be read by offset; unpack it to a plain .tar"
        raise UnusableShard(name, f"is compressed ({kind or 'by its name'})", remedy)
    if not (_has_magic(block) or not any(block) or _has_checksum(block)):
        kind = kind_by_content(block)
        finding = "is not a tar file" + (f" but {kind}" if kind else "")
        raise UnusableShard(name, finding, f"; name only tar files, or {MAKE_SHARDS}")


def _has_magic(block: bytes) -> bool:
    """Tell whether a block is a header, also with one byte of the magic damaged."""
    return sum(a == b for a, b in zip(block[_USTAR], b"ustar", strict=False)) >= 4


def _has_checksum(block: bytes) -> bool:
    """Tell whether a block is a header of the oldest kind, which has no magic."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


class _ForwardReader:
    """A file that is only read forwards, in chunks, and hashed as it is read."""

    def __init__(self, file: RangeFile) -> None:
        self._file = file
        self._chunk = memoryview(b"")
        self._start, self._place = 0, 0  # the chunk's offset; the next byte in it
        self.num_bytes = file.num_bytes
        self.sha256 = sha256()

    def tell(self) -> int:
        """Return the next byte's offset."""
        return self._start + self._place

    def peek(self) -> bytes:
        """Return the next block without reading it."""
        self._fill()
        return bytes(self._chunk[self._place : self._place + _BLOCK])

    def read(self, size: int) -> bytes:
        """Return the next bytes, as tarfile asks for headers.

        Raises:
            tarfile.ReadError: For more than any honest header holds.
        """
        if size > _MAX_HEADER:
            raise tarfile.ReadError("header too long")
        return b"".join(self.pieces(size))

    def seek(self, offset: int) -> None:
        """Refuse to go where tarfile is led by a size below zero."""
        raise tarfile.ReadError(f"cannot go to {offset}")

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Yield the next bytes as they lie in the chunks; fewer where the file ends."""
        while size > 0 and self._fill():
            piece = self._chunk[self._place : self._place + size]
            self._place += len(piece)
            size -= len(piece)
            yield piece

    def skip(self, size: int) -> None:
        """Read on without looking."""
        for _ in self.pieces(size):
            pass

    def _fill(self) -> bool:
        """Read the next chunk if this one is used up; tell whether there is a byte."""
        if self._place == len(self._chunk):
            self._start += self._place
            self._place = 0
            size = min(_CHUNK, self.num_bytes - self._start)
            self._chunk = memoryview(self._file.read(self._start, size) if size else b"")
            self.sha256.update(self._chunk)
        return len(self._chunk) > 0


def _read_members(stream: _ForwardReader, builder: "_IndexBuilder", file: RangeFile) -> str | None:
    """Read the members up to the end marker or the damage; return the damage."""
    num_bytes = stream.num_bytes
    offset = 0
    for member, end in _members(stream):
        offset = end
        if builder.passes_over(member) or builder.refuses(member):
            stream.skip(end - stream.tell())
            continue
        if member.offset_data + member.size > num_bytes:
            builder.leave_out(member.name)
            return f"cut at offset {num_bytes}, inside {printable(member.name)}"
        size = member.size if member.isreg() else 0
        builder.add(member, _crc32(stream, size))
        # Reading up to the next header keeps tarfile from seeking past unhashed bytes.
        stream.skip(end - stream.tell())
    block = file.read(offset, _BLOCK)
    if len(block) < _BLOCK:
        return f"cut at offset {num_bytes}, without an end marker"
    return f"unreadable header at offset {offset}" if any(block) else None


def _members(stream: _ForwardReader) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Yield each member that tarfile finds, and the offset after its data.

    tarfile raises for some kinds of damage and stops in silence for the others: both end here.
    Beside its own errors, hostile headers make it raise ValueError and its kin, and a long chain of
    extended headers RecursionError.
    """
    try:
        tar = tarfile.open(fileobj=cast(Any, stream), mode="r:")  # noqa: SIM115 - holds no file
        while (member := tar.next()) is not None:
            end = cast(Any, tar).offset
            if member.size < 0 or end < stream.tell():
                return
            cast(Any, tar).members.clear()  # tarfile would keep every member
            yield member, end
    except UserError:  # of the storage; it is a ValueError too
        raise
    except (tarfile.TarError, ValueError, LookupError, OverflowError, RecursionError):
        return


def _crc32(stream: _ForwardReader, size: int) -> int:
    """Read a member's data; return its checksum."""
    crc = 0
    for piece in stream.pieces(size):
        crc = zlib.crc32(piece, crc)
    return crc


def _drain(stream: _ForwardReader) -> str | None:
    """Read (and so hash) what follows the end marker; return the damage if it is no end."""
    damage = None
    start = stream.tell()
    for piece in stream.pieces(stream.num_bytes - start):
        content = b"" if damage else bytes(piece)
        if rest := content.lstrip(b"\0"):
            damage = f"data after the end marker, at offset {stream.tell() - len(rest)}"
    if damage is None and stream.tell() - start > _MAX_END:
        return f"zeros from offset {start} to the end, more than end a tar"
    return damage


class _IndexBuilder:
    """Collects members into samples; a sample is closed when another key follows."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._open: dict[str, Member] = {}
        self._last_extensions: set[str] | None = None
        self._seen: set[str] = set()
        self._refused: list[tuple[str, str]] = []  # what is wrong, and the remedy
        self._extension_ids: dict[str, int] = {}
        self._members = [array("q"), array("q"), array("q"), array("q")]
        self._member_ends, self._key_ends = array("q"), array("q")
        self._keys = bytearray()
        self.num_hidden, self.first_hidden = 0, ""
        self.looks = Looks()

    def passes_over(self, member: tarfile.TarInfo) -> bool:
        """Tell whether a member is a hidden file, whatever its kind, and count it."""
        if member.isdir() or not is_hidden(member.name):
            return False
        self.num_hidden += 1
        self.first_hidden = self.first_hidden or printable(member.name)
        return True

    def refuses(self, member: tarfile.TarInfo) -> bool:
        """Tell whether a member's data is not one piece of this file, and note it."""
        if member.isdir() or (member.isreg() and not member.issparse()):
            return False
        kind = "a link" if member.issym() or member.islnk() else "neither a file nor a folder"
        kind = "sparse" if member.issparse() else kind
        self._refused.append((f"member {printable(member.name)} is {kind}", _PLAIN_FILES))
        return True

    def add(self, member: tarfile.TarInfo, crc32: int) -> None:
        """Take in one member; folders and names that webdataset skips are passed over."""
        parts = split_name(member.name) if member.isreg() else None
        if parts is None:
            return
        key, extension = parts
        if key != self._key:
            self._start(key)
        elif extension in self._open:
            what = f"member {printable(member.name)} occurs twice"
            self._refused.append((what, _UNIQUE_KEYS))
        self._open[extension] = Member(member.offset_data, member.size, crc32)

    def leave_out(self, member_name: str) -> None:
        """Leave out the sample of a member that is cut."""
        parts = split_name(member_name)
        if parts is not None and parts[0] == self._key:
            self._open = {}

    def _start(self, key: str) -> None:
        self._close()
        if key in self._seen:
            what = f"key {printable(key)} occurs twice, with other keys between"
            self._refused.append((what, _UNIQUE_KEYS))
        self._seen.add(key)
        self._key = key

    def _close(self) -> None:
        """Write the open sample to the arrays."""
        if self._key is None or not self._open:
            return
        for extension, member in self._open.items():
            number = self._extension_ids.setdefault(extension, len(self._extension_ids))
            for values, value in zip(self._members, (*member, number), strict=True):
                values.append(value)
        self.looks.add(self._key, self._open)
        self._keys += self._key.encode("utf-8", "surrogateescape")
        self._key_ends.append(len(self._keys))
        self._member_ends.append(len(self._members[0]))
        self._last_extensions = set(self._open)
        self._open = {}

    def raise_refused(self, name: str) -> None:
        """Raise `UnusableShard` if anything was refused."""
        if not self._refused:
            return
        finding, remedy = self._refused[0]
        separator = ", " if remedy == _UNIQUE_KEYS else "; "
        more = len(self._refused) - 1
        finding = f"{finding} (and {more} more)" if more else finding
        members = [what for what, _ in self._refused]
        raise UnusableShard(name, finding, separator + remedy, members)

    def finish(self, sha256: str, *, is_damaged: bool) -> ShardIndex:
        """Close the last sample and return the index.

        Before damage, a sample whose members are not those of the sample before it is taken to
        have lost some, and is left out.
        """
        if not (is_damaged and self._last_extensions not in (None, set(self._open))):
            self._close()
        offsets, sizes, crc32s, numbers = (np.array(values, np.int64) for values in self._members)
        return ShardIndex(
            member_ends=np.array(self._member_ends, np.int64),
            offsets=offsets,
            sizes=sizes,
            crc32s=crc32s.astype(np.uint32),
            extension_ids=numbers.astype(np.uint16),
            key_ends=np.array(self._key_ends, np.int64),
            keys=np.frombuffer(bytes(self._keys), np.uint8),
            extensions=tuple(self._extension_ids),
            sha256=sha256,
        )
