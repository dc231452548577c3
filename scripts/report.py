"""Write a run's report: is it learning, is it fast, what did it cost, what has it learnt.

    python scripts/report.py RUN [--output PATH] [--figures DIR] [--images 8]
    python scripts/report.py RUN RUN ... --output PATH [--figures DIR] [--images 8]

RUN is the folder of a pretraining or fine-tuning run, finished or not; nothing in it is changed.
RUN/report.html is one file that works offline, on a phone, light and dark. For a pretraining run it
shows reconstructions of validation images, written to RUN/reconstructions.png too, and what the
encoder has learnt: filters, position embeddings, attention. Start the script from the folder in
which the run was started, so that its shards are found. What lies in RUN/fewshot/result.json,
RUN/fewshot-untrained/result.json, RUN/finetune*/result.json and RUN/scratch*/result.json is shown
too.

Several runs, all of pretraining or all of fine-tuning, are set side by side: what differs in their
configurations, last figures, curves over each other, and each run's pictures.

--figures writes each figure of the page as PNG (200 dots an inch) and SVG, for papers: the same
bytes at each call.
"""

import argparse
import sys
from collections.abc import Generator
from contextlib import contextmanager
from html import escape
from itertools import product
from pathlib import Path
from string import Template

if not __package__:  # started as a file: search the checkout, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data.processes import begin

    begin()  # before the imports below, which take seconds

from data.disks import explain
from data.settings import (
    OneLineParser,
    UserError,
    positive,
    require,
    require_utf8,
    run_entry_point,
)
from data.shards import atomic_write
from data.storage.locations import user_path
from pretrain.pictures.draw import require_matplotlib
from scripts._report import one_run, several_runs
from scripts._report.figures import SUFFIXES, Section
from scripts._report.history import describe, read_run
from scripts._report.page import definitions, render
from scripts._report.pictures import RECONSTRUCTIONS

_TEMPLATE = Path(__file__).with_name("_report") / "template.html"


def main(arguments: list[str]) -> None:
    """Read the runs, draw, write the page."""
    require_utf8(arguments)
    options = _parse(arguments)
    require_matplotlib()
    runs = [read_run(folder) for folder in options.runs]
    several_runs.check(runs)
    if options.figures:
        with _writing(f"--figures={options.figures}"):
            options.figures.mkdir(parents=True, exist_ok=True)
    if len(runs) == 1:
        title, summary = f"Run {runs[0].name}", definitions(describe(runs[0]))
        sections = list(one_run.sections(runs[0], options.images))
    else:
        title, summary = f"{len(runs)} runs side by side", several_runs.summary(runs)
        sections = list(several_runs.sections(runs, options.images))
    _write_page(options.output, title, summary, sections)
    figures = [figure for section in sections for figure in section.figures]
    for figure in figures:
        if figure.name == RECONSTRUCTIONS:  # of one run: of several it has the run's name too
            _write(runs[0].folder / f"{figure.name}.png", figure.export("png"))
    if options.figures:
        for figure, suffix in product(figures, SUFFIXES):
            _write(options.figures / f"{figure.name}.{suffix}", figure.export(suffix))
        print(f"figures: {len(figures)} in {options.figures}, as PNG and SVG")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__)
    option = parser.add_argument
    option("runs", type=user_path, metavar="RUN", nargs="+", help="folder of a run")
    option("--output", type=user_path, help="file to write (of one run: RUN/report.html)")
    option("--figures", type=user_path, metavar="DIR", help="write PNG and SVG there too")
    option("--images", type=positive, default=8, help="images to reconstruct (8)")
    options = parser.parse_args(arguments)
    require(
        len(options.runs) == 1 or options.output is not None,
        f"--output is missing; name the file for the report of {len(options.runs)} runs, such as "
        "--output runs/report.html",
    )
    options.output = options.output or options.runs[0] / "report.html"
    return options


def _write_page(path: Path, title: str, summary: str, sections: list[Section]) -> None:
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        summary=summary,
        sections="\n".join(filter(None, map(render, sections))),
    )
    _write(path, page.encode())
    print(f"report: {path} ({len(page.encode()) / 1000:,.0f} kB)")


def _write(path: Path, content: bytes) -> None:
    with _writing(str(path)), atomic_write(path) as file:
        file.write(content)


@contextmanager
def _writing(name: str) -> Generator[None]:
    """Name what cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{name} cannot be written: {explain(error)}") from error


if __name__ == "__main__":
    run_entry_point(main)
