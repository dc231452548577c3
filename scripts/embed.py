"""Write a feature vector of each image, by a frozen encoder: for search, clustering, classifiers.

    python scripts/embed.py MODEL IMAGES --out features.npy [--layer 0] [--pooling average]
    python scripts/embed.py MODEL IMAGES --out features.csv

MODEL is a run, a folder that timm or transformers wrote, or the name of a pretrained timm model.
IMAGES is a folder of images, a text file of paths, or shards. FEATURES.npy is float32, a row an
image; beside it, FEATURES.csv names the image of each row. --out FEATURES.csv writes one table
instead, with the numbers behind each name. Images are cut as in validation; those that cannot be
read are counted and left out.
"""

import argparse
import csv
import io
import sys
import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.disks import explain
from data.processes import importing
from data.settings import (
    OneLineParser,
    UserError,
    memory_errors,
    positive,
    require,
    require_utf8,
    run_entry_point,
)
from data.shards import atomic_write
from data.storage.locations import expand_home, user_path
from data.text import count, escaped

_HEADER = ("row", "key")


def main(arguments: list[str]) -> None:
    """Run `python scripts/embed.py ARGUMENTS`."""
    options = _parse(arguments)
    require_utf8([options.model, options.images])
    _require_place(options.out)
    with importing():  # here, so that no help and no mistake in an option waits for torch
        import numpy as np

        from pretrain.evaluation.embedding import EmbedConfig, embed_images

    config = EmbedConfig(
        options.layer, options.pooling, options.batch_size, options.workers, options.precision
    )
    with memory_errors("a smaller --batch-size"):
        keys, values = embed_images(options.model, options.images, config)
    if not keys:  # another rank than the first
        return
    out: Path = options.out
    names = [(row, escaped(key)) for row, key in enumerate(keys)]
    made = f"features: {count(len(keys), 'image')} of {values.shape[1]} numbers in {out}"
    if out.suffix == ".csv":
        rows = (
            [*name, *(f"{v:.9g}" for v in row)] for name, row in zip(names, values, strict=True)
        )
        _write(out, _table([*_HEADER, *map(str, range(values.shape[1]))], rows))
        print(made)
        return
    content, table = io.BytesIO(), out.with_suffix(".csv")
    np.save(content, values)
    _write(out, content.getvalue())
    _write(table, _table(_HEADER, names))
    print(f"{made}\nwhich image each row is: {table}")


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()


def _require_place(out: Path) -> None:
    """Refuse, before an image is read, a place that takes no file or holds another's table."""
    table = out.with_suffix(".csv")
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    with _writing(table), suppress(FileNotFoundError), table.open("rb") as file:
        require(
            file.readline(99).startswith(",".join(_HEADER).encode()),
            f"--out={out} would replace {table}, which this command has not written; give another "
            "name, or move that file away",
        )


@contextmanager
def _writing(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--out={path} cannot be written: {explain(error)}") from error


def _write(path: Path, content: bytes) -> None:
    with _writing(path), atomic_write(path) as file:
        file.write(content)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__)
    option = parser.add_argument
    option("model", type=expand_home, metavar="MODEL", help="a run, a folder of an encoder, a name")
    option("images", type=expand_home, metavar="IMAGES", help="a folder, a list of paths, shards")
    option(
        "--out",
        type=user_path,
        required=True,
        metavar="FEATURES.npy",
        help="or FEATURES.csv",
    )
    option("--layer", type=int, default=0, help="block whose output is read; 0: the last (0)")
    kinds = ("average", "class", "both")
    option("--pooling", choices=kinds, default="average", help="what of its tokens (average)")
    option("--batch-size", type=positive, default=64, help="images at a time (64)")
    option("--workers", type=int, default=2, help="loader processes; 0: none (2)")
    option("--precision", choices=("fp32", "bf16"), default="fp32", help="of the pass (fp32)")
    options = parser.parse_args(arguments)
    require(
        options.out.suffix in (".npy", ".csv"),
        f"--out={options.out} ends neither in .npy, which NumPy reads, nor in .csv, a table",
    )
    return options


if __name__ == "__main__":
    run_entry_point(main)
