"""Measure what can be said of a frozen encoder without labels, layer by layer.

    python scripts/measure.py MODEL IMAGES [--untrained] [--layers 1,6,12] [--json]

MODEL is a run, a folder that timm or transformers wrote, or the name of a pretrained timm model.
IMAGES is a folder of images, a text file of paths, or shards: as many images as features have
dimensions, or more. Of the pooled features of each layer, and of its patches one by one:

  rankme          how many dimensions they fill (RankMe, the effective rank)
  rankme_centred  the same without their mean, which may outweigh all else
  alpha           how fast the variance falls from one principal direction to the next (alpha-ReQ)
  dead            the share of the dimensions that hardly vary
  lidar           how many dimensions tell images apart, beside what differs between crops (LiDAR)

A figure means little alone: see it beside that of --untrained, and of runs of the same objective;
docs/how-to/worth.md says where it misleads. Images are cut as in validation, and for LiDAR in
--crops random ways, each a function of the image and its number.
"""

import argparse
import json
import sys
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.processes import importing
from data.settings import (
    OneLineParser,
    memory_errors,
    positive,
    require,
    require_utf8,
    run_entry_point,
)
from data.storage.locations import expand_home
from data.text import count


def main(arguments: list[str]) -> None:
    """Run `python scripts/measure.py ARGUMENTS`."""
    options = _parse(arguments)
    require_utf8([options.model, options.images])
    with importing():  # here, so that no help and no mistake in an option waits for torch
        from finetune.results import make_table
        from pretrain.evaluation.measures import MeasureConfig, measure_images

    config = MeasureConfig(
        untrained=options.untrained,
        layers=_numbers(options.layers),
        pooling=options.pooling,
        crops=options.crops,
        crop_area=tuple(options.crop_area),
        batch_size=options.batch_size,
        workers=options.workers,
        precision=options.precision,
    )
    with memory_errors("a smaller --batch-size"):
        found = measure_images(options.model, options.images, config)
    if not found.cells:  # another rank than the first
        return
    if options.json:
        about = {"model": options.model, "images": options.images}
        print(json.dumps(about | vars(config) | found._asdict(), indent=1))
        return
    name = f"{options.model} untrained" if options.untrained else options.model
    what = f"{count(found.num_images, 'image')} of {options.images}"
    print(f"{name}: {what}, features of {found.num_dimensions:,} dimensions\n")
    print(make_table(found.cells), end="")


def _numbers(layers: str) -> tuple[int, ...]:
    """Return the numbers of blocks; none for all."""
    if layers == "all":
        return ()
    numbers = tuple(int(part) if part.isdecimal() else 0 for part in layers.split(","))
    rule = "is neither all nor numbers of blocks from 1, such as 1,6,12"
    require(min(numbers) > 0, f"--layers={layers} {rule}")
    return numbers


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__)
    option = parser.add_argument
    option("model", type=expand_home, metavar="MODEL", help="a run, a folder of an encoder, a name")
    option("images", type=expand_home, metavar="IMAGES", help="a folder, a list of paths, shards")
    option("--untrained", action="store_true", help="with random weights, as MODEL began")
    option("--layers", default="all", help="blocks, such as 1,6,12 (all)")
    kinds = ("average", "class", "both")
    option("--pooling", choices=kinds, default="average", help="of an image's tokens (average)")
    option("--crops", type=int, default=10, help="of each image, for LiDAR; 0 leaves it out (10)")
    option(
        "--crop-area",
        nargs=2,
        type=float,
        default=(0.08, 1.0),
        metavar=("LOW", "HIGH"),
        help="range of a crop's area, as a fraction of the image's (0.08 1)",
    )
    option("--json", action="store_true", help="write JSON")
    option("--batch-size", type=positive, default=64, help="images at a time (64)")
    option("--workers", type=int, default=2, help="loader processes; 0: none (2)")
    option("--precision", choices=("fp32", "bf16"), default="fp32", help="of the pass (fp32)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_entry_point(main)
