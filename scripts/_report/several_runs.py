"""The page of several runs side by side: what differs, curves over each other, last figures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.settings import require
from data.text import duration
from pretrain.pictures.page import panels, table
from scripts._report import findings
from scripts._report.drawing import chart
from scripts._report.figures import Section, file_name
from scripts._report.history import Run, describe
from scripts._report.one_run import figure_rows
from scripts._report.overlays import MOST, overlays
from scripts._report.pictures import pictures
from scripts._report.results import (
    best_pretrained,
    read_fine_tuning,
    score,
    shot,
    shots_of,
    view_name,
)

_NO_KEY = "-"
_OWN = ("run.dir",)  # keys that differ between any two runs
_SUMMED_UP = ("Kind", "Steps", "Encoder", "Images", "Data", "Last record")


def check(runs: list[Run]) -> None:
    """Raise `UserError` for runs that cannot be set side by side."""
    require(len(runs) <= MOST, f"{len(runs)} runs are more than the {MOST} that lines tell apart")
    first = runs[0]
    for run in runs[1:]:
        require(
            run.kind is first.kind,
            f"RUN={first.folder} is {first.kind.value} run and RUN={run.folder} is "
            f"{run.kind.value} run, which have no measures in common; write a report of each kind",
        )
    paths = [run.folder.resolve() for run in runs]
    for number, path in enumerate(paths):
        require(path not in paths[:number], f"RUN={path} is named twice; name each run once")


def names_of(runs: list[Run]) -> list[str]:
    """Name each run by as much of its path's end as tells it apart."""
    paths = [run.folder.resolve().parts for run in runs]
    lengths = range(1, max(map(len, paths)) + 1)
    choices = ([str(Path(*path[-length:])) for path in paths] for length in lengths)
    return next(names for names in choices if len(set(names)) == len(names))


def summary(runs: list[Run]) -> str:
    """Return what the runs were, as a table."""
    described = [describe(run) for run in runs]
    rows = [[key, *(texts[key] for texts in described)] for key in _SUMMED_UP]
    return table(["", *names_of(runs)], rows, is_text=True)


def sections(runs: list[Run], num_images: int) -> Iterator[Section]:
    """Yield what the page shows, in the order to read it."""
    named = dict(zip(names_of(runs), runs, strict=True))
    texts = {name: findings.learning(run.records) for name, run in named.items()}
    yield Section("Is it learning?", panels(texts))
    yield _differences(named)
    yield _last_figures(named)
    plots, note = overlays(named)
    yield Section("Over each other", figures=tuple(map(chart, plots)), notes=(note,))
    for name, run in named.items():
        if not run.is_tuned:
            yield from (_of_run(name, section) for section in pictures(run, num_images))


def _of_run(name: str, section: Section) -> Section:
    """Put a run's name before a section's title and the names of its figures' files."""
    figures = (replace(f, name=f"{file_name(name)}-{f.name}") for f in section.figures)
    return replace(section, title=f"{name}: {section.title}", figures=tuple(figures))


def _differences(named: dict[str, Run]) -> Section:
    """Show the keys of the configurations that are not alike."""
    configs = [run.config for run in named.values()]
    names = dict.fromkeys(key for config in configs for key in config if key not in _OWN)
    rows = [[name, *(_text(config, name) for config in configs)] for name in names]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    title = "What differs in their configurations"
    if not rows:
        return Section(title, notes=("Nothing but run.dir.",))
    has_gap = any(_NO_KEY in row for row in rows)
    notes = ("A dash: the run had no such key.",) if has_gap else ()
    return Section(title, table(["Key", *named], rows, is_text=True), notes=notes)


def _text(config: dict[str, Any], key: str) -> str:
    if key not in config:
        return _NO_KEY
    return "null" if config[key] is None else str(config[key])


# ---------------------------------------------------------------- last figures


def _last_figures(named: dict[str, Run]) -> Section:
    runs = list(named.values())
    newest = [findings.newest(run.records) for run in runs]
    unit = " or ".join(dict.fromkeys(run.unit for run in runs))
    rows = [
        ["Measured on", *(f"{split}, step {step:,.0f}" for split, step, _ in newest)],
        *figure_rows(unit, [measured.figures for measured in newest]),
        *_costs(runs),
        *few_shot_rows(runs),
        *_fine_tuned(runs),
    ]
    note = (
        "Losses and accuracies of different targets, masks or ratios are of different tasks: "
        "there, compare few-shot accuracy, k-NN or fine-tuning."
    )
    return Section("Last figures", table(["Figure", *named], rows), (), (note,))


def _costs(runs: list[Run]) -> list[list[str]]:
    seconds = (findings.training_seconds(run.records, run.batch_size) for run in runs)
    return [
        ["Epochs", *(f"{run.records[-1]['epoch']:.1f}" for run in runs)],
        ["Training time", *map(duration, seconds)],
        ["Images a second (median)", *(f"{findings.rate(run.records):,.0f}" for run in runs)],
        ["Samples that could not be used", *(f"{len(run.bad_samples):,}" for run in runs)],
    ]


def few_shot_rows(runs: list[Run]) -> list[list[str]]:
    """Return a row for each number of shots: the accuracy of a run's best layer and pooling."""
    cells = [best_pretrained(run.folder) for run in runs]
    views = list(map(view_name, cells))
    rows = [
        [f"Few-shot accuracy, {num} a class", *(shot(cell, num) for cell in cells)]
        for num in shots_of(cells)
    ]
    return [["Few-shot accuracy: best of", *views], *rows] if any(views) else rows


def _fine_tuned(runs: list[Run]) -> list[list[str]]:
    results = [read_fine_tuning(run.folder) for run in runs]
    names = dict.fromkeys(name for result in results for name in result)
    labels = {"accuracy": "top 1", "map": "mean average precision"}
    return [
        [f"{name}, {label}", *scores]
        for name in names
        for key, label in labels.items()
        if any(scores := [score(result.get(name, {}), key) for result in results])
    ]
