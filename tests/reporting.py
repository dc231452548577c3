"""Small runs for the tests of reports, and the report's script run on them."""

import io
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.index.open import open_manifest
from data.shards import ImageFile, write_shard
from tests.launching import run_forked

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "report.py"
SIZE, PATCH = 32, 8
ENCODER = ("name=vit_tiny_patch16_224", "patch_size=8", "embed_dim=32", "depth=1", "num_heads=2")
COMMON = (
    *(f"encoder.{setting}" for setting in ENCODER),
    *("run.log_every=2", "run.eval_every=3", "optim.steps=6", "optim.batch_size=8"),
    *(f"data.image_size={SIZE}", "data.workers=0", "optim.warmup_steps=2", "optim.ema=0.5"),
)
IMAGES = ("data.shards=train.tar", "data.val_shards=val.tar")
LABELLED = ("data.train=train.tar", "data.val=val.tar")


def write_images(path: Path, count: int) -> None:
    """A shard of random colour gradients in 2 classes."""
    generator = np.random.default_rng(count)
    ramp = np.linspace(0, 1, SIZE)[:, None, None] * np.ones((1, SIZE, 1))
    samples: list[ImageFile] = []
    for number in range(count):
        start, end = generator.uniform(0, 255, (2, 3))
        content = io.BytesIO()
        Image.fromarray((start + (end - start) * ramp).astype(np.uint8)).save(content, "PNG")
        samples.append(ImageFile(f"{number:04d}", "png", content.getvalue(), number % 2))
    write_shard(path, samples)


def make_runs(folder: Path, *starts: tuple[str, ...]) -> None:
    """Write shards, and run each of `(pretrain or finetune, key=value, ...)` on them."""
    write_images(folder / "train.tar", 24)
    write_images(folder / "val.tar", 6)
    open_manifest(folder, "data")  # once: below all runs would index the same shards
    for name, *more in starts:
        command = [sys.executable, str(ROOT / name / "run.py"), *COMMON, *more]
        done = run_forked(command, cwd=folder)
        assert done.returncode == 0, done.stderr


def report(patch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run the script in this process."""
    patch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    patch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(SCRIPT), run_name="__main__")
