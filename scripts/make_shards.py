"""Make webdataset shards, their index and their manifest from a folder of images.

    python scripts/make_shards.py SOURCE OUT [--val-ratio 0.05]

SOURCE is a folder per class (SOURCE/<class>/**/*.jpg). If an image lies directly in SOURCE, or with
--unlabelled, all images below it are taken without labels. The bytes of the images are kept as they
are. OUT gets train-000000.tar and so on, val-000000.tar with --val-ratio, and classes.txt (line
number, from 0, = label). Started again after a stop, it keeps the shards that are complete.
"""

import argparse
import json
import logging
import sys
from itertools import islice
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from data.folder import (
    PlanOptions,
    Source,
    SourceImage,
    find_images,
    load_image,
    plan_hash,
    plan_shards,
)
from data.index.manifest import MANIFEST_NAME, Manifest
from data.index.opening import open_manifest
from data.settings import RunStopped, UserError, require
from data.shards import INDEX_SUFFIX, atomic_write, write_shard

_PLAN_NAME = "plan.json"
_CLASSES_NAME = "classes.txt"
_Plan = dict[str, list[SourceImage]]


def main() -> None:
    """List, plan, write what is missing, index, report."""
    arguments = _parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    source_folder: Path = arguments.source
    out: Path = arguments.out
    source = find_images(source_folder, is_unlabelled=arguments.unlabelled)
    options = PlanOptions(
        shard_bytes=int(arguments.shard_mb * 1e6),
        val_ratio=arguments.val_ratio,
        shuffle=arguments.shuffle,
        seed=arguments.seed,
    )
    plan = plan_shards(source.images, options)
    _prepare(out, plan_hash(source, options), plan, overwrite=arguments.overwrite)
    _write_missing(source_folder, out, plan)
    _write_classes(out, source)
    manifest = open_manifest([str(out / name) for name in plan], "OUT")
    _report(source_folder, out, source, manifest)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = argparse.BooleanOptionalAction
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of images")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the shards")
    parser.add_argument(
        "--shard-mb", type=float, default=256, help="largest size of a shard, in 1e6 bytes (256)"
    )
    parser.add_argument(
        "--val-ratio",
        type=float,
        default=0.0,
        help="part of the images for validation, by a hash of path and seed (0: none)",
    )
    parser.add_argument(
        "--shuffle", action=flag, default=True, help="in an order drawn from --seed"
    )
    parser.add_argument("--seed", type=int, default=0, help="for the order and the split (0)")
    parser.add_argument("--unlabelled", action="store_true", help="take no labels from folders")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the shards of another plan in OUT"
    )
    return parser.parse_args()


def _prepare(out: Path, plan: str, shards: _Plan, *, overwrite: bool) -> None:
    """Record the plan in OUT, or check that it is the plan recorded there.

    A shard gets its final name when it is complete, so the plan and the names tell what is done.
    """
    out.mkdir(parents=True, exist_ok=True)
    record = out / _PLAN_NAME
    if record.exists() and json.loads(record.read_text())["plan"] == plan:
        _remove(out, ".*.tmp")  # of a run that was killed
        return
    if any(out.iterdir()):
        what = "shards of another source or other options" if record.exists() else "other files"
        require(overwrite, f"OUT={out} holds {what}; give an empty folder or --overwrite")
        for split in ("train", "val"):
            _remove(out, f"{split}-*.tar")
            _remove(out, f"{split}-*.tar{INDEX_SUFFIX}")
        for name in (MANIFEST_NAME, _CLASSES_NAME, _PLAN_NAME, ".*.tmp"):
            _remove(out, name)
    with atomic_write(record) as file:
        file.write(json.dumps({"plan": plan, "num_shards": len(shards)}).encode())


def _remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


def _write_missing(source: Path, out: Path, plan: _Plan) -> None:
    """Write the shards that are not there yet."""
    missing = [name for name in plan if not (out / name).exists()]
    if kept := len(plan) - len(missing):
        print(f"keeping {kept} complete shards of an earlier start")
    todo = [image for name in missing for image in plan[name]]
    images = iter(tqdm(todo, "writing", unit="image", disable=None))
    for name in missing:
        shard = islice(images, len(plan[name]))
        write_shard(out / name, (load_image(source, image) for image in shard))
    assert next(images, None) is None  # and so the progress bar is closed


def _write_classes(out: Path, source: Source) -> None:
    if source.classes:
        with atomic_write(out / _CLASSES_NAME) as file:
            file.write("".join(f"{name}\n" for name in source.classes).encode())


def _report(source_folder: Path, out: Path, source: Source, manifest: Manifest) -> None:
    """Say what was written, what was left out, and what to do next."""
    for split in ("train", "val"):
        shards = [shard for shard in manifest.shards if shard.name.startswith(f"{split}-")]
        num_images = sum(shard.num_samples for shard in shards)
        print(f"{split}: {num_images} images in {len(shards)} shards")
    if source.classes:
        print(f"labels: {len(source.classes)} classes, listed in {out / _CLASSES_NAME}")
    else:
        print("labels: none (--unlabelled, or images directly in SOURCE)")
    print(f"left out: {source.num_empty} empty files, {source.num_other} files that are no images")
    print(f"written from {source_folder} to {out}; next:")
    print(f"accelerate launch pretrain/run.py 'data.shards={out}/train-*.tar' run.dir=runs/mine")


if __name__ == "__main__":
    try:
        main()
    except (UserError, RunStopped, OSError) as error:
        print(f"make_shards.py: {error}", file=sys.stderr)
        sys.exit(2)
