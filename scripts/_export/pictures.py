"""The images that an export is compared on."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.demo.tiles import photograph_files
from data.folder.images import list_images
from data.images.decoding import UnreadableImage
from data.images.limits import MODES
from data.images.transforms import evaluation_crop
from data.index.open import open_manifest
from data.samples import Samples
from data.settings import RunStopped, UserError, require
from data.storage.locations import is_remote
from pretrain.pictures.reconstruct import pick
from scripts._export.source import Source

NUM_IMAGES = 8
_SPLITS = ("val_shards", "val", "shards", "train")


def pick_images(source: Source, given: list[Path]) -> tuple[Tensor, str]:
    """Choose images of the encoder's size: those given, else the run's own, else photographs.

    Shards on a server are left alone.

    Returns:
        uint8 (B, C, H, W), and what they are.

    Raises:
        UserError: What was given cannot be read.
    """
    if given:
        return _read_files(list_files(given), source)
    own = _read_own(source)
    if own is not None:
        return own
    if source.channels not in MODES:
        return draw((source.channels, *source.size)), "smooth random images"
    try:
        files = photograph_files()
    except UserError:
        return draw((source.channels, *source.size)), "smooth random images"
    return _read_files(files, source)[0], "scikit-image's photographs"


def list_files(given: list[Path]) -> list[Path]:
    """Return the files that `--images` names, and some of each folder, evenly spread."""
    files: list[Path] = []
    for path in given:
        require(path.exists(), f"--images={path} does not exist; name image files or a folder")
        files += _some_below(path) if path.is_dir() else [path]
    return files


def _some_below(folder: Path) -> list[Path]:
    listing = list_images(folder)
    listing.require_readable("--images")
    listing.require_images("--images")
    inside = [folder / path for path in listing.images]
    return inside[:: max(1, len(inside) // NUM_IMAGES)]


def _read_files(files: list[Path], source: Source) -> tuple[Tensor, str]:
    crops: list[Tensor] = []
    for file in files:
        try:
            crops.append(evaluation_crop(file.read_bytes(), source.size, source.channels))
        except (UnreadableImage, OSError) as error:
            raise UserError(f"--images: {file}: {error}; name other images") from error
    return torch.stack(crops), f"{files[0]}" + f" and {len(files) - 1} more" * (len(files) > 1)


def _read_own(source: Source) -> tuple[Tensor, str] | None:
    """Read images of the run's data, if it lies on this machine and is still there."""
    data: dict[str, Any] = source.config.get("data", {})
    for split in _SPLITS:
        spec = data.get(split)
        if not spec or not is_local(spec):
            continue
        try:
            manifest = open_manifest(spec, f"data.{split}")
            samples = Samples(manifest, source.size, seed=0, channels=source.channels)
            images, _ = pick(samples, NUM_IMAGES)
        except (UserError, RunStopped, OSError):
            continue
        if len(images) > 0:
            return images, f"data.{split}"
    return None


def is_local(spec: object) -> bool:
    """Tell whether shards are files of this machine: no URL, no pipe, no stream."""
    specs = [str(part) for part in spec] if isinstance(spec, list) else [str(spec)]
    return not any(is_remote(s) or s.startswith("pipe:") or s == "-" for s in specs)


def draw(shape: tuple[int, int, int]) -> Tensor:
    """Draw smooth images of (C, H, W), which are like photographs in scale: uint8 (B, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((NUM_IMAGES, shape[0], 4, 4), generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bicubic")
    return smooth.clamp(0, 255).to(torch.uint8)
