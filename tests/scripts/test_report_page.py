"""What a report says and draws, from records alone."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts._report import findings
from scripts._report.charts import plots_of
from scripts._report.distances import by_distance
from scripts._report.drawing import chart, draw
from scripts._report.figures import PALETTE, Line, Plot
from scripts._report.history import Run
from scripts._report.overlays import MOST, overlays
from scripts._report.results import best, view_name
from scripts._report.several_runs import few_shot_rows

CLASSES = {
    "loss": 2.0,
    "class_entropy": 3.0,
    "accuracy_mask": 0.4,
    "accuracy_majority": 0.1,
    "accuracy_neighbour": 0.3,
}
PIXELS = {"loss": 0.5, "loss_mean": 1.0, "loss_neighbour": 0.8}
DISTANCES = {
    "accuracy": (0.5, 0.2),
    "neighbour": (0.4, 0.1),
    "loss": (2.0, 3.0),
    "ratio": (0.9, 0.1),
}


def record(figures: dict[str, float], step: float = 10, split: str = "train") -> findings.Record:
    values = {f"{split}/{name}": value for name, value in figures.items()}
    speed = {"speed/images_per_second": 8.0, "speed/data_wait_ratio": 0.0}
    return {"step": step, "epoch": 0.5} | speed | values


def by_number(figures: dict[str, tuple[float, ...]]) -> dict[str, float]:
    return {
        f"{name}_distance_{num}": value
        for name, values in figures.items()
        for num, value in enumerate(values, start=1)
    }


def make_run(records: list[findings.Record], kind: str = "mean_colour", **optim: Any) -> Run:
    sizes = {f"optim.{key}": value for key, value in ({"batch_size": 8} | optim).items()}
    config = {"target.kind": kind, "target.bits": 3, "target.grid": 4, **sizes}
    return Run(Path("mine"), records, config, None)


# ---------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ({}, "It is better than both."),
        ({"accuracy_mask": 0.2}, "not yet better than copying"),
        ({"accuracy_mask": 0.1}, "not yet better than naming the most frequent class"),
        ({"loss": 3.5}, "0.500 above the 3.000"),
        ({"loss": float("nan")}, "the run has diverged"),
        (
            by_number(DISTANCES),
            "At a distance of 2 or more patches from what is visible it is right for 20.0 %",
        ),
        (
            by_number(DISTANCES | {"ratio": (0.995, 0.005)}),
            "At a distance of 1 patch from what is visible",
        ),
        (by_number(DISTANCES | {"accuracy": (0.5, 0.1)}), "that is no better than copying"),
    ],
)
def test_the_verdict_follows_the_baselines(figures: dict[str, float], text: str):
    assert text in " ".join(findings.learning([record(CLASSES | figures)]))


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ({}, "It is better than both."),
        ({"loss": 0.9}, "It is not yet better than copying the nearest visible patch."),
        ({"loss": 1.5, "loss_neighbour": 1.2}, "It is not yet better than naming the mean."),
        (by_number({"loss": (0.4,), "neighbour": (0.5,), "ratio": (1.0,)}), "more than copying"),
    ],
)
def test_pixels_are_judged_by_their_own_baselines(figures: dict[str, float], text: str):
    said = " ".join(findings.learning([record(PIXELS | figures)]))
    assert text in said
    assert "nats" not in said


def test_fine_tuning_is_told_with_what_it_measures():
    said = findings.learning([record({"loss": 0.5, "map": 0.25})])
    assert said == ["At step 10 the training loss is 0.500 nats; mean average precision 25.0 %."]


def test_the_speed_is_told_with_its_share_of_the_peak_where_there_is_one():
    old = record({}, 10)
    assert findings.speed([old])[0] == "Training took in 8 images a second (median)."
    records = [old, *(record({}, 20) | {"speed/mfu": share} for share in (0.25, 0.3, 0.5))]
    said = "Training took in 8 images a second, 30.0 % of the matrix peak (MFU) (median)."
    assert findings.speed(records)[0] == said
    chart_of = {plot.title: plot for plot in plots_of(make_run(records))}
    line = chart_of["Share of the matrix peak (MFU)"].lines[0]
    assert line.points == ((20, 25), (20, 30), (20, 50))


def test_the_cost_adds_up_all_steps():
    records: list[dict[str, float]] = [
        {"step": 10, "epoch": 1.0, "speed/images_per_second": 8.0},
        {"step": 40, "epoch": 4.0, "speed/images_per_second": 16.0},
    ]
    assert findings.training_seconds(records, 8) == 10 + 15
    assert findings.cost(records, 8, 0)[:2] == [
        "25 s of training, without validation and saving.",
        "40 steps of 8 images: 4.0 epochs.",
    ]
    assert "2 times a sample could not be used" in findings.cost(records, 8, 2)[2]


def test_durations_have_two_units():
    texts = [findings.duration(seconds) for seconds in (59.6, 61, 3600, 86_400 + 120)]
    assert texts == ["1 min 00 s", "1 min 01 s", "1 h 00 min", "1 d 00 h"]


# ---------------------------------------------------------------- charts


def test_charts_are_drawn_alike_and_without_addresses():
    run = make_run([record(CLASSES, step) | {"optim/lr": 1e-5} for step in (10, 20, 30)])
    plots = plots_of(run)
    titles = ["Loss", "Accuracy on corrupted patches", "Learning rate", "Throughput"]
    assert [plot.title for plot in plots] == [*titles, "Waiting for data"]
    first, second = chart(plots[0]), chart(plots[0])
    assert first.picture == second.picture
    assert first.export("svg") == second.export("svg")
    assert "://" not in first.picture
    assert "var(--blue)" in first.picture


def test_losses_have_their_unit():
    classes, pixels = (
        plots_of(make_run([record(figures)], kind))[0]
        for figures, kind in ((CLASSES, "mean_colour"), (PIXELS, "pixels"))
    )
    assert classes.axis == "loss (nats)"
    assert pixels.axis == "loss (mean squared error)"
    assert {line.label for line in pixels.lines} >= {"copying the nearest, training"}


def test_accuracy_by_distance_stands_beside_copying():
    run = make_run([record(CLASSES | by_number(DISTANCES), split="val")])
    section = by_distance(run)
    assert [figure.title for figure in section.figures] == [
        "Accuracy by distance",
        "Loss by distance",
    ]
    row = "<td>10.0 %</td><td>3.000</td><td>20.0 %</td><td>10.0 %</td>"
    assert f'<th scope="row">2 or more</th>{row}' in section.body
    assert by_distance(make_run([record(CLASSES)])).is_empty


def test_an_empty_distance_leaves_a_gap():
    figures = CLASSES | by_number(DISTANCES) | {"ratio_distance_3": 0.0}
    assert '<th scope="row">2</th>' in by_distance(make_run([record(figures, split="val")])).body


# ---------------------------------------------------------------- several runs


def test_runs_of_other_batch_sizes_are_drawn_over_images():
    runs = {str(size): make_run([record(CLASSES, 5)], batch_size=size) for size in (8, 16)}
    plots, note = overlays(runs)
    loss = next(plot for plot in plots if plot.title == "Training loss")
    assert loss.across == "images seen"
    assert [line.points for line in loss.lines] == [((40, 2.0),), ((80, 2.0),)]
    assert "counted in images" in note


def test_each_run_has_a_look_of_its_own():
    runs = {str(num): make_run([record(CLASSES)]) for num in range(MOST)}
    plots, _ = overlays(runs)
    looks = {(line.colour, line.kind) for line in plots[0].lines}
    assert len(looks) == MOST == 3 * len(PALETTE)


def test_the_best_layer_stands_for_an_encoder() -> None:
    cells: list[dict[str, Any]] = [
        {"layer": 2, "pooling": "average", "accuracy/1shot": 0.9, "accuracy/5shot": 0.3},
        {"layer": 1, "pooling": "class", "accuracy/1shot": 0.1, "accuracy/5shot": 0.4},
        {"layer": 1, "pooling": "both", "accuracy/1shot": 0.2, "accuracy/5shot": 0.4},
    ]
    assert view_name(best(cells)) == "layer 1, class"
    assert best([]) == {}
    assert view_name({"accuracy/5shot": 0.5}) == ""


def test_runs_side_by_side_are_compared_by_their_best_layers(tmp_path: Path) -> None:
    runs: list[Any] = []
    for name, layer in (("a", 1), ("b", 2)):
        cells = [
            {"layer": n, "pooling": "average", "accuracy/5shot": 0.5 + 0.1 * (n == layer)}
            for n in (1, 2)
        ]
        folder = tmp_path / name / "fewshot"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({"cells": cells, **cells[0]}))
        runs.append(SimpleNamespace(folder=tmp_path / name))
    assert few_shot_rows(runs) == [
        ["Few-shot accuracy: best of", "layer 1, average", "layer 2, average"],
        ["Few-shot accuracy, 5 a class", "60.0 ± 0.0 %", "60.0 ± 0.0 %"],
    ]


@pytest.mark.parametrize("steps", [[250.0], [250.0, 251.0, 252.0]])
def test_an_axis_shows_no_step_that_never_was(steps: list[float]):
    line = Line("training", "blue", "raw", tuple((step, 6.1) for step in steps))
    [axes] = draw(Plot("Loss", "loss", (line,), "Lower is better.")).axes
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == steps
    [drawn] = axes.lines
    assert drawn.get_marker() == ("o" if len(steps) == 1 else "")  # one point has to be seen
