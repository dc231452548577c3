"""Write a run's report: is it learning, is it fast, what did it cost, what has it learnt.

    python scripts/report.py RUN [--output PATH] [--figures DIR] [--images 8] [--watch [60]]
    python scripts/report.py RUN RUN ... --output PATH [--figures DIR] [--images 8]

RUN is the folder of a pretraining or fine-tuning run, finished or not; nothing in it is changed.
RUN/report.html is one file that works offline, on a phone, light and dark. For a pretraining run it
shows reconstructions of validation images, written to RUN/reconstructions.png too, and what the
encoder has learnt: nearest images, filters, position embeddings, attention; for one on images and
captions, pairs with what the model answers, and heat maps of words. Start the script from the
folder in which the run was started, so that its shards are found. What lies in
RUN/fewshot, RUN/probe and RUN/dense, in the same with -untrained behind it, in RUN/finetune*/
and RUN/scratch*/ (result.json) is shown too.

Several runs, all of pretraining or all of fine-tuning, are set side by side: what differs in their
configurations, last figures, curves over each other, and each run's pictures.

--watch writes the page of one run again every so many seconds while the run goes on, without
pictures, and once more with them when it ends; a browser that shows it loads it anew by itself.

--figures writes each figure of the page as PNG (200 dots an inch) and SVG, for papers: the same
bytes at each call.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()

from data.processes import importing
from data.settings import OneLineParser, positive, require, require_utf8, run_entry_point
from data.storage.locations import user_path


def main(arguments: list[str]) -> None:
    """Run `python scripts/report.py ARGUMENTS`."""
    require_utf8(arguments)
    options = _parse(arguments)
    with importing():  # here, so that no help and no mistake in an option waits for torch
        from scripts._report.watching import watch
        from scripts._report.writing import write_report

    if options.watch:
        watch(options.runs[0], options.output, options.images, options.watch)
        return
    write_report(options.runs, options.output, options.figures, options.images)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__)
    option = parser.add_argument
    option("runs", type=user_path, metavar="RUN", nargs="+", help="folder of a run")
    option("--output", type=user_path, help="file to write (of one run: RUN/report.html)")
    option("--figures", type=user_path, metavar="DIR", help="write PNG and SVG there too")
    option("--images", type=positive, default=8, help="images to show (8)")
    text = "write the page every so many seconds while the run goes on (60)"
    option("--watch", type=positive, nargs="?", const=60, metavar="SECONDS", help=text)
    options = parser.parse_args(arguments)
    require(
        not options.watch or (len(options.runs) == 1 and options.figures is None),
        f"--watch={options.watch} is for the page of one run; name one, and leave out --figures",
    )
    require(
        len(options.runs) == 1 or options.output is not None,
        f"--output is missing; name the file for the report of {len(options.runs)} runs, such as "
        "--output runs/report.html",
    )
    options.output = options.output or options.runs[0] / "report.html"
    return options


if __name__ == "__main__":
    run_entry_point(main)
