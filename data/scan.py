"""One sequential reading of a shard: its members, their checksums, its sha256, and its damage."""

import io
import os
import tarfile
import zlib
from array import array
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from data.offsets import Member, ShardIndex
from data.settings import UserError, require
from data.shards import split_name

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20  # bytes read at once
_MAGICS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_COMPRESSED_NAMES = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst")


@dataclass(frozen=True)
class ScanResult:
    """What one reading of a shard found.

    Attributes:
        index: The readable samples.
        sha256: Of the whole file, in hex.
        num_bytes: The file's size.
        damage: What is wrong, at which offset, and how many samples came before; None if sound.
    """

    index: ShardIndex
    sha256: str
    num_bytes: int
    damage: str | None


def scan(path: Path, name: str) -> ScanResult:
    """Read a shard once from start to end: its members, their checksums, its sha256.

    A damaged shard is indexed up to the damage; `tarfile` alone would stop there in silence.

    Args:
        path: A plain tar.
        name: The shard's name in error texts.

    Raises:
        UserError: If the file is empty, compressed or no tar, or holds links, sparse members or
            two samples of one key.
    """
    with path.open("rb", buffering=0) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        _refuse_other_formats(name, os.pread(file.fileno(), _BLOCK, 0))
        source = _HashingFile(file)
        stream = io.BufferedReader(source, _CHUNK)
        builder = _IndexBuilder(name)
        damage = _read_members(stream, builder, file)
        rest = _drain(stream)
        damage = damage or rest
        index = builder.finish(is_damaged=damage is not None)
        if damage is not None:
            damage = f"{damage}; {len(index)} samples before it"
        return ScanResult(index, source.sha256.hexdigest(), num_bytes, damage)


def _refuse_other_formats(name: str, block: bytes) -> None:
    """Refuse what is no plain tar, from the file's first block."""
    require(len(block) > 0, f"shard {name} has 0 bytes; write or copy it again")
    kinds = [kind for magic, kind in _MAGICS.items() if block.startswith(magic)]
    if kinds or name.lower().endswith(_COMPRESSED_NAMES):
        kind = kinds[0] if kinds else "by its name"
        raise UserError(
            f"shard {name} is compressed ({kind}), so samples cannot be read by offset; "
            "unpack it to a plain .tar"
        )
    is_tar = block[257:262] == b"ustar" or _is_zero(block) or _has_checksum(block)
    require(is_tar, f"shard {name} is not a tar file; name only tar files")


def _has_checksum(block: bytes) -> bool:
    """Tell whether a block is a header of the oldest kind, which has no magic."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _is_zero(block: bytes) -> bool:
    return block.count(0) == len(block)


class _HashingFile(io.RawIOBase):
    """A file that is only read forwards, and hashed as it is read."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.sha256 = sha256()

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        num_read = self._file.readinto(buffer) or 0
        self.sha256.update(buffer[:num_read])
        return num_read


def _read_members(stream: BinaryIO, builder: "_IndexBuilder", file: io.FileIO) -> str | None:
    """Read the members up to the end marker or the damage; return the damage."""
    num_bytes = os.fstat(file.fileno()).st_size
    offset = 0
    # tarfile raises for some kinds of damage and stops in silence for the others.
    with suppress(tarfile.TarError), tarfile.open(fileobj=stream, mode="r:") as tar:
        while (member := tar.next()) is not None:
            offset = tar.offset
            cast(Any, tar).members.clear()  # tarfile would keep every member
            builder.refuse_kind(member)
            if member.offset_data + member.size > num_bytes:
                builder.leave_out(member.name)
                return f"cut at offset {num_bytes}, inside {member.name}"
            # Reading up to the next header keeps tarfile from seeking past unhashed bytes.
            builder.add(member, _crc32(stream, member.size if member.isreg() else 0))
    block = os.pread(file.fileno(), _BLOCK, offset)
    if len(block) < _BLOCK:
        return f"cut at offset {num_bytes}, without an end marker"
    return None if _is_zero(block) else f"unreadable header at offset {offset}"


def _crc32(stream: BinaryIO, size: int) -> int:
    """Read a member's data and the padding after it; return the checksum of the data."""
    crc = 0
    for start in range(0, size, _CHUNK):
        crc = zlib.crc32(stream.read(min(_CHUNK, size - start)), crc)
    stream.read(-size % _BLOCK)
    return crc


def _drain(stream: BinaryIO) -> str | None:
    """Read (and so hash) what follows the end marker; return the damage if it is not zero."""
    damage = None
    offset = stream.tell()
    while block := stream.read(_CHUNK):
        if damage is None and not _is_zero(block):
            place = offset + len(block) - len(block.lstrip(b"\0"))
            damage = f"data after the end marker, at offset {place}"
        offset += len(block)
    return damage


class _IndexBuilder:
    """Collects members into samples; a sample is closed when another key follows."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._key: str | None = None
        self._open: dict[str, Member] = {}
        self._last_extensions: set[str] | None = None
        self._seen: set[str] = set()
        self._extension_ids: dict[str, int] = {}
        self._members = [array("q"), array("q"), array("q"), array("q")]
        self._member_ends, self._key_ends = array("q"), array("q")
        self._keys = bytearray()

    def refuse_kind(self, member: tarfile.TarInfo) -> None:
        """Refuse members whose data is not one piece of this file."""
        if member.isdir() or (member.isreg() and not member.issparse()):
            return
        kind = "a link" if member.issym() or member.islnk() else "neither a file nor a folder"
        kind = "sparse" if member.issparse() else kind
        raise UserError(
            f"shard {self._name}: member {member.name} is {kind}; "
            "write the shard again with plain files (scripts/make_shards.py does)"
        )

    def add(self, member: tarfile.TarInfo, crc32: int) -> None:
        """Take in one member; folders and names that webdataset skips are passed over."""
        parts = split_name(member.name) if member.isreg() else None
        if parts is None:
            return
        key, extension = parts
        if key != self._key:
            self._start(key)
        if extension in self._open:
            self._refuse_duplicate(member.name)
        self._open[extension] = Member(member.offset_data, member.size, crc32)

    def leave_out(self, member_name: str) -> None:
        """Leave out the sample of a member that is cut."""
        parts = split_name(member_name)
        if parts is not None and parts[0] == self._key:
            self._open = {}

    def _start(self, key: str) -> None:
        self._close()
        if key in self._seen:
            self._refuse_duplicate(key)
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
        self._keys += self._key.encode("utf-8", "surrogateescape")
        self._key_ends.append(len(self._keys))
        self._member_ends.append(len(self._members[0]))
        self._last_extensions = set(self._open)
        self._open = {}

    def _refuse_duplicate(self, what: str) -> None:
        raise UserError(
            f"shard {self._name}: {what} occurs twice, so samples would be mixed up; "
            "write the shard again with unique keys, each sample's members side by side"
        )

    def finish(self, *, is_damaged: bool) -> ShardIndex:
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
        )
