"""What the measures of a frozen encoder left in a run's folder, on the run's page."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.results import table_rows
from scripts._report.results import frozen

PROBE = [
    {"layer": 4, "pooling": "average", "accuracy/linear_top1": 0.5, "accuracy/knn_top1": 0.25},
    {"layer": 4, "head": "attentive", "accuracy/linear_top1": 0.625, "held_out_loss": 1.5},
]
DENSE = [{"layer": 2, "head": "knn", "iou/mIoU": 0.3, "iou_by_class": [0.2, None]}]


def leave(folder: Path, cells: list[dict[str, Any]], **more: Any) -> None:
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"cells": cells, **more}))


def test_nothing_is_shown_where_nothing_was_measured(tmp_path: Path) -> None:
    assert all(section.is_empty for section in frozen(tmp_path))


def test_both_encoders_stand_in_one_table_with_all_heads(tmp_path: Path) -> None:
    leave(tmp_path / "probe", PROBE)
    leave(tmp_path / "probe-untrained", PROBE[:1])
    probe, dense = frozen(tmp_path)
    assert dense.is_empty
    header, *rows = table_rows(
        [
            *({"encoder": "pretrained", **cell} for cell in PROBE),
            {"encoder": "untrained", **PROBE[0]},
        ]
    )
    assert header[:4] == ["encoder", "layer", "pooling", "linear_top1"]
    assert rows[1] == ["pretrained", "4", "", "62.50%", "", "attentive", "1.5"]
    for row in rows:
        cells = "".join(f"<td>{value}</td>" for value in row[1:])
        assert f'<th scope="row">{row[0]}</th>{cells}' in probe.body


@pytest.mark.parametrize("number", [8, 9])
def test_encoders_that_saw_other_images_are_not_compared(tmp_path: Path, number: int) -> None:
    leave(tmp_path / "probe", PROBE, num_train=8)
    leave(tmp_path / "probe-untrained", PROBE, num_train=number)
    probe, _ = frozen(tmp_path)
    [note] = probe.notes
    assert note.startswith(
        "Pretraining helped where it beats untrained."
        if number == 8
        else "Pretrained and untrained were measured on different images, so their accuracies"
    )


@pytest.mark.parametrize("kind", ["pretrained", "untrained"])
def test_predicted_masks_are_shown_and_handed_on(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / ("dense" if kind == "pretrained" else "dense-untrained")
    leave(folder, DENSE)
    content = io.BytesIO()
    Image.new("RGB", (8, 4), "red").save(content, "PNG")
    (folder / "predictions.png").write_bytes(content.getvalue())
    _, dense = frozen(tmp_path)
    assert "30.00%" in dense.body
    assert "by_class" not in dense.body
    [figure] = dense.figures
    assert figure.title == f"Predicted classes of pixels, {kind}"
    assert figure.export("png") == content.getvalue()
    assert figure.export("svg").startswith(b"<svg")
