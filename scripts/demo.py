"""The main job, end to end, on photographs that scikit-image ships: what `make demo` runs.

    python scripts/demo.py
    python scripts/demo.py --vilt    # another: images with captions, what `make demo-vilt` runs

Makes shards, pretrains without labels, measures the encoder against an untrained one, frozen and
fine-tuned, exports, and writes the report; each step is the command that a user would type, and is
printed. After Ctrl-C the same command goes on.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.settings import OneLineParser, run_entry_point
from scripts._demo.scenes import SCENES
from scripts._demo.steps import show
from scripts._demo.tiles import TILES


def main(arguments: list[str]) -> None:
    """Run the demo that the arguments name."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--vilt", action="store_true", help="the demo of images with captions")
    show(SCENES if parser.parse_args(arguments).vilt else TILES)


if __name__ == "__main__":
    run_entry_point(main)
