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
    """What an image shows: classes with their probabilities, best first; or why it has none."""

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
    paths, notes = find(options.images)
    model = load_classifier(options.model)
    require(
        options.threshold is None or model.is_multi_label,
        f"--threshold={options.threshold} is for classifiers of many labels, and MODEL="
        f"{options.model} gives one; use --top",
    )
    for note in notes:
        print(note, file=sys.stderr)
    is_shown = sys.stderr.isatty() and not sys.stdout.isatty()  # a bar, and no answers between
    answers = predict(model, paths, options)
    answers = tqdm(answers, total=len(paths), unit="image", disable=not is_shown)
    write = _write_json if options.json else _write_table
    try:
        num_bad = write(answers, paths, model.class_names)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads it has enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if num_bad > 0:
        sys.exit(1)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", type=expand_home, metavar="MODEL", help="a fine-tuning run, or a timm folder"
    )
    text = "images, folders of images, or both"
    parser.add_argument("images", nargs="+", type=user_path, metavar="IMAGE_OR_FOLDER", help=text)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--top", type=int, default=5, help="classes to show (5)")
    shown.add_argument("--threshold", type=float, help="show all classes of this probability on")
    parser.add_argument("--json", action="store_true", help="write JSON")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (64)")
    options = parser.parse_args(arguments)
    for name, value in (("--top", options.top), ("--batch-size", options.batch_size)):
        require(value > 0, f"{name}={value} must be above 0")
    threshold: float | None = options.threshold
    require(
        threshold is None or 0 <= threshold <= 1,
        f"--threshold={threshold} is not in [0, 1]; try 0.5",
    )
    return options


def find(places: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """List the images: files as they are named, those of a folder by ending and in order.

    What would be an image of a folder if it could be read is listed, too, so that it is named.

    Returns:
        The images; and what each folder holds beside them.

    Raises:
        UserError: A folder has none that can be read.
    """
    found: list[Path] = []
    notes: list[str] = []
    for place in places:
        if not place.is_dir():
            found.append(place)
            continue
        listing = list_images(place)
        listing.require_images("IMAGE_OR_FOLDER")
        found += [place / path for path in listing.all_images()]
        if others := listing.passed_over():
            notes.append(f"{printable(str(place))}: passed over: {'; '.join(others)}")
    return found, notes


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
    return [
        [(model.class_names[k], value) for k, value in zip(own[:n], values[:n], strict=True)]
        for own, values, n in zip(
            ranked.indices.tolist(), ranked.values.tolist(), counts, strict=True
        )
    ]


# ---------------------------------------------------------------- writing


def _write_json(answers: Iterable[Answer], _: Sequence[Path], __: Sequence[str]) -> int:
    """Write one document, an image a line; return how many images could not be read."""
    num_bad = 0
    for number, answer in enumerate(answers):
        print(",\n" if number else "[\n", json.dumps(answer.record()), sep="", end="")
        num_bad += _complain(answer)
    print("\n]")
    return num_bad


def _write_table(answers: Iterable[Answer], paths: Sequence[Path], names: Sequence[str]) -> int:
    """Write a row an image; return how many images could not be read."""
    path_width = max(len("image"), *(len(printable(str(path))) for path in paths))
    name_width = max(len("class"), min(_MAX_PADDING, max(map(len, names))))
    print(f"{'image':{path_width}}  {'class':{name_width}}  probability  next")
    num_bad = 0
    for answer in answers:
        num_bad += _complain(answer)
        if answer.error is None:
            cells = [f"{name:{name_width}}  {value:11.2%}" for name, value in answer.classes[:1]]
            rest = ", ".join(f"{name} {value:.2%}" for name, value in answer.classes[1:])
            path = printable(str(answer.path))
            print(f"{path:{path_width}}  {''.join(cells) or '-'}  {rest}".rstrip())
    return num_bad


def _complain(answer: Answer) -> bool:
    if answer.error is not None:
        print(f"{printable(str(answer.path))}: {answer.error}", file=sys.stderr)
    return answer.error is not None


if __name__ == "__main__":
    run_entry_point(main)
