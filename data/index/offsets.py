"""The index of one shard: where each member lies, and its checksum.

Each shard has one file `NAME.tar.index` in safetensors format (no pickle). It is read through a
memory map, so that an index costs no Python object a sample and workers share its pages. It states
which tar it is of, and a checksum of itself.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data.index.arrays import Mapped, pick, string_at, strings


class Member(NamedTuple):
    """Where one member's data lies in its shard (bytes), and its `zlib.crc32`."""

    offset: int
    size: int
    crc32: int


@dataclass(frozen=True, eq=False)
class ShardIndex(Mapped):
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
        sha256: Of the tar that was indexed, in hex; None in an index that an older version wrote.
    """

    ARRAYS = (
        "member_ends",
        "offsets",
        "sizes",
        "crc32s",
        "extension_ids",
        "key_ends",
        "keys",
    )
    NAMES = "extensions"
    KIND = "an index"
    ALWAYS_CHECKED = False

    member_ends: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    crc32s: npt.NDArray[np.uint32]
    extension_ids: npt.NDArray[np.uint16]
    key_ends: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint8]
    extensions: tuple[str, ...]
    sha256: str | None = None

    def __len__(self) -> int:
        return len(self.member_ends)

    def key(self, sample: int) -> str:
        """Return the key of sample 0 <= `sample` < S, as `data.text.escaped` writes it."""
        name = string_at(self.key_ends, self.keys, sample)
        return name.decode("utf-8", "backslashreplace")

    def members(self, sample: int) -> dict[str, Member]:
        """Return the members of sample 0 <= `sample` < S by extension."""
        start = int(self.member_ends[sample - 1]) if sample else 0
        return {
            self.extensions[self.extension_ids[i]]: Member(
                int(self.offsets[i]), int(self.sizes[i]), int(self.crc32s[i])
            )
            for i in range(start, int(self.member_ends[sample]))
        }

    def names(self) -> list[bytes]:
        """Return the keys as they lie in the tar."""
        return strings(self.key_ends, self.keys)

    def only(self, places: npt.NDArray[np.int64]) -> "ShardIndex":
        """Return an index of some samples alone, by their places in order."""
        fields: dict[str, Any] = {}
        for ends, values in (
            ("member_ends", ("offsets", "sizes", "crc32s", "extension_ids")),
            ("key_ends", ("keys",)),
        ):
            fields[ends], is_kept = pick(getattr(self, ends), places)
            fields |= {name: getattr(self, name)[is_kept] for name in values}
        return replace(self, **fields)

    def has_layout_of(self, other: "ShardIndex") -> bool:
        """Tell whether another index has the same members at the same places."""
        return self.is_start_of(other) and len(self) == len(other)

    def is_start_of(self, other: "ShardIndex") -> bool:
        """Tell whether another index begins with this one's samples, at the same places."""
        if len(self) > len(other) or len(self.offsets) > len(other.offsets):
            return False
        names = [index.extensions for index in (self, other)]
        ids = [index.extension_ids[: len(self.offsets)] for index in (self, other)]
        extensions = [[name[i] for i in each] for name, each in zip(names, ids, strict=True)]
        return extensions[0] == extensions[1] and all(
            np.array_equal(values, getattr(other, name)[: len(values)])
            for name in ("member_ends", "offsets", "sizes", "key_ends", "keys")
            for values in [getattr(self, name)]
        )
