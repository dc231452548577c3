"""Hand an encoder or a classifier on, checked by loading it back.

    python scripts/export.py RUN OUT [--to timm|transformers|onnx|torch]

OUT holds the model and its card, README.md:
  timm           timm.create_model("local-dir:OUT", pretrained=True)
  transformers   ViTModel or ViTForImageClassification, and an image processor
  onnx           OUT/model.onnx: images in 0..1 go in, in batches of any size
  torch          OUT/model.pt2, of torch.export, likewise
transformers and onnx need the extra [export]. The largest difference on real images is printed;
over 1e-4 nothing is written.
"""

import argparse
import logging
import shutil
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()  # before the imports below, which take seconds

from safetensors import SafetensorError
from torch import Tensor

from data.disks import explain
from data.settings import (
    OneLineParser,
    RunStopped,
    UserError,
    require,
    require_utf8,
    run_entry_point,
)
from data.storage.locations import expand_home, user_path
from data.text import count
from scripts._export import graph_files, hugging_face, timm_folder
from scripts._export.card import NO_LICENCE, write_card
from scripts._export.format import HUB, Format
from scripts._export.pictures import pick_images
from scripts._export.push import check_repository, push
from scripts._export.source import Source, load_source

TOLERANCE = 1e-4
_ALL = (timm_folder.FORMAT, hugging_face.FORMAT, graph_files.ONNX, graph_files.TORCH)
_FORMATS = {form.name: form for form in _ALL}


def main(arguments: list[str]) -> None:
    """Run `python scripts/export.py ARGUMENTS`."""
    require_utf8(arguments)
    options = _parse(arguments)
    form, out = _FORMATS[options.to], options.out
    _check(options)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pretrain").setLevel(logging.INFO)  # what it did not use

    source = load_source(options.run, keep_head=not options.no_head)
    form.check(source)
    images, whose = pick_images(source, options.images)
    place = f"{HUB}{options.push}" if options.push else out.resolve().name
    with _new_folder(out) as folder:
        form.write(source, folder)
        comparison = _compare(source, form, folder, images, whose)
        card = write_card(source, form, place, options.license, comparison)
        (folder / "README.md").write_text(card, encoding="utf-8")

    rows, columns = source.size
    kind = count(len(source.class_names), "class") if source.classifier else f"width {source.width}"
    print(f"exported {options.run} to {out} for {form.name}: images {rows}x{columns}, {kind}")
    print(comparison, *form.describe(source), sep="\n")
    print(f"how to load it is in {out}/README.md")
    if options.push:
        print(f"pushed to {push(out, options.push, options.public)}")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__)
    parser.add_argument(
        "run", type=expand_home, help="a run's folder, or one that timm or transformers wrote"
    )
    parser.add_argument("out", type=user_path, help="folder to write; it must be new or empty")
    parser.add_argument("--to", choices=_FORMATS, default="timm", help="the format (timm)")
    parser.add_argument("--no-head", action="store_true", help="leave a classifier's head out")
    parser.add_argument(
        "--images",
        nargs="+",
        type=user_path,
        default=[],
        help="image files or folders to compare on (the run's own)",
    )
    parser.add_argument(
        "--license", default=NO_LICENCE, help="the card's, such as apache-2.0 (other: not stated)"
    )
    parser.add_argument("--push", metavar="USER/REPO", help="upload it to the Hugging Face hub")
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    return parser.parse_args(arguments)


def _check(options: argparse.Namespace) -> None:
    """Refuse what can be refused before any work."""
    out: Path = options.out
    require(
        not out.exists() or (out.is_dir() and not any(out.iterdir())),
        f"OUT={out} exists; name a new folder, or delete it first",
    )
    require(not options.public or options.push, "--public goes with --push=USER/REPO; add it")
    if options.push:
        check_repository(options.push)
    _FORMATS[options.to].require_packages()


@contextmanager
def _new_folder(out: Path) -> Generator[Path]:
    """Give a temporary folder's name; what is written there becomes OUT, whole or not at all."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as temporary:
            folder = Path(temporary, "export")
            yield folder
            shutil.rmtree(out, ignore_errors=True)  # empty, or it was refused
            folder.rename(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"OUT={out} cannot be written: {explain(error)}") from error


def _compare(source: Source, form: Format, folder: Path, images: Tensor, whose: str) -> str:
    """Return the largest difference between what was exported and what was loaded back, in words.

    Raises:
        RunStopped: It is over the tolerance.
    """
    ours, theirs = source.outputs(images), form.run(folder, images)
    differences = {name: float((value - ours[name]).abs().max()) for name, value in theirs.items()}
    named = ", ".join(f"{name} {value:.2g}" for name, value in differences.items())
    if not all(value <= TOLERANCE for value in differences.values()):  # so that nan is over it
        raise RunStopped(
            f"--to {form.name}: loaded back, it differs from {source.path}: {named}, over "
            f"{TOLERANCE:g}; nothing was written"
        )
    num = count(len(images), "image")
    return f"largest difference after loading it back, on {num} of {whose}: {named}"


if __name__ == "__main__":
    run_entry_point(main)
