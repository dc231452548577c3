"""What make_shards.py says at its end: what was taken, what was left out, and the next command."""

import io
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.folder.images import extension_of
from data.folder.plan import SourceImage, SourceImages
from data.labels.classes import CLASSES_NAME
from data.shards import ARRAY_EXTENSION
from data.text import count, name_some, printable

_SHOWN_CLASSES = 10
_Plan = dict[str, list[SourceImage]]


class _Recipe(NamedTuple):
    """An entry point, and its configurations for any machine and for GPUs."""

    script: str
    small: str
    on_gpus: str


_IMAGES = _Recipe(
    "pretrain/run.py", "configs/pretrain/small.yaml", "configs/pretrain/vit_base.yaml"
)
_CAPTIONED = _Recipe(
    "pretrain/vilt/run.py", "configs/pretrain/vilt-small.yaml", "configs/pretrain/vilt.yaml"
)


def report(
    place: Path,
    out: Path,
    source: SourceImages,
    plan: _Plan,
    shrunk: Iterable[str],
    *,
    has_split: bool,
) -> None:
    """Print what was written, what was left out, and the next command.

    Args:
        place: SOURCE.
        out: OUT.
        source: What was found.
        plan: The images of each shard.
        shrunk: What is said of images that were shrunk, in lines.
        has_split: Whether images were to be drawn for validation.
    """
    images = {
        split: [image for name, shard in plan.items() if name.startswith(split) for image in shard]
        for split in ("train", "val")
    }
    for split, own in images.items():
        num_shards = sum(name.startswith(split) for name in plan)
        by_class = f" ({_by_class(source, own)})" if source.classes and own else ""
        print(f"{split}: {count(len(own), 'image')} in {count(num_shards, 'shard')}{by_class}")
    if has_split and not images["val"]:
        print("val is empty: the draw took no image; give more images, or a larger --val-ratio")
    if source.why_unlabelled is None:
        file = printable(str(out / CLASSES_NAME))
        print(f"labels: {count(len(source.classes), 'class')}, listed in {file}")
        _report_classes(source, images["val"], has_split=has_split)
    else:
        print(f"labels: none ({source.why_unlabelled})")
    if num_captions := sum(len(image.captions) for image in source.images):
        print(f"captions: {num_captions:,} of {count(len(source.images), 'image')}")
    for line in shrunk:
        print(line)
    print(f"left out: {'; '.join(source.left_out) or 'nothing'}")
    origin = f" ({source.origin})" if source.origin else ""
    from_to = f"{printable(str(place))}{origin} to {printable(str(out))}"
    print(f"written from {from_to}; next, a small encoder, on any machine:")
    recipe = _CAPTIONED if num_captions else _IMAGES
    print(_command(recipe, out, has_val=len(images["val"]) > 0, channels=_channels(source)))
    print(f"(on GPUs: accelerate launch -q in place of python, and {recipe.on_gpus})")


def _by_class(source: SourceImages, images: Sequence[SourceImage]) -> str:
    """Count the images of the first classes, and say how many the others have."""
    counts = Counter(image.label for image in images)
    numbers = range(len(source.classes))
    shown = [f"{printable(source.classes[n])} {counts[n]:,}" for n in numbers[:_SHOWN_CLASSES]]
    rest = [counts[number] for number in numbers[_SHOWN_CLASSES:]]
    if rest:
        spread = f"{min(rest):,} to {max(rest):,}" if min(rest) < max(rest) else f"{rest[0]:,}"
        shown.append(f"and {spread} of each of {len(rest):,} more")
    return ", ".join(shown)


def _report_classes(source: SourceImages, val: Sequence[SourceImage], *, has_split: bool) -> None:
    """Name the classes without an image, and those that validation lacks."""
    present, in_val = ({image.label for image in own} for own in (source.images, val))
    named = list(enumerate(source.classes))
    absent = [name for label, name in named if label not in present]
    if absent:
        print(f"without an image: {count(len(absent), 'class')} of the list ({name_some(absent)})")
    names = [name for label, name in named if label in present - in_val]
    if has_split and val and names:
        print(
            f"val lacks {count(len(names), 'class')} ({name_some(names)}): the draw took no image "
            "for validation, or the only one, which then stays in training"
        )


# ---------------------------------------------------------------- the next command


def _channels(source: SourceImages) -> int:
    """Return the channels of the images: those of the first array, or three."""
    first = source.images[0]
    if extension_of(first.path) != ARRAY_EXTENSION:
        return 3
    try:
        content = next(source.read([first]))
        shape = np.load(io.BytesIO(content), allow_pickle=False).shape
    except (ValueError, OSError, EOFError):  # the run will name it
        return 3
    return int(shape[2]) if len(shape) == 3 else 1


def _command(recipe: _Recipe, out: Path, *, has_val: bool, channels: int) -> str:
    """Return a command that pretrains on the shards, as a shell takes it."""
    is_plain = re.fullmatch(r"[\w./][\w./ -]*", str(out), re.ASCII)
    folder = str(out if is_plain else out.absolute())  # which nobody takes for a list or a URL
    root = Path(__file__).resolve().parents[2]
    is_here = Path.cwd() == root
    files = [name if is_here else str(root / name) for name in recipe[:2]]
    val_shards = f"{folder}/val-*.tar" if has_val else "null"
    keys = [f"data.shards={folder}/train-*.tar", f"data.val_shards={val_shards}"]
    keys += [f"data.channels={channels}"] if channels != 3 else []
    return " ".join(["python", *map(_quote, [*files, *keys, "run.dir=runs/mine"])])


def _quote(word: str) -> str:
    r"""Quote a word for a shell; what cannot be shown in the way of bash, $'caf\xe9'."""
    if printable(word) == word:
        return shlex.quote(word)
    return "$'" + printable(word.replace("\\", "\\\\").replace("'", "\\'")) + "'"
