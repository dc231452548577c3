"""Name what is in images: class names and probabilities, as a table or JSON.

    python scripts/predict.py MODEL IMAGE_OR_FOLDER [...] [--top 5] [--json]

MODEL is a fine-tuning run, or a folder in timm's format with a head; the training data is not
needed. Folders are searched for images in sorted order; what lies there and is no image is counted
on standard error. A text file (.txt, .lst, .list) names images, a path a line. Images are cut as in
validation. JSON is one list of {"path", "classes": [{"name", "probability"}]}, or {"path",
"error"}. A classifier of many labels gives each class a probability of its own; --threshold shows
all classes from it on.

Status 0: all images were answered. 1: some could not be read; each is named on standard error. 2: a
mistake in the arguments, or a folder without an image that can be read.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from tqdm import tqdm

from data.folder.images import list_images
from data.folder.lists import read_list
from data.processes import importing
from data.settings import OneLineParser, positive, require, require_utf8, run_entry_point
from data.storage.locations import expand_home, is_list, user_path
from data.text import printable


def main(arguments: list[str]) -> None:
    """Run `python scripts/predict.py ARGUMENTS`."""
    options = _parse(arguments)
    require_utf8([options.model])
    with importing():  # here, so that no help and no mistake in an option waits for torch
        from finetune.load import load_classifier
        from scripts._predict.answers import predict
        from scripts._predict.writing import name_unreadable, write_json, write_table

    paths, notes = list_paths(options.images)
    model = load_classifier(options.model)
    require(
        options.threshold is None or model.is_multi_label,
        f"--threshold={options.threshold} is for classifiers of many labels, and MODEL="
        f"{options.model} gives one; use --top",
    )
    for note in notes:
        print(note, file=sys.stderr)
    is_shown = sys.stderr.isatty() and not sys.stdout.isatty()  # a bar, and no answers between
    answers = tqdm(
        predict(model, paths, options), total=len(paths), unit="image", disable=not is_shown
    )
    unreadable: list[Path] = []
    named = name_unreadable(answers, unreadable)
    try:
        if options.json:
            write_json(named)
        else:
            write_table(named, paths, model.class_names)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads it has enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if unreadable:
        sys.exit(1)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__)
    option = parser.add_argument
    option("model", type=expand_home, metavar="MODEL", help="a fine-tuning run, or a timm folder")
    text = "images, folders of images, lists of paths"
    option("images", nargs="+", type=user_path, metavar="IMAGE_OR_FOLDER", help=text)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--top", type=positive, default=5, help="classes to show (5)")
    shown.add_argument("--threshold", type=float, help="show all classes of this probability on")
    option("--json", action="store_true", help="write JSON")
    option("--batch-size", type=positive, default=64, help="images at a time (64)")
    options = parser.parse_args(arguments)
    threshold: float | None = options.threshold
    require(
        threshold is None or 0 <= threshold <= 1,
        f"--threshold={threshold} is not in [0, 1]; try 0.5",
    )
    return options


def list_paths(places: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """List the images: files as they are named, those of a folder or list by ending and in order.

    Files of these that would be images if they could be read are listed, too: they are named.

    Returns:
        The images; and what each folder holds beside them.

    Raises:
        UserError: A folder or list has none that can be read.
    """
    paths: list[Path] = []
    notes: list[str] = []
    for place in places:
        is_of_paths = is_list(str(place))
        if not (is_of_paths or place.is_dir()):
            paths.append(place)
            continue
        listing = read_list(place, "IMAGE_OR_FOLDER") if is_of_paths else list_images(place)
        listing.require_images("IMAGE_OR_FOLDER")
        paths += [listing.folder / path for path in listing.all_images()]
        if others := listing.passed_over():
            notes.append(f"{printable(str(place))}: passed over: {'; '.join(others)}")
    return paths, notes


if __name__ == "__main__":
    run_entry_point(main)
