"""From a source to a folder that was loaded back, compared and described; and to the hub."""

import argparse
import logging
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from data.disks import explain
from data.settings import RunStopped, UserError, require
from data.text import count
from scripts._export import graph_files, hugging_face, timm_folder
from scripts._export.card import write_card
from scripts._export.format import HUB, Format
from scripts._export.pictures import pick_images
from scripts._export.push import check_repository, push
from scripts._export.source import Source, has_text, load_source, read_config

TOLERANCE = 1e-4
FORMATS = {
    form.name: form
    for form in (timm_folder.FORMAT, hugging_face.FORMAT, graph_files.ONNX, graph_files.TORCH)
}


def export(options: argparse.Namespace) -> None:
    """Export RUN to OUT by the options of export.py, and print what was done.

    Raises:
        UserError: The source is none, or the format cannot hold it, or OUT cannot be written.
        RunStopped: What was loaded back differs, or the hub refuses.
    """
    out: Path = options.out
    _check(options)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pretrain").setLevel(logging.INFO)  # what it did not use

    form, source, inputs, whose = _open(options)
    place = f"{HUB}{options.push}" if options.push else out.resolve().name
    with _new_folder(out) as folder:
        form.write(source, folder)
        comparison = _compare(source, form, folder, inputs, whose)
        card = write_card(source, form, place, options.license, comparison)
        (folder / "README.md").write_text(card, encoding="utf-8")

    rows, columns = source.size
    kind = count(len(source.class_names), "class") if source.classifier else f"width {source.width}"
    print(f"exported {options.run} to {out} for {form.name}: images {rows}x{columns}, {kind}")
    print(comparison, *form.describe(source), *source.left_out, sep="\n")
    print(f"how to load it is in {out}/README.md")
    if options.push:
        print(f"pushed to {push(out, options.push, options.public)}")


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
    FORMATS[options.to].require_packages()


def _open(options: argparse.Namespace) -> tuple[Format, Source, Any, str]:
    """Return the format, what is exported in it, and what it is compared on, also in words."""
    if options.to == "transformers" and has_text(read_config(options.run)):
        return _open_pairs(options)
    require(
        options.model is None,
        f"--model={options.model} is for an image-text run with --to transformers; leave it out",
    )
    form, source = FORMATS[options.to], load_source(options.run, keep_head=not options.no_head)
    form.check(source)
    return form, source, *pick_images(source, options.images)


def _open_pairs(options: argparse.Namespace) -> tuple[Format, Source, Any, str]:
    from scripts._export.pairs import load_pair_source, pick_pairs  # here, for it needs tokenizers
    from scripts._export.vilt import FORMAT

    require(not options.no_head, "--no-head is for classifiers; give --model=ViltModel")
    source = load_pair_source(options.run, options.model)
    FORMAT.check(source)
    return FORMAT, source, *pick_pairs(source, options.images)


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


def _compare(source: Source, form: Format, folder: Path, inputs: Any, whose: str) -> str:
    """Return the largest difference between what was exported and what was loaded back, in words.

    Raises:
        RunStopped: It is over the tolerance.
    """
    ours, theirs = source.outputs(inputs), form.run(folder, inputs)
    differences = {name: float((value - ours[name]).abs().max()) for name, value in theirs.items()}
    named = ", ".join(f"{name} {value:.2g}" for name, value in differences.items())
    if not all(value <= TOLERANCE for value in differences.values()):  # so that nan is over it
        raise RunStopped(
            f"--to {form.name}: loaded back, it differs from {source.path}: {named}, over "
            f"{TOLERANCE:g}; nothing was written"
        )
    num = count(len(inputs), source.noun)
    return f"largest difference after loading it back, on {num} of {whose}: {named}"
