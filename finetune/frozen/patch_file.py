"""Patch features on disk: a safetensors file that is written while images are read.

They are too many for memory: 60,000 images of 64 patches, width 128 and 4 layers are 4 GB in bf16.
So they are appended batch by batch, and read where they lie. The header, which counts the images,
has its room from the start and is written last.
"""

import json
import logging
import shutil
import struct
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from data.samples import Samples
from data.settings import require
from data.shards import atomic_write
from pretrain.encoder.facts import grid_size
from pretrain.evaluation.features import PATCHES

logger = logging.getLogger(__name__)

_HEADER = 4096  # bytes of the header with its length
_ITEM = torch.bfloat16.itemsize


@contextmanager
def write_patches(path: Path, digest: str, layers: Sequence[int]) -> Generator["PatchWriter"]:
    """Give what writes the patches of a split into a file that is whole or not there.

    Args:
        path: The file.
        digest: Of all that the features depend on.
        layers: Whose patches are written.
    """
    with ExitStack() as stack:
        try:
            yield PatchWriter(stack, path, digest, layers)
        except BaseException:
            with suppress(OSError):  # what is thrown away may find no room on a full disk
                stack.__exit__(*sys.exc_info())
            raise


class PatchWriter:
    """Appends images in listed order; `write_patches` gives it."""

    def __init__(self, stack: ExitStack, path: Path, digest: str, layers: Sequence[int]) -> None:
        self.layers = layers
        self._stack = stack
        self._path = path
        self._digest = digest
        self._file: BinaryIO | None = None
        self._images: list[Tensor] = []
        self._shape = torch.Size()
        self._error: OSError | None = None

    def write(self, labels: Tensor, positions: Tensor, patches: Tensor) -> None:
        """Append images: int64 (B,) twice, and bf16 (B, L, P, D) on the CPU.

        What the disk refuses is kept for `close`: the other ranks read on.
        """
        if self._error is None:
            try:
                self._append(labels, positions, patches)
            except OSError as error:
                self._error = error

    def _append(self, labels: Tensor, positions: Tensor, patches: Tensor) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._stack.enter_context(atomic_write(self._path))
            self._file.write(bytes(_HEADER))
        self._images.append(torch.stack([labels, positions]))
        self._shape = patches.shape[1:]
        self._file.write(_bytes(patches))

    def close(self) -> None:
        """Let the file appear.

        Raises:
            OSError: The disk has refused something.
        """
        if self._error is not None:
            raise self._error
        if self._file is None:  # another rank than the main process
            return
        labels, positions = torch.cat(self._images, dim=1)
        self._file.write(_bytes(labels) + _bytes(positions))
        self._file.seek(0)
        self._file.write(self._header(len(labels)))
        self._stack.close()

    def _header(self, number: int) -> bytes:
        """Return safetensors' header: 8 bytes of its length, and JSON that blanks fill up."""
        facts: dict[str, object] = {"__metadata__": {"fingerprint": self._digest}}
        end = 0
        for name, kind, shape, item in (
            (PATCHES, "BF16", self._shape, _ITEM),
            ("labels", "I64", (), 8),
            ("positions", "I64", (), 8),
        ):
            begin, end = end, end + number * torch.Size(shape).numel() * item
            facts[name] = {
                "dtype": kind,
                "shape": [number, *shape],
                "data_offsets": [begin, end],
            }
        length = _HEADER - 8
        return struct.pack("<Q", length) + json.dumps(facts).encode().ljust(length)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


# ---------------------------------------------------------------- their size


def num_patch_bytes(encoder: VisionTransformer, samples: Samples, num_layers: int) -> int:
    """Return how many bytes the patches of a split take."""
    rows, columns = grid_size(encoder)
    values = num_layers * rows * columns * encoder.num_features
    return samples.manifest.num_samples * values * _ITEM


def require_room(folder: Path, num_bytes: int, keys: tuple[str, str]) -> None:
    """Say how much the patches will take of a disk.

    Args:
        folder: Where they are written; it need not be there yet.
        num_bytes: Of all of them.
        keys: The configuration keys of the folder and of the layers, for messages.

    Raises:
        UserError: The disk has less.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free, size = shutil.disk_usage(place).free, f"{num_bytes / 2**30:.3g} GiB"
    require(
        num_bytes <= free,
        f"{keys[0]}={folder}: the patch features take {size}, and {free / 2**30:.3g} GiB are free "
        f"there; name a folder on another disk, or fewer {keys[1]}",
    )
    logger.info("the patch features take %s in %s", size, folder)
