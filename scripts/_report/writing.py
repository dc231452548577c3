"""From runs to the files of a report: the page, the reconstructions, the figures."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import product
from pathlib import Path

from data.disks import explain
from data.settings import UserError
from data.shards import atomic_write
from pretrain.pictures.draw import require_matplotlib
from pretrain.pictures.page import definitions, make_page
from scripts._report import one_run, several_runs
from scripts._report.figures import SUFFIXES, Section
from scripts._report.history import describe, read_run
from scripts._report.page import render
from scripts._report.pictures import RECONSTRUCTIONS


def write_report(
    folders: list[Path],
    output: Path,
    figures_folder: Path | None,
    num: int,
    seconds: int | None = None,
) -> None:
    """Read the runs, draw, write the page.

    Args:
        folders: Of the runs.
        output: The page.
        figures_folder: Where each figure is written too, or None.
        num: Images to reconstruct; 0 leaves out all that needs the model.
        seconds: After which a browser loads the page anew; None: never.

    Raises:
        UserError: A folder is no run, runs cannot be compared, or a file cannot be written.
    """
    require_matplotlib()
    runs = [read_run(folder) for folder in folders]
    several_runs.check(runs)
    if figures_folder:
        with _writing(f"--figures={figures_folder}"):
            figures_folder.mkdir(parents=True, exist_ok=True)
    if len(runs) == 1:
        title, summary = f"Run {runs[0].name}", definitions(describe(runs[0]))
        sections = list(one_run.sections(runs[0], num))
    else:
        title, summary = f"{len(runs)} runs side by side", several_runs.summary(runs)
        sections = list(several_runs.sections(runs, num))
    _write_page(output, title, summary, [*sections, _software()], seconds)
    figures = [figure for section in sections for figure in section.figures]
    for figure in figures:
        if figure.name == RECONSTRUCTIONS:  # of one run: of several it has the run's name too
            _write(runs[0].folder / f"{figure.name}.png", figure.export("png"))
    if figures_folder:
        for figure, suffix in product(figures, SUFFIXES):
            _write(figures_folder / f"{figure.name}.{suffix}", figure.export(suffix))
        print(f"figures: {len(figures)} in {figures_folder}, as PNG and SVG")


def _software() -> Section:
    versions = {name: version(name) for name in ("torch", "timm", "accelerate")}
    note = "Versions that wrote this report; a run does not record its own."
    rows = {"python": sys.version.split()[0], **versions}
    return Section("Software", definitions(rows), notes=(note,))


def _write_page(
    path: Path, title: str, summary: str, sections: list[Section], seconds: int | None
) -> None:
    scripts = dict.fromkeys(section.script for section in sections)  # each once
    page = make_page(title, summary, map(render, sections), seconds, "".join(scripts))
    _write(path, page)
    print(f"report: {path} ({len(page) / 1000:,.0f} kB)")


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
