"""Arrays in a safetensors file, mapped and not read: what indexes of shards and folders lie in.

No pickle, no Python object a sample, and processes share the pages. safetensors' own numpy reader
would copy each array.
"""

import json
import mmap
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as to_safetensors

from data.settings import UserError
from data.shards import atomic_write

_DTYPES = {"I64": np.int64, "I32": np.int32, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8}
# what reading a file that is none, or is cut, raises
_DAMAGES = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Mapped:
    """What is of arrays, a few names, and a sha256: a dataclass that lies in such a file."""

    ARRAYS: ClassVar[tuple[str, ...]]  # the fields that are arrays
    NAMES: ClassVar[str]  # the field of names
    KIND: ClassVar[str]  # what messages call it
    ALWAYS_CHECKED: ClassVar[bool] = True  # older versions too wrote a checksum

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        names, sha256 = self._facts
        metadata = {
            "format": "1",
            self.NAMES: json.dumps(names),
            "sha256": sha256 or "",
            "crc32": str(self._crc32()),
        }
        with atomic_write(path) as file:
            file.write(to_safetensors({n: getattr(self, n) for n in self.ARRAYS}, metadata))

    @property
    def _facts(self) -> tuple[tuple[str, ...], str | None]:
        own: Any = self
        return getattr(own, self.NAMES), own.sha256

    def _crc32(self) -> int:
        crc = zlib.crc32(json.dumps(self._facts).encode())
        for name in self.ARRAYS:
            crc = zlib.crc32(np.ascontiguousarray(getattr(self, name)).data, crc)
        return crc

    @classmethod
    def load(cls, path: Path) -> Self:
        """Map what `save` wrote.

        Raises:
            OSError: The file cannot be read.
            UserError: It is no such file, is cut short, or has changed.
        """
        try:
            fields, metadata = _map_arrays(path, cls.ARRAYS)
            fields[cls.NAMES] = tuple(json.loads(metadata[cls.NAMES]))
            make: Any = cls
            loaded: Self = make(**fields, sha256=metadata.get("sha256") or None)
            if metadata["format"] != "1":
                raise ValueError("format")
            has_none = "crc32" not in metadata and not cls.ALWAYS_CHECKED
            if not has_none and int(metadata["crc32"]) != loaded._crc32():
                raise ValueError("checksum")
        except _DAMAGES as error:
            message = f"{path} is not {cls.KIND}; delete it and it will be made again"
            raise UserError(message) from error
        return loaded


def _map_arrays(path: Path, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Map a file's arrays; return them by name, and what describes them."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, 1 << 24)))
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays: dict[str, Any] = {}
    for name in names:
        entry = header[name]
        start, count = 8 + length + entry["data_offsets"][0], entry["shape"][0]
        arrays[name] = np.frombuffer(pages, _DTYPES[entry["dtype"]], count, start)
    return arrays, header["__metadata__"]


def string_at(ends: npt.NDArray[np.int64], content: npt.NDArray[np.uint8], place: int) -> bytes:
    """Return one of many strings that lie one after the other; `ends` says where each ends."""
    start = int(ends[place - 1]) if place else 0
    return content[start : int(ends[place])].tobytes()


def strings(ends: npt.NDArray[np.int64], content: npt.NDArray[np.uint8]) -> list[bytes]:
    """Return all strings that lie one after the other."""
    whole, stops = content.tobytes(), [0, *ends.tolist()]
    return [whole[start:stop] for start, stop in pairwise(stops)]


def pick(
    ends: npt.NDArray[np.int64], places: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Keep some of what lies one after the other.

    Args:
        ends: (N,), where each one ends.
        places: Of those that are kept, in order.

    Returns:
        Where each that is kept ends then; and of each single entry whether it is kept.
    """
    lengths, is_kept = np.diff(ends, prepend=0), np.zeros(len(ends), np.bool_)
    is_kept[places] = True
    return np.cumsum(lengths[places]), np.repeat(is_kept, lengths)


def choose(number: int, num_kept: int, seed: int) -> npt.NDArray[np.int64]:
    """Choose `num_kept` of `number` places by a hash, in order: those of fewer are among them."""
    from data.randomness import combine  # here: it brings torch, which no other index needs

    words = combine(np.full(number, seed), np.arange(number))
    return np.sort(np.argsort(words, kind="stable")[:num_kept])
