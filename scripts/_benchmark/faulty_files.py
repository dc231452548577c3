"""Small shards, and the faults that storage and users put into them."""

import os
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from data.shards import ImageFile, write_shard

SIZE = (24, 24)  # pixels, height and width
SAMPLES_PER_SHARD = 20
_MIDDLE = SAMPLES_PER_SHARD // 2  # the sample that a fault strikes


def write_shards(
    folder: Path, num_shards: int = 3, *, extension: str = "png", has_equal_keys: bool = False
) -> list[Path]:
    """Write shards of 20 samples: an image of random pixels, and a label.

    Args:
        folder: Where to; it must not exist.
        num_shards: How many.
        extension: png or jpg.
        has_equal_keys: Number each shard's samples from 0, as shards made one by one are.
    """
    folder.mkdir(parents=True)
    paths = [folder / f"train-{shard:03d}.tar" for shard in range(num_shards)]
    for shard, path in enumerate(paths):
        first = shard * SAMPLES_PER_SHARD
        numbers = range(first, first + SAMPLES_PER_SHARD)
        keys = [number - first if has_equal_keys else number for number in numbers]
        write_shard(
            path,
            (
                ImageFile(f"{key:06d}", extension, make_image(number, extension), number)
                for key, number in zip(keys, numbers, strict=True)
            ),
        )
    return paths


def make_image(seed: int, extension: str) -> bytes:
    """Make an image of smooth random colours, no two alike."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    content = BytesIO()
    image = Image.fromarray(colours).resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC)
    image.save(content, {"png": "PNG", "jpg": "JPEG"}[extension])
    return content.getvalue()


def _members(path: Path, sample: int) -> list[tarfile.TarInfo]:
    """Return a sample's two members, in the order in which they lie in the shard."""
    with tarfile.open(path) as tar:
        members = sorted(tar.getmembers(), key=lambda member: member.offset)
    return members[2 * sample : 2 * sample + 2]


def _image(path: Path, sample: int) -> tarfile.TarInfo:
    (image,) = (member for member in _members(path, sample) if not member.name.endswith(".cls"))
    return image


def offset_between_samples(path: Path) -> int:
    """Return where a shard's second half of samples begins."""
    return _members(path, _MIDDLE)[0].offset


def cut_between_samples(paths: list[Path]) -> None:
    """Cut the second shard after half of its samples, where a member ends."""
    os.truncate(paths[1], offset_between_samples(paths[1]))


def cut_inside_image(paths: list[Path]) -> None:
    """Cut the second shard in the middle of an image."""
    image = _image(paths[1], _MIDDLE)
    os.truncate(paths[1], image.offset_data + image.size // 2)


def cut_inside_first_sample(paths: list[Path]) -> None:
    """Cut the second shard inside its first sample's second member."""
    member = _members(paths[1], 0)[1]
    os.truncate(paths[1], member.offset_data + member.size // 2)


def cut_to_nothing(paths: list[Path]) -> None:
    """Leave the second shard with 0 bytes."""
    os.truncate(paths[1], 0)


def flip_in_header(paths: list[Path]) -> None:
    """Flip one bit in a header in the middle of the second shard."""
    _flip(paths[1], _members(paths[1], _MIDDLE)[0].offset + 2)


def flip_in_image(paths: list[Path]) -> None:
    """Flip one bit in the data of an image in the middle of the second shard."""
    image = _image(paths[1], _MIDDLE)
    _flip(paths[1], image.offset_data + image.size * 3 // 4)


def _flip(path: Path, offset: int) -> None:
    """Flip a bit as a failing disk does it: the file's size and time stay as they were."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def add_code(marker: Path) -> Callable[[list[Path]], None]:
    """Return what adds a sample whose pickle makes the folder `marker`, to a shard of its own."""
    # written by hand in pickle's oldest format, so that no code here unpickles or pickles
    code = f"cos\nmkdir\n(V{marker}\ntR.".encode()

    def write(paths: list[Path]) -> None:
        members = {"000000.png": make_image(0, "png"), "000000.cls": b"0", "000000.pkl": code}
        with tarfile.open(paths[0], "w") as tar:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, BytesIO(content))

    return write
