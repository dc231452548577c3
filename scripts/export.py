"""Hand an encoder or a classifier on, checked by loading it back.

    python scripts/export.py RUN OUT [--to timm|transformers|onnx|torch]

OUT holds the model and its card, README.md:
  timm           timm.create_model("local-dir:OUT", pretrained=True)
  transformers   ViTModel or ViTForImageClassification, and an image processor; of an image-text run
                 ViltModel or one of --model, with a processor and the run's tokenizer
  onnx           OUT/model.onnx: images in 0..1 go in, in batches of any size
  torch          OUT/model.pt2, of torch.export, likewise
transformers and onnx need the extra [export]. The largest difference on real images is printed;
over 1e-4 nothing is written.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.processes import importing
from data.settings import OneLineParser, require_utf8, run_entry_point
from data.storage.locations import expand_home, user_path

_VILT = ("ViltModel", "ViltForMaskedLM", "ViltForImageAndTextRetrieval")
_FORMATS = ("timm", "transformers", "onnx", "torch")


def main(arguments: list[str]) -> None:
    """Run `python scripts/export.py ARGUMENTS`."""
    require_utf8(arguments)
    options = _parse(arguments)
    with importing():  # here, so that no help and no mistake in an option waits for torch
        from scripts._export.export import export

    export(options)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__)
    option = parser.add_argument
    text = "a run's folder, or one that timm or transformers wrote"
    option("run", type=expand_home, metavar="RUN", help=text)
    option("out", type=user_path, metavar="OUT", help="folder to write; it must be new or empty")
    parser.add_argument("--to", choices=_FORMATS, default="timm", help="the format (timm)")
    text = "of an image-text run, in transformers: the first of the last two that it has a head for"
    parser.add_argument("--model", choices=_VILT, help=text)
    parser.add_argument("--no-head", action="store_true", help="leave a classifier's head out")
    parser.add_argument(
        "--images",
        nargs="+",
        type=user_path,
        default=[],
        help="image files or folders to compare on (the run's own)",
    )
    parser.add_argument("--license", help="the card's, such as apache-2.0 (other: not stated)")
    parser.add_argument("--push", metavar="USER/REPO", help="upload it to the Hugging Face hub")
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_entry_point(main)
