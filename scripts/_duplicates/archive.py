"""The images among which duplicates are sought: their places, their files, their pictures."""

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from data.batch import Batch, Request
from data.index.files import FileTable
from data.index.manifest import Manifest
from data.index.open import load_index
from data.index.tables import folder_of
from data.samples import Samples
from data.settings import UserError, require
from data.text import escaped, printable
from pretrain.pictures.draw import rgb
from pretrain.pictures.page import as_image, lead

_LONGEST = 224  # pixels of a picture's side
_QUALITY = 80


class Listed(NamedTuple):
    """A file of a folder or list.

    Attributes:
        path: Absolute.
        num_bytes: Its size.
    """

    path: Path
    num_bytes: int


class Archive:
    """Images in listed order.

    Args:
        manifest: Of a folder, a list or shards.
        size: (H, W) of the crops that are compared, whose shape pictures have.
        channels: C of the images.
    """

    def __init__(
        self, manifest: Manifest, size: tuple[int, int] = (1, 1), channels: int = 3
    ) -> None:
        height, width = (max(1, round(side * _LONGEST / max(size))) for side in size)
        self._manifest = manifest
        self._samples = Samples(manifest, (height, width), seed=0, channels=channels)
        self._tables: dict[int, FileTable] = {}

    def __len__(self) -> int:
        return self._manifest.num_samples

    @property
    def is_of_files(self) -> bool:
        """Whether each image is a file of its own, and none a member of a shard."""
        return not any(shard.is_tar for shard in self._manifest.shards)

    def find(self, names: list[str], features: str) -> list[int]:
        """Return the positions of images by their names, which are in listed order.

        Args:
            names: SHARD/KEY of each, as `embed.py` writes them.
            features: Where they are from, for messages.

        Raises:
            UserError: They are of other images.
        """
        positions: list[int] = []
        for position in range(len(self)):
            if len(positions) == len(names):
                break
            if escaped(self._samples.name(position)) == names[len(positions)]:
                positions.append(position)
        if len(positions) < len(names):
            other = printable(names[len(positions)])
            raise UserError(
                f"MODEL={features} holds features of {other}, and IMAGES has no such image, or in "
                "another place; name the images of which embed.py wrote them"
            )
        return positions

    def require_all(self, positions: list[int], features: str) -> None:
        """Raise `UserError` where an image that can be read is at none of the positions."""
        for position in sorted(set(range(len(self))) - set(positions)):
            require(
                bool(self._read(position).bad),
                f"MODEL={features} has no features of {printable(self._samples.name(position))}, "
                "which is in IMAGES; give the encoder in its place",
            )

    def _read(self, position: int) -> Batch:
        return self._samples[Request(0, position, position + 1)]

    def file(self, position: int) -> Listed:
        """Return an image's file."""
        shard, place = self._samples.order.locate(position)
        folder = folder_of(self._manifest.shards[shard].location)
        found = self._table(shard).file(place)
        return Listed(folder / found.path, found.num_bytes)

    def _table(self, shard: int) -> FileTable:
        if shard not in self._tables:
            table = load_index(self._manifest.shards[shard])
            assert isinstance(table, FileTable)
            self._tables[shard] = table
        return self._tables[shard]

    def picture(self, position: int, name: str) -> str:
        """Return an image as the encoder sees it, as an `<img>`; in words what cannot be read."""
        batch = self._read(position)
        if batch.bad:
            return lead(batch.bad[0].reason)
        picture = Image.fromarray(rgb(batch.tensors["image"])[0].permute(1, 2, 0).numpy())
        content = BytesIO()
        picture.save(content, "JPEG", quality=_QUALITY)
        return as_image(content.getvalue(), name, "jpeg")
