"""Name what is in images: class names and probabilities, as a table or JSON.

    python scripts/predict.py MODEL IMAGE_OR_FOLDER [...] [--top 5] [--json]

MODEL is a fine-tuning run, or a folder in timm's format with a head; the training data is not
needed. Folders are searched for images in sorted order; what lies there and is no image is counted
on standard error. Images are cut as in validation. JSON is one list of {"path", "classes":
[{"name", "probability"}]}, or {"path", "error"}. A classifier of many labels gives each class a
probability of its own; --threshold shows all classes from it on.

Status 0: all images were answered. 1: some could not be read; each is named on standard error. 2: a
mistake in the arguments, or a folder without an image that can be read.
"""

import argparse
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()  # before the imports below, which take seconds

import torch
from torch import Tensor
from tqdm import tqdm

from data.devices import num_cores
from data.disks import explain
from data.folder.images import list_images
from data.images.transforms import UnreadableImage, evaluation_crop
from data.settings import (
    OneLineParser,
    RunStopped,
    memory_errors,
    positive,
    require,
    require_utf8,
    run_entry_point,
)
from data.storage.locations import expand_home, user_path
from data.text import printable
from finetune.head import Classifier
from finetune.load import load_classifier
from pretrain.encoder.facts import image_size, num_channels

_MAX_PADDING = 30  # characters; one long class name does not push all others aside


class Answer(NamedTuple):
    """The classes of an image with their probabilities, best first; or why it has none."""

    path: Path
    classes: list[tuple[str, float]]
    error: str | None = None

    def record(self) -> dict[str, Any]:
        r"""Return it for JSON; a path's bytes that are not UTF-8 as Python has them, as \udcXX."""
        path = str(self.path)
        if self.error is not None:
            return {"path": path, "error": self.error}
        classes = [{"name": name, "probability": value} for name, value in self.classes]
        return {"path": path, "classes": classes}


def main(arguments: list[str]) -> None:
    """Run `python scripts/predict.py ARGUMENTS`."""
    options = _parse(arguments)
    require_utf8([options.model])
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
    named = _name_unreadable(answers, unreadable)
    try:
        if options.json:
            _write_json(named)
        else:
            _write_table(named, paths, model.class_names)
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
    text = "images, folders of images, or both"
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
    """List the images: files as they are named, those of a folder by ending and in order.

    Files of a folder that would be images if they could be read are listed, too: they are named.

    Returns:
        The images; and what each folder holds beside them.

    Raises:
        UserError: A folder has none that can be read.
    """
    paths: list[Path] = []
    notes: list[str] = []
    for place in places:
        if not place.is_dir():
            paths.append(place)
            continue
        listing = list_images(place)
        listing.require_images("IMAGE_OR_FOLDER")
        paths += [place / path for path in listing.all_images()]
        if others := listing.passed_over():
            notes.append(f"{printable(str(place))}: passed over: {'; '.join(others)}")
    return paths, notes


# ---------------------------------------------------------------- answering


def predict(
    model: Classifier, paths: Sequence[Path], options: argparse.Namespace
) -> Iterator[Answer]:
    """Answer image by image, in order, with no more than a batch of them in memory."""
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    with ThreadPoolExecutor(num_cores()) as executor:
        for first in range(0, len(paths), options.batch_size):
            own = paths[first : first + options.batch_size]
            crops = _read(own, model.encoder, executor)
            good = [crop for crop in crops if isinstance(crop, Tensor)]
            shown = iter(_classify(model, torch.stack(good), options) if good else [])
            for path, crop in zip(own, crops, strict=True):
                is_good = isinstance(crop, Tensor)
                yield Answer(path, next(shown)) if is_good else Answer(path, [], crop)


def _read(paths: Sequence[Path], encoder: Any, executor: Executor) -> list[Tensor | str]:
    """Read images as uint8 (C, H, W); of those that cannot be read, what is wrong."""
    size, channels = image_size(encoder), num_channels(encoder)

    def read(path: Path) -> Tensor | str:
        try:
            return evaluation_crop(_content(path), size, channels)
        except UnreadableImage as error:
            return str(error)
        except OSError as error:
            return explain(error)

    return list(executor.map(read, paths))


def _content(path: Path) -> bytes:
    """Read a file, but no pipe or device, which may never end."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a folder says what is wrong with it
        raise UnreadableImage("is a pipe, a socket or a device, and no file")
    return path.read_bytes()


@memory_errors("a smaller --batch-size")
@torch.inference_mode()
def _classify(
    model: Classifier, images: Tensor, options: argparse.Namespace
) -> list[list[tuple[str, float]]]:
    """Choose the classes to show of each image."""
    device = next(model.parameters()).device
    logits = model.logits(images.to(device)).cpu().double()  # (B, K)
    if not logits.isfinite().all():
        raise RunStopped(
            f"MODEL={options.model} answers with what is no finite number: its training diverged; "
            "give another model"
        )
    probability = logits.sigmoid() if model.is_multi_label else logits.softmax(1)
    ranked = probability.sort(dim=1, descending=True, stable=True)
    counts = [options.top] * len(images)
    if options.threshold is not None:
        counts = (probability >= options.threshold).sum(1).tolist()
    rows = zip(ranked.indices.tolist(), ranked.values.tolist(), counts, strict=True)
    return [
        [(model.class_names[k], value) for k, value in zip(classes[:n], values[:n], strict=True)]
        for classes, values, n in rows
    ]


# ---------------------------------------------------------------- writing


def _name_unreadable(answers: Iterable[Answer], unreadable: list[Path]) -> Iterator[Answer]:
    """Pass answers on; name images that could not be read on standard error, and list them."""
    for answer in answers:
        if answer.error is not None:
            print(f"{printable(str(answer.path))}: {answer.error}", file=sys.stderr)
            unreadable.append(answer.path)
        yield answer


def _write_json(answers: Iterable[Answer]) -> None:
    """Write one document, an image a line."""
    for number, answer in enumerate(answers):
        print(",\n" if number else "[\n", json.dumps(answer.record()), sep="", end="")
    print("\n]")


def _write_table(answers: Iterable[Answer], paths: Sequence[Path], names: Sequence[str]) -> None:
    """Write a row an image."""
    path_width = max(len("image"), *(len(printable(str(path))) for path in paths))
    name_width = max(len("class"), min(_MAX_PADDING, max(map(len, names))))
    print(f"{'image':{path_width}}  {'class':{name_width}}  probability  next")
    for answer in answers:
        if answer.error is None:
            cells = [f"{name:{name_width}}  {value:11.2%}" for name, value in answer.classes[:1]]
            rest = ", ".join(f"{name} {value:.2%}" for name, value in answer.classes[1:])
            path = printable(str(answer.path))
            print(f"{path:{path_width}}  {''.join(cells) or '-'}  {rest}".rstrip())


if __name__ == "__main__":
    run_entry_point(main)
