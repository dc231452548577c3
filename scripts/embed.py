"""Write the features of each image, by a frozen encoder: for search, clustering, classifiers.

    python scripts/embed.py MODEL IMAGES --out features.npy [--layer 0] [--pooling average]
    python scripts/embed.py MODEL IMAGES --out features.npy --patches

MODEL is a run, a folder that timm or transformers wrote, or the name of a pretrained timm model.
IMAGES is a folder of images, a text file of paths, or shards. Images are cut as in validation;
those that cannot be read are counted and left out. FEATURES.npy is float32, a row an image; beside
it, FEATURES.csv names the image of each row. --out FEATURES.csv writes one table instead, with the
numbers behind each name, and --out FEATURES.parquet columns key and features. --patches writes the
features of each patch in float16, (images, patches, D), to .npy or .parquet. --mirror takes the
mean of an image's features and those of its mirror image, for searches that should find both.

How large the file will be is said before it is written. It is written in parts in the folder
FEATURES.npy.parts, which are joined at the end; where the command was interrupted, the same command
goes on behind the last whole part. Several processes (accelerate launch -q scripts/embed.py ...)
share the images, and write the same file.
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
from data.storage.locations import expand_home, user_path
from data.text import count
from pretrain.evaluation.feature_files import require_format, require_place


def main(arguments: list[str]) -> None:
    """Run `python scripts/embed.py ARGUMENTS`."""
    options = _parse(arguments)
    require_utf8([options.model, options.images])
    require_place(options.out)
    with importing():  # here, so that no help and no mistake in an option waits for torch
        from pretrain.evaluation.embedding import EmbedConfig, open_reading
        from pretrain.evaluation.feature_parts import write_embeddings

    config = EmbedConfig(
        options.layer,
        options.pooling,
        options.batch_size,
        options.workers,
        options.precision,
        options.mirror,
    )
    out: Path = options.out
    with memory_errors("a smaller --batch-size"):
        size = write_embeddings(open_reading(options.model, options.images, config), out)
    if size is None:  # another rank than the first
        return
    shape = " x ".join(map(str, size.shape))
    print(f"features: {count(size.num_rows, 'image')} of {shape} numbers in {out}")
    if out.suffix == ".npy":
        print(f"which image each row is: {out.with_suffix('.csv')}")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__)
    option = parser.add_argument
    option("model", type=expand_home, metavar="MODEL", help="a run, a folder of an encoder, a name")
    option("images", type=expand_home, metavar="IMAGES", help="a folder, a list of paths, shards")
    text = "or FEATURES.csv, or FEATURES.parquet"
    option("--out", type=user_path, required=True, metavar="FEATURES.npy", help=text)
    option("--layer", type=int, default=0, help="block whose output is read; 0: the last (0)")
    read = parser.add_mutually_exclusive_group()
    kinds = ("average", "class", "both")
    text = "what of its tokens (average)"
    read.add_argument("--pooling", choices=kinds, default="average", help=text)
    text = "the tokens of all patches, not pooled"
    read.add_argument("--patches", dest="pooling", action="store_const", const="patches", help=text)
    option("--mirror", action="store_true", help="the mean with the mirror image's features")
    option("--batch-size", type=positive, default=64, help="images at a time (64)")
    option("--workers", type=int, default=2, help="loader processes; 0: none (2)")
    option("--precision", choices=("fp32", "bf16"), default="fp32", help="of the pass (fp32)")
    options = parser.parse_args(arguments)
    is_of_patches = options.pooling == "patches"
    require_format(options.out, is_of_patches)
    require(
        not (options.mirror and is_of_patches),
        "--mirror takes a mean, and a patch lies elsewhere in the mirror image; leave it out with "
        "--patches",
    )
    return options


if __name__ == "__main__":
    run_entry_point(main)
