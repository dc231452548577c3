"""Reading all members of a shard, or files of a folder, to name each that cannot be used."""

import zlib
from collections.abc import Iterator

from data.index.files import FileTable
from data.index.manifest import Shard
from data.index.offsets import Member, ShardIndex
from data.index.open import load_index
from data.reading.bad import MAX_MEMBER_BYTES, BadSample
from data.reading.files import OpenFolder
from data.shards import IMAGE_EXTENSIONS, choose_image
from data.storage.files import open_file
from data.storage.locations import RangeFile, Storage, Version
from data.text import printable

_CHUNK = 8 << 20  # bytes read at once


def unusable_members(
    shard: Shard, storage: Storage, *, decodes: bool, channels: int = 3
) -> list[str]:
    """Name each member that is not as it was indexed, with what is wrong.

    Args:
        shard: An indexed shard; it is read once, forwards.
        storage: How remote shards are read.
        decodes: Decode each sample's image too, and name those that cannot be.
        channels: What it is decoded to; `data.channels` of the runs to come.
    """
    index = load_index(shard, storage)
    if isinstance(index, FileTable):
        found = _unusable_files(shard, index, channels if decodes else None)
        return [f"{printable(name)}: {finding}" for name, finding in found]
    file = open_file(shard.location, storage, Version(shard.num_bytes, shard.etag))
    try:
        findings = _unusable(index, _Ahead(file), channels if decodes else None)
        return [f"{printable(name)}: {finding}" for name, finding in findings]
    finally:
        file.close()


def _unusable_files(
    shard: Shard, table: FileTable, channels: int | None
) -> Iterator[tuple[str, str]]:
    folder = OpenFolder(shard, table)
    for sample in range(len(table)):
        try:
            [content] = folder.read(sample, IMAGE_EXTENSIONS).values()
        except BadSample as error:
            yield table.key(sample), str(error)
            continue
        finding = None if channels is None else _decode_error(content, channels)
        if finding is not None:
            yield table.key(sample), finding


def _unusable(index: ShardIndex, file: "_Ahead", channels: int | None) -> Iterator[tuple[str, str]]:
    for sample in range(len(index)):
        members = index.members(sample)
        image = None if channels is None else choose_image(members, channels)
        for extension, member in members.items():
            finding = _finding(file, member, channels if extension == image else None)
            if finding is not None:
                yield f"{index.key(sample)}.{extension}", finding


def _finding(file: "_Ahead", member: Member, channels: int | None) -> str | None:
    if member.size > MAX_MEMBER_BYTES:
        return f"{member.size} bytes, more than the {MAX_MEMBER_BYTES} that are read"
    content = file.read(member.offset, member.size)
    if len(content) < member.size:
        return f"{len(content)} of {member.size} bytes at offset {member.offset}"
    if zlib.crc32(content) != member.crc32:
        return f"checksum differs from the index at offset {member.offset}"
    return None if channels is None else _decode_error(content, channels)


def _decode_error(content: bytes, channels: int) -> str | None:
    # Here, because it imports torch: seconds that checksums alone need not pay.
    from data.images.decoding import UnreadableImage, decode

    try:
        decode(content, channels)
    except UnreadableImage as error:
        return str(error)
    return None


class _Ahead:
    """Reads on in large pieces, as suits a server, where the parts asked for come in order."""

    def __init__(self, file: RangeFile) -> None:
        self._file = file
        self._start, self._content = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._content):
            self._start, begin = offset, 0
            self._content = self._file.read(offset, max(size, _CHUNK))
        return self._content[begin : begin + size]
