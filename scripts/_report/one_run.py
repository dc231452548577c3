"""The page of one run, from its first line to its last."""

from collections.abc import Iterator

from data.text import percent
from pretrain.pictures.page import details, panels, table
from scripts._report import findings
from scripts._report.charts import plots_of, smoothing
from scripts._report.distances import by_distance
from scripts._report.drawing import chart
from scripts._report.figures import Section
from scripts._report.history import Run
from scripts._report.pictures import pictures
from scripts._report.results import few_shot, fine_tuning, frozen

_FIGURES = {
    "loss": "Loss ({unit})",
    "loss_mask": "Loss, masked patches ({unit})",
    "loss_random": "Loss, random patches ({unit})",
    "loss_kept": "Loss, kept patches ({unit})",
    "class_entropy": "Baseline: class frequencies only (nats)",
    "loss_neighbour": "Baseline: copying the nearest visible patch (mean squared error)",
    "loss_mean": "Baseline: always the mean (mean squared error)",
    "accuracy": "Accuracy",
    "accuracy_mask": "Accuracy, masked patches",
    "accuracy_random": "Accuracy, random patches",
    "accuracy_kept": "Accuracy, kept patches",
    "accuracy_neighbour": "Baseline: copying the nearest visible patch",
    "accuracy_majority": "Baseline: most frequent class",
    "accuracy_top5": "Accuracy, top 5",
    "accuracy_balanced": "Accuracy, mean over classes",
    "loss_matching": "Loss, does the caption belong to the image (nats)",
    "accuracy_matching": "Accuracy, does the caption belong to the image",
    "accuracy_matching_majority": "Baseline: the same answer to all pairs",
    "loss_words": "Loss, hidden word pieces (nats)",
    "accuracy_words": "Accuracy, hidden word pieces",
    "accuracy_words_majority": "Baseline: most frequent word piece",
    "accuracy_words_blank": "Baseline: the same model with blank images",
    "loss_alignment": "Word-patch alignment: cost of own pairs less that of others",
    "cut_ratio": "Word pieces that data.max_tokens cuts off",
    "map": "Mean average precision",
    "map_micro": "Average precision of all decisions",
}


def sections(run: Run, num_images: int) -> Iterator[Section]:
    """Yield what a run's page shows, in the order to read it."""
    yield _answers(run)
    yield _curves(run)
    yield by_distance(run)
    yield _last_figures(run)
    if num_images and not run.is_tuned:
        yield from pictures(run, num_images)
    elif not run.is_tuned:
        yield Section("Pictures", notes=("They are drawn once the run has ended.",))
    yield few_shot(run.folder)
    yield from frozen(run.folder)
    yield fine_tuning(run.folder)
    text = (run.folder / "config.yaml").read_text(encoding="utf-8")
    yield Section("Configuration", details("config.yaml", text))


def _answers(run: Run) -> Section:
    answers = {
        "Is it learning?": findings.learning(run.records),
        "Is it fast?": findings.speed(run.records),
        "What did it cost?": findings.cost(run.records, run.batch_size, len(run.bad_samples)),
    }
    return Section("In short", panels(answers))


def _curves(run: Run) -> Section:
    width = smoothing(len(run.records))
    note = f"Smoothed lines and training baselines are means over the last {width} records."
    return Section(
        "Over the steps",
        figures=tuple(chart(plot) for plot in plots_of(run)),
        notes=(note,) if width > 1 else (),
    )


def _last_figures(run: Run) -> Section:
    """Set the last figures of both splits beside each other."""
    names = {"train": "Training batch", "val": "Validation"}
    columns = {
        f"{name}, step {measured.step:,.0f}": measured.figures
        for split, name in names.items()
        if (measured := findings.last_measured(run.records, split))
    }
    rows = figure_rows(run.unit, [*columns.values()])
    return Section("Last figures", table(["Figure", *columns], rows))


def figure_rows(unit: str, columns: list[findings.Record]) -> list[list[str]]:
    """Return a row for each figure that a column has; `unit` is the loss's."""
    is_of_classes = any("class_entropy_patches" in figures for figures in columns)
    of_patches = "nats" if is_of_classes else "mean squared error"
    labels = {key: label.format(unit=unit) for key, label in _FIGURES.items()}
    labels |= {
        f"{key}_patches": f"Patches: {label.format(unit=of_patches)}"
        for key, label in _FIGURES.items()
    }
    return [
        [label, *(_value(key, figures) for figures in columns)]
        for key, label in labels.items()
        if any(key in figures for figures in columns)
    ]


def _value(key: str, figures: findings.Record) -> str:
    if key not in figures:
        return ""
    is_fraction = key.startswith(("accuracy", "map", "cut_ratio"))
    return percent(figures[key]) if is_fraction else f"{figures[key]:#.4g}"
