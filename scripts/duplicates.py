"""Find the near-duplicate images of an archive, by what a frozen encoder makes of them.

    python scripts/duplicates.py MODEL IMAGES --out FOLDER [--threshold 0.97 | --top 100]
    python scripts/duplicates.py FOLDER/features.npy IMAGES --out FOLDER --threshold 0.99

MODEL is a run, a folder that timm or transformers wrote, or the name of a pretrained timm model;
its features (the last layer's patches, averaged over the image and its mirror image) are kept in
FOLDER/features.npy. In its place, features that embed.py or this command wrote of the same images.
IMAGES is a folder of images, a text file of paths, or shards.

Each image is compared with each other one, exactly: by the cosine of their features less the mean
of all. How many pairs that are, and the memory it takes at most, is said before it begins.
--threshold finds all pairs from a similarity on, --top the most alike ones, however alike they are.
Which threshold is right depends on the encoder and on the images: look at the page.

FOLDER gets pairs.csv (similarity, both keys, group), groups.csv (images that pairs connect), and
pairs.html: pairs side by side, one file that needs no network. --keep LIST.txt writes the paths of
the images without the duplicates, of each group the largest file, as data.train and data.shards
take them; for a folder's classes, name a LIST.txt in that folder. No image is deleted or changed.
"""

import argparse
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
from data.storage.locations import expand_home, is_list, user_path
from pretrain.evaluation.config import MOST_PAIRS

_THRESHOLD = 0.97  # docs/results/encoders.md, near duplicates


def main(arguments: list[str]) -> None:
    """Run `python scripts/duplicates.py ARGUMENTS`."""
    options = _parse(arguments)
    require_utf8([options.model, options.images])
    with importing():  # here, so that no help and no mistake in an option waits for torch
        from scripts._duplicates.finding import find_duplicates

    with memory_errors("a smaller --batch-size"):
        find_duplicates(options)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__)
    option = parser.add_argument
    option("model", type=expand_home, metavar="MODEL", help="what embed.py takes, or FEATURES.npy")
    option("images", type=expand_home, metavar="IMAGES", help="a folder, a list of paths, shards")
    option("--out", type=user_path, required=True, metavar="FOLDER", help="for tables and page")
    found = parser.add_mutually_exclusive_group()
    text = f"the least similarity of a pair, -1 to 1 ({_THRESHOLD})"
    found.add_argument("--threshold", type=float, help=text)
    found.add_argument("--top", type=positive, metavar="K", help="the K most alike pairs instead")
    text = "write the paths of the images without the duplicates"
    option("--keep", type=user_path, metavar="LIST.txt", help=text)
    option("--show", type=positive, default=100, help="pairs on the page, at most (100)")
    option("--batch-size", type=positive, default=64, help="images at a time (64)")
    option("--workers", type=int, default=2, help="loader processes; 0: none (2)")
    options = parser.parse_args(arguments)
    if options.threshold is None and options.top is None:
        options.threshold = _THRESHOLD
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    threshold, top, keep = options.threshold, options.top, options.keep
    require(
        threshold is None or -1 <= threshold <= 1,
        f"--threshold={threshold} is not in [-1, 1], as a cosine is; try {_THRESHOLD}",
    )
    require(
        top is None or top <= MOST_PAIRS,
        f"--top={top} is above {MOST_PAIRS:,}, the most pairs that are kept; lower it",
    )
    require(
        keep is None or top is None,
        f"--keep={keep} with --top: the most alike pairs may be no duplicates, and images would be "
        f"left out; give --threshold, such as {_THRESHOLD}",
    )
    require(
        keep is None or is_list(str(keep)),
        f"--keep={keep} does not end in .txt, by which a list of paths is known; name it so",
    )


if __name__ == "__main__":
    run_entry_point(main)
