"""What the demos' shards share: how they are encoded, and made whole or not at all."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from PIL import Image
from tqdm import tqdm

from data.index.open import open_manifest
from data.settings import UserError
from data.shards import ImageFile, write_shard

Drawn = TypeVar("Drawn")


def make_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Make a folder of shards and its index, whole or not at all.

    Args:
        folder: It may exist, but empty.
        write: Writes the shards into the folder that it is given.

    Raises:
        UserError: If the folder exists and holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds other files than the demo's; delete it or name another")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        work = Path(temporary) / "shards"
        work.mkdir()
        write(work)
        shutil.rmtree(folder, ignore_errors=True)  # empty, or it was refused above
        work.rename(folder)
    open_manifest(folder, "demo")


def write_shards(
    folder: Path,
    plan: Mapping[str, Sequence[Drawn]],
    draw: Callable[[Sequence[Drawn]], Iterable[ImageFile]],
    unit: str,
) -> None:
    """Write the shards of a plan, file name -> what is drawn in it, and show how far it is."""
    total = sum(map(len, plan.values()))
    with tqdm(total=total, desc=f"demo {unit}s", unit=unit, delay=2, disable=None) as progress:
        for name, drawn in plan.items():
            progress.update(write_shard(folder / name, draw(drawn)))


def as_png(image: Image.Image) -> bytes:
    """Encode a small image, quickly."""
    data = BytesIO()
    image.save(data, "PNG", compress_level=1)
    return data.getvalue()
