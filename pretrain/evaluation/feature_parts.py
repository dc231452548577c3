"""Features on their way to a file: parts in a folder beside it, each of which is a commit.

A pass that was interrupted goes on behind the last whole part, to the same file, to the bit.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from data.batch import LedgerEntry
from data.settings import require
from data.shards import atomic_write
from data.text import count, escaped
from pretrain.evaluation.embedding import Part, Reading, read_parts
from pretrain.evaluation.feature_files import (
    Rows,
    Size,
    count_bytes,
    write_features,
    writing,
)
from pretrain.evaluation.fingerprint import fingerprint
from pretrain.ranks import on_main

_PART_BYTES = 64 << 20
_ABOUT = "about.json"
_logger = logging.getLogger(__name__)


class Parts:
    """The parts of a file of features.

    Args:
        reading: What is read of which images.
        out: The file.

    Attributes:
        num_images: Those of a part; a multiple of the batch size.
    """

    def __init__(self, reading: Reading, out: Path) -> None:
        batch = reading.config.batch_size
        self.num_images = max(1, _PART_BYTES // (reading.row_bytes * batch)) * batch
        self._reading, self._out = reading, out
        self._folder = out.with_name(f"{out.name}.parts")

    def open(self) -> int:
        """Make the folder, or go on with it; return how many images its parts have.

        Raises:
            UserError: It holds something else, or the disk is too small for what is to come.
        """
        about = self._folder / _ABOUT
        with writing(self._out):
            self._folder.mkdir(exist_ok=True)
            others = any(not path.name.startswith(".") for path in self._folder.iterdir())
            known = json.loads(about.read_text()) if about.is_file() else None
            require(
                known == self._about or not (others or known),
                f"--out={self._out}: {self._folder} holds parts of other features (of another "
                "encoder, other images or other options); remove that folder, or give another "
                "--out",
            )
            if known is None:
                with atomic_write(about) as file:
                    file.write(json.dumps(self._about).encode())
        done = 0
        while done < self._reading.num_images and self._is_whole(done):
            done += self.num_images
        done = min(done, self._reading.num_images)
        self._require_room(done)
        return done

    @property
    def _about(self) -> dict[str, str]:
        reading = self._reading
        facts = [
            fingerprint(reading.encoder, reading.samples, [reading.view], reading.config.precision),
            reading.config.batch_size,
            reading.config.mirror,
            self.num_images,
        ]
        return {"features": sha256(json.dumps(facts).encode()).hexdigest()}

    def _require_room(self, done: int) -> None:
        reading = self._reading
        size = Size(reading.num_images, reading.shape, reading.dtype)
        needed = count_bytes(self._out, size) + (reading.num_images - done) * reading.row_bytes
        free = shutil.disk_usage(self._folder).free
        require(
            needed <= free,
            f"--out={self._out} and the parts beside it, until they are joined, take "
            f"{needed / 1e6:,.1f} MB, and the disk has {free / 1e6:,.1f} MB left; make room, or "
            "give a place on another disk",
        )

    def keep(self, part: Part) -> None:
        """Write a part, whole or not at all."""
        bad = json.dumps([[*entry] for entry in part.bad])
        content = save({"positions": part.positions, "values": part.values}, {"bad": bad})
        with writing(self._out), atomic_write(self._path(part.start)) as file:
            file.write(content)

    def _path(self, start: int) -> Path:
        return self._folder / f"part-{start // self.num_images:06d}.safetensors"

    def _is_whole(self, start: int) -> bool:
        """Tell whether the part that begins there is there, and can be opened."""
        try:
            with safe_open(self._path(start), "np") as file:
                return file.get_tensor("positions") is not None
        except (OSError, SafetensorError):
            return False

    def join(self) -> Size:
        """Write the file from all parts, and remove them.

        Raises:
            UserError: It cannot be written.
            RunStopped: No image can be read.
        """
        reading, num_rows = self._reading, 0
        bad: list[LedgerEntry] = []
        for _, file in self._files():
            num_rows += len(file.get_tensor("positions"))
            bad += [LedgerEntry(*entry) for entry in json.loads(file.metadata()["bad"])]
        reading.judge(bad)
        size = Size(num_rows, reading.shape, reading.dtype)
        write_features(self._out, self._rows(), size)
        shutil.rmtree(self._folder)
        return size

    def _rows(self) -> Rows:
        for start, file in self._files():
            part = Part(start, file.get_tensor("positions"), file.get_tensor("values"), [])
            yield [escaped(name) for name in self._reading.names(part)], part.values

    def _files(self) -> Iterator[tuple[int, Any]]:
        """Yield where each part begins, and its file, opened."""
        for start in range(0, self._reading.num_images, self.num_images):
            with safe_open(self._path(start), "np") as file:
                yield start, file


def write_embeddings(reading: Reading, out: Path) -> Size | None:
    """Write the features of all images to a file, part after part; the same again goes on.

    Args:
        reading: What is read of which images.
        out: It ends in .npy, .csv or .parquet.

    Returns:
        What it holds; None on all ranks but the main process.

    Raises:
        UserError: It cannot be written.
        RunStopped: No image can be read, or what the encoder gives is no number.
    """
    accelerator, parts = reading.accelerator, Parts(reading, out)
    first = on_main(accelerator, parts.open)
    size = Size(reading.num_images, reading.shape, reading.dtype)
    _logger.info(
        "%s x %s in %s: %s MB in %s, and as much beside it until it is whole%s",
        count(reading.num_images, "image"),
        " x ".join(f"{side:,}" for side in reading.shape),
        reading.dtype,
        f"{count_bytes(out, size) / 1e6:,.1f}",
        out,
        f"; {first:,} images are there already" if first else "",
    )
    if first < reading.num_images:
        read_parts(reading, parts.num_images, parts.keep, first)
    accelerator.end_training()  # the other ranks need not wait for what follows
    return parts.join() if accelerator.is_main_process else None
