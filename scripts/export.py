"""Hand an encoder on: a plain folder in timm's format, checked by loading it back.

    python scripts/export.py RUN OUT

`timm.create_model("local-dir:OUT", pretrained=True)` then loads it anywhere, without this project.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from data.settings import UserError, require, run_entry_point
from pretrain.encoder import Normalise, embed, encode, image_size, load_encoder, save_encoder

TOLERANCE = 1e-4
_NUM_IMAGES = 8


def main(arguments: list[str]) -> None:
    """Run `python scripts/export.py ARGUMENTS`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", help="a run's folder, or any folder in timm's format")
    parser.add_argument("out", type=Path, help="folder to write; it must be new or empty")
    options = parser.parse_args(arguments)
    out: Path = options.out
    require(
        not out.exists() or (out.is_dir() and not any(out.iterdir())),
        f"OUT={out} exists; name a new folder, or delete it first",
    )
    encoder = load_encoder(options.run, keep_head=True).eval()
    _write(encoder, out)
    difference = largest_difference(encoder, out)
    require(
        difference <= TOLERANCE,
        f"OUT={out}: features differ by {difference:.2g}, over {TOLERANCE:g}; do not use it",
    )
    rows, columns = image_size(encoder)
    print(f"exported {options.run} to {out}: images {rows}x{columns}, width {encoder.embed_dim}")
    print(f"largest difference of features after loading it back: {difference:.2g}")
    print(f'load it with timm.create_model("local-dir:{out}", pretrained=True)')


def _write(encoder: VisionTransformer, out: Path) -> None:
    """Write the folder, whole or not at all."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as temporary:
            folder = Path(temporary, "encoder")
            save_encoder(encoder, folder)
            shutil.rmtree(out, ignore_errors=True)
            folder.rename(out)
    except OSError as error:
        raise UserError(f"OUT={out} cannot be written: {error}") from error


def largest_difference(encoder: VisionTransformer, out: Path) -> float:
    """Compare our tokens and outputs with those of timm's own model and preprocessing.

    The images are drawn at random: smooth ones, so that they are like photographs in scale, and of
    the encoder's size, so that resizing changes nothing.
    """
    exported: Any = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_model_data_config(exported))
    images = _random_images(image_size(encoder))
    with torch.no_grad():
        ours = encode(encoder, embed(encoder, Normalise(encoder)(images)))  # (B, T, D)
        prepared = torch.stack([torch.as_tensor(transform(to_pil_image(i))) for i in images])
        theirs = exported.forward_features(prepared)
        outputs = encoder.forward_head(ours) - exported(prepared)  # patch averages, or logits
    return float(torch.maximum((ours - theirs).abs().max(), outputs.abs().max()))


def _random_images(size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((_NUM_IMAGES, 3, 4, 4), generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic")
    return smooth.clamp(0, 255).to(torch.uint8)  # (B, 3, H, W)


if __name__ == "__main__":
    run_entry_point(main)
