"""What a report says and draws, from records alone."""

import pytest

from scripts.report_page import findings
from scripts.report_page.charts import charts_for
from scripts.report_page.drawing import draw


def record(**figures: float) -> dict[str, float]:
    base = {"loss": 2.0, "class_entropy": 3.0, "accuracy_mask": 0.4, "accuracy_majority": 0.1}
    values = base | {"accuracy_neighbour": 0.3} | figures
    return {"step": 10, "epoch": 0.5} | {f"train/{name}": value for name, value in values.items()}


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ({}, "It is better than both."),
        ({"accuracy_mask": 0.2}, "not yet better than copying"),
        ({"accuracy_mask": 0.1}, "not yet better than naming the most frequent class"),
        ({"loss": 3.5}, "0.500 above the 3.000"),
        ({"loss": float("nan")}, "the run has diverged"),
    ],
)
def test_the_verdict_follows_the_baselines(figures: dict[str, float], text: str):
    assert text in " ".join(findings.learning([record(**figures)]))


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
    assert texts == ["1 min 00 s", "1 min 01 s", "1 h 00 min", "24 h 02 min"]


def test_charts_are_drawn_alike_and_without_addresses():
    records = [record() | {"step": step, "optim/lr": 1e-5} for step in (10, 20, 30)]
    chart = charts_for(records)[0]
    svg = draw(chart, records)
    titles = ["Loss", "Accuracy on corrupted patches", "Learning rate"]
    assert [c.title for c in charts_for(records)] == titles
    assert svg == draw(chart, records)
    assert "://" not in svg
    assert "var(--blue)" in svg
