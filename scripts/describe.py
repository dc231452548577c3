"""Say what a configuration costs, before anything is trained: no data are read, nothing is held.

    python scripts/describe.py CONFIG.yaml [CONFIG.yaml ...] [key.sub=value ...] [--batch 32]
    python scripts/describe.py --table configs/encoder/*.yaml [key.sub=value ...]

CONFIG.yaml is of pretraining, on images alone or with captions, or of fine-tuning, or a preset of
configs/encoder alone. Several are merged as a run merges them; with --table each is described on
its own, in a row.

A multiply-add is 2 FLOPs; matrix products, convolutions and attention are counted, each once: what
a training step computes again to save memory is left out. Training memory
is weights, gradients and the optimizer's moments (with adamw 16 bytes a parameter), and what a
forward pass of --batch images keeps for the backward pass, with fused attention. It is a lower
bound: what lives for a moment within a pass comes on top. No GPU is measured.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.processes import importing
from data.settings import OneLineParser, require, require_utf8, run_entry_point


def main(arguments: list[str]) -> None:
    """Run `python scripts/describe.py ARGUMENTS`."""
    require_utf8(arguments)
    options = _parse(arguments)
    with importing():  # here, so that no help and no mistake in an option waits for torch
        from scripts._describe.building import build
        from scripts._describe.measuring import measure
        from scripts._describe.tables import lines, table

    if options.table:
        print("\n".join(table(options.config, options.classes, options.batch)))
    else:
        print("\n".join(lines(measure(build(options.config, options.classes), options.batch))))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("config", nargs="+", metavar="CONFIG.yaml | key.sub=value", help="as a run takes them")
    option("--batch", type=int, default=32, help="images of a forward pass (32)")
    option("--classes", type=int, default=1000, help="of a fine-tuned head (1000)")
    option("--table", action="store_true", help="one row for each CONFIG.yaml")
    options = parser.parse_intermixed_args(arguments)
    for key in ("batch", "classes"):
        value = getattr(options, key)
        require(value > 0, f"--{key}={value} must be above 0")
    require("=" not in options.config[0], f"no CONFIG.yaml stands before {options.config[0]}")
    return options


if __name__ == "__main__":
    run_entry_point(main)
