"""The index of one shard: where each member lies, and its checksum.

Each shard has one file `NAME.tar.index` in safetensors format (no pickle). It is read through a
memory map, so that an index costs no Python object a sample and workers share its pages.
"""

import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as to_safetensors

from data.settings import UserError
from data.shards import atomic_write

_DTYPES = {"I64": np.int64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8}


class Member(NamedTuple):
    """Where one member's data lies in its shard (bytes), and its `zlib.crc32`."""

    offset: int
    size: int
    crc32: int


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The samples of one shard, with S samples and M members.

    Attributes:
        member_ends: (S,) int64, the number of members up to the end of each sample.
        offsets: (M,) int64, where a member's data starts.
        sizes: (M,) int64, bytes.
        crc32s: (M,) uint32.
        extension_ids: (M,) uint16, places in `extensions`.
        key_ends: (S,) int64, where each key ends in `keys`.
        keys: uint8, all keys in UTF-8, one after the other.
        extensions: The distinct extensions.
    """

    member_ends: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    crc32s: npt.NDArray[np.uint32]
    extension_ids: npt.NDArray[np.uint16]
    key_ends: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint8]
    extensions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.member_ends)

    def key(self, sample: int) -> str:
        """Return the key of sample 0 <= `sample` < S."""
        start = int(self.key_ends[sample - 1]) if sample else 0
        name = self.keys[start : int(self.key_ends[sample])].tobytes()
        return name.decode("utf-8", "surrogateescape")

    def members(self, sample: int) -> dict[str, Member]:
        """Return the members of sample 0 <= `sample` < S by extension."""
        start = int(self.member_ends[sample - 1]) if sample else 0
        return {
            self.extensions[self.extension_ids[i]]: Member(
                int(self.offsets[i]), int(self.sizes[i]), int(self.crc32s[i])
            )
            for i in range(start, int(self.member_ends[sample]))
        }

    def save(self, path: Path) -> None:
        """Write the index, whole or not at all."""
        arrays = {name: value for name, value in vars(self).items() if name != "extensions"}
        metadata = {"format": "1", "extensions": json.dumps(self.extensions)}
        with atomic_write(path) as file:
            file.write(to_safetensors(arrays, metadata))

    @classmethod
    def load(cls, path: Path) -> "ShardIndex":
        """Map an index that `save` wrote.

        Raises:
            UserError: If the file is not such an index, or is cut short.
        """
        with path.open("rb") as file:
            try:
                return cls(**_mapped_arrays(file))
            except (KeyError, TypeError, ValueError) as error:
                message = f"{path} is not an index; delete it and it will be made again"
                raise UserError(message) from error


def _mapped_arrays(file: BinaryIO) -> dict[str, Any]:
    """Read a safetensors file without copying: safetensors' own numpy reader copies each array."""
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(min(length, 1 << 24)))
    pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    fields: dict[str, Any] = {
        "extensions": tuple(json.loads(header.pop("__metadata__")["extensions"]))
    }
    for name, entry in header.items():
        start, count = 8 + length + entry["data_offsets"][0], entry["shape"][0]
        fields[name] = np.frombuffer(pages, _DTYPES[entry["dtype"]], count, start)
    return fields
