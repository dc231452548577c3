"""Write a recipe for your images and this machine, with the reasons.

    python scripts/recommend.py IMAGES [--hours 8] [--labels LABELLED] [--init WEIGHTS]

IMAGES is what data.shards takes: a folder of images, a list of paths, or shards. Some hundred of
them are looked at, and two to four encoders are trained here for some seconds each, which takes
about a minute in all. Then a YAML file for pretrain/run.py is written: each value with its reason,
and with where the reason comes from: measured in this project, cited from a paper, or extrapolated.

LABELLED are images with labels, if you have some: the run then shows whether it learns. With --init
the recipe continues from weights that exist, such as vit_small_patch14_dinov2.lvd142m.
"""

import argparse
import math
import sys
import time
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.processes import importing
from data.settings import OneLineParser, require, require_utf8, run_entry_point
from data.storage.locations import expand_home, user_path


def main(arguments: list[str]) -> None:
    """Run `python scripts/recommend.py ARGUMENTS`."""
    require_utf8(arguments)
    options = _parse(arguments)
    begin = time.process_time()
    with importing():  # here, so that no help and no mistake in an option waits for torch
        from scripts._recommend.recommend import recommend

    seconds = time.process_time() - begin
    recommend(options.images, options.hours, options.labels, options.init, options.out, seconds)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__)
    option = parser.add_argument
    option(
        "images", metavar="IMAGES", type=expand_home, help="a folder, a list of paths, or shards"
    )
    option("--hours", type=float, default=8.0, help="how long the run may take (8)")
    option("--labels", type=expand_home, metavar="LABELLED", help="images with labels, for a probe")
    option("--init", type=expand_home, metavar="WEIGHTS", help="what encoder.init takes")
    option("--out", type=user_path, default=Path("recipe.yaml"), help="the file (recipe.yaml)")
    option("--force", action="store_true", help="replace the file")
    options = parser.parse_args(arguments)
    out: Path = options.out
    require(
        0 < options.hours < math.inf,
        f"--hours={options.hours:g} is no time above 0; give hours, such as 8 or 0.5",
    )
    require(
        out.suffix in (".yaml", ".yml"),
        f"--out={out} is read by its ending; call it such as {out.name or 'recipe'}.yaml",
    )
    require(out.parent.is_dir(), f"--out={out}: there is no folder {out.parent}; make it first")
    require(
        options.force or not out.exists(),
        f"--out={out} is there already; give another name, or --force to replace it",
    )
    return options


if __name__ == "__main__":
    run_entry_point(main)
