"""Make webdataset shards, their index and their manifest from images, however they are kept.

    python scripts/make_shards.py SOURCE OUT [--val-ratio 0.05]

SOURCE is one of:
  photos/               a folder of images, or a folder per class (SOURCE/<class>/**/*.jpg)
  photos.zip, .tar,     an archive of such a folder; photos.zip/train is a folder within one; it is
  .tar.gz, .xz, .zst    never unpacked to disk
  dataset/, x.parquet   Hugging Face parquet or Arrow files, and folders of them; the split
                        validation goes to val-*.tar (needs pip install -e '.[parquet]')
  list.csv, .tsv,       a table with a column of paths, and perhaps one of labels; paths are below
  .jsonl                the table's folder, or --root
  photos.txt            a list with the path of an image a line, below the list's folder

The bytes of the images are kept as they are. With --max-side N, an image with a longer side becomes
a JPEG of --quality whose longer side has N pixels, upright and without EXIF, but for what a JPEG
cannot hold: transparency, more than 8 bits, other channels than grey and RGB.

OUT gets train-000000.tar and so on, val-000000.tar with --val-ratio, and with labels classes.txt
(line number, from 0, = label). In a folder or an archive, an image that lies in no folder of a
class means that there are no labels; so does --unlabelled. Started again after a stop, it keeps the
shards that are complete.

With --captions each image takes the text that tells of it, for pretrain/vilt/run.py: x.txt beside
x.jpg, a caption a line, or the cell of a table or dataset (--caption-column), where an image may
have several rows. An image without a caption is refused, or left out by --skip-unreadable.

What is left out is counted and named. What cannot be read (a closed or missing file, an encrypted
or damaged member), a class that would lose all its images, and folders such as train and val in
place of classes are refused before anything is written; --skip-unreadable leaves out what cannot
be read. With --classes FILE, a class name a line, classes have the numbers of that list: give the
classes.txt of the training shards for a SOURCE of test images.

Status 0: done. 1: stopped, such as by a full disk. 2: a mistake in what was typed or in SOURCE.
130: Ctrl-C. After 1 and 130 the same command goes on.
"""

import argparse
import json
import logging
import os
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from tqdm import tqdm

from data.disks import explain
from data.folder.plan import (
    PlanOptions,
    SourceImage,
    SourceImages,
    load_samples,
    plan_hash,
    plan_shards,
)
from data.index.manifest import MANIFEST_NAME
from data.index.open import open_manifest
from data.labels.classes import CLASSES_NAME, read_classes
from data.settings import OneLineParser, RunStopped, require, run_entry_point
from data.shards import INDEX_SUFFIX, atomic_write, write_shard
from data.sources.find import find_source
from data.sources.options import SourceOptions
from data.storage.locations import user_path
from data.text import count, printable
from scripts._make_shards.report import report

if TYPE_CHECKING:
    from scripts._make_shards.shrinking import Shrinking

_PLAN_NAME = "plan.json"
_MAX_SHARD_MB = 1e6  # a terabyte
_MAX_SIDE = 65_500  # of a JPEG
_QUALITY = 90
_Plan = dict[str, list[SourceImage]]


def main(arguments: list[str]) -> None:
    """Run `python scripts/make_shards.py ARGUMENTS`."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    _check_places(options.source, options.out)
    try:
        _make(options)
    except BrokenPipeError:  # whoever reads what is printed has enough
        raise
    except OSError as error:
        where = printable(str(error.filename or options.out))
        message = f"{where}: {explain(error)}; then the same command goes on"
        raise RunStopped(message) from error
    except KeyboardInterrupt as error:
        message = "Ctrl-C; the same command goes on, and keeps the shards that are complete"
        raise RunStopped(message, status=130) from error


def _make(arguments: argparse.Namespace) -> None:
    """List, plan, write what is missing, index, report."""
    out: Path = arguments.out
    names: Path | None = arguments.classes
    classes = None if names is None else read_classes(names, f"--classes={names}")
    source = find_source(
        arguments.source,
        SourceOptions(
            is_unlabelled=arguments.unlabelled,
            classes=classes,
            skip_unreadable=arguments.skip_unreadable,
            image_column=arguments.image_column,
            label_column=arguments.label_column,
            captions=arguments.captions or arguments.caption_column is not None,
            caption_column=arguments.caption_column,
            root=arguments.root,
        ),
    )
    options = PlanOptions(
        shard_bytes=int(arguments.shard_mb * 1e6),
        val_ratio=arguments.val_ratio,
        shuffle=arguments.shuffle,
        seed=arguments.seed,
        max_side=arguments.max_side,
        quality=arguments.quality,
    )
    plan = plan_shards(source.images, options)
    _prepare(out, plan_hash(source, options), plan, overwrite=arguments.overwrite)
    shrinking = _start_shrinking(arguments)
    _write_missing(arguments.source, source, out, plan, shrinking)
    _write_classes(out, source)
    open_manifest([str(out.absolute() / name) for name in plan], "OUT")
    shrunk = [] if shrinking is None else shrinking.summary()
    report(arguments.source, out, source, plan, shrunk, has_split=arguments.val_ratio > 0)


def _start_shrinking(arguments: argparse.Namespace) -> "Shrinking | None":
    if arguments.max_side is None:
        return None
    # Here, because it imports torch: seconds that other shards need not pay.
    from scripts._make_shards.shrinking import Shrinking

    return Shrinking(arguments.max_side, arguments.quality)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__)
    option = parser.add_argument
    option("source", type=_place, metavar="SOURCE", help="folder, archive, dataset or table")
    option("out", type=_place, metavar="OUT", help="folder for the shards")
    option(
        "--shard-mb", type=float, default=256, help="largest size of a shard, in 1e6 bytes (256)"
    )
    option(
        "--val-ratio",
        type=float,
        default=0.0,
        help="part of the images for validation, by a hash of path and seed (0: none)",
    )
    option(
        "--shuffle",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="in an order drawn from --seed",
    )
    option("--seed", type=int, default=0, help="for the order and the split (0)")
    option("--unlabelled", action="store_true", help="take no labels")
    option("--classes", type=user_path, metavar="FILE", help="class names in order, a name a line")
    option(
        "--skip-unreadable",
        action="store_true",
        help="leave out what cannot be read, and name it; without, it is refused",
    )
    text = "column of a table or dataset with the {} (by its name: {})"
    option("--image-column", metavar="NAME", help=text.format("images", "image, path, file ..."))
    option("--label-column", metavar="NAME", help=text.format("labels", "label, class ..."))
    option(
        "--captions",
        action="store_true",
        help="take captions: x.txt beside x.jpg, or a column of a table or dataset",
    )
    option("--caption-column", metavar="NAME", help=text.format("captions", "caption, text ..."))
    option("--root", type=user_path, metavar="FOLDER", help="of a table's paths (the table's own)")
    option("--max-side", type=int, metavar="N", help="shrink images with a longer side (none)")
    option("--quality", type=int, metavar="Q", help="of what is shrunk, 1 to 100 (90)")
    option("--overwrite", action="store_true", help="replace the shards of another plan in OUT")
    options = parser.parse_args(arguments)
    shard_mb: float = options.shard_mb
    require(
        1e-6 <= shard_mb <= _MAX_SHARD_MB,
        f"--shard-mb={shard_mb} is no size above 0 and up to {_MAX_SHARD_MB:,}; try 256",
    )
    _check_shrinking(options)
    return options


def _check_shrinking(options: argparse.Namespace) -> None:
    """Check what images are shrunk to, and give the quality where that is not given."""
    side: int | None = options.max_side
    quality: int | None = options.quality
    if side is None:
        require(quality is None, f"--quality={quality} needs --max-side, such as --max-side 320")
        return
    require(
        1 <= side <= _MAX_SIDE,
        f"--max-side={side} is no number of pixels from 1 to {_MAX_SIDE:,}; try 320",
    )
    options.quality = _QUALITY if quality is None else quality
    require(1 <= options.quality <= 100, f"--quality={quality} is not in 1 to 100; try {_QUALITY}")


def _place(name: str) -> Path:
    """Read the name of a file or folder of this machine."""
    if name == "" or "://" in name:
        raise argparse.ArgumentTypeError(f"{name!r} is no file or folder of this machine")
    return user_path(name)


def _check_places(source: Path, out: Path) -> None:
    """Refuse, before the source is listed, an OUT that cannot be written or lies in SOURCE."""
    own = out.resolve()
    require(
        source.resolve() not in (own, *own.parents),
        f"OUT={out} lies in SOURCE={source}; give a folder beside it",
    )
    there = next(folder for folder in (out, *out.parents) if os.path.exists(folder))  # noqa: PTH110
    require(there.is_dir(), f"OUT={out}: {there} is a file; give another folder")
    is_writable = os.access(
        there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids
    )
    require(is_writable, f"OUT={out}: {there} cannot be written; allow it, or give another folder")


def _prepare(out: Path, plan: str, shards: _Plan, *, overwrite: bool) -> None:
    """Record the plan in OUT, or check that it is the plan recorded there.

    A shard gets its final name when it is complete, so the plan and the names tell what is done.
    """
    out.mkdir(parents=True, exist_ok=True)
    record = out / _PLAN_NAME
    if _recorded(record) == plan:
        _remove(out, ".*.tmp")  # of a run that was killed
        return
    if any(out.iterdir()):
        is_ours = _recorded(record) is not None
        what = "shards of another source or other options" if is_ours else "other files"
        require(overwrite, f"OUT={out} holds {what}; give an empty folder or --overwrite")
        for split in ("train", "val"):
            _remove(out, f"{split}-*.tar")
            _remove(out, f"{split}-*.tar{INDEX_SUFFIX}")
        for name in (MANIFEST_NAME, CLASSES_NAME, _PLAN_NAME, ".*.tmp"):
            _remove(out, name)
    with atomic_write(record) as file:
        file.write(json.dumps({"plan": plan, "num_shards": len(shards)}).encode())


def _recorded(record: Path) -> object:
    """Return the plan of a record; None if it is no record."""
    try:
        return json.loads(record.read_text())["plan"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


def _write_missing(
    place: Path, source: SourceImages, out: Path, plan: _Plan, shrinking: "Shrinking | None"
) -> None:
    """Write the shards that are not there yet."""
    missing = [name for name in plan if not (out / name).exists()]
    if kept := len(plan) - len(missing):
        print(f"keeping {count(kept, 'complete shard')} of an earlier start")
    todo = [image for name in missing for image in plan[name]]
    samples = load_samples(place, source, todo)
    if shrinking is not None:
        samples = shrinking.shrink(samples)
    samples = iter(tqdm(samples, "writing", total=len(todo), unit="image", disable=None))
    for name in missing:
        write_shard(out / name, islice(samples, len(plan[name])))
    assert next(samples, None) is None  # and so the progress bar is closed


def _write_classes(out: Path, source: SourceImages) -> None:
    if source.classes:
        with atomic_write(out / CLASSES_NAME) as file:
            file.write("".join(f"{name}\n" for name in source.classes).encode())


if __name__ == "__main__":
    run_entry_point(main)
