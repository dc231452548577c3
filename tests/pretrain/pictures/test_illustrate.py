"""Pictures for the trackers: of whole runs, of cut models, and what happens when there are none."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import pretrain.run
from pretrain.pictures import draw
from pretrain.records.logs import read_records
from tests.launching import run_ranks
from tests.pretrain.records.test_trackers import PICTURES, tensorboard_images

ON = ["run.trackers=[tensorboard]", "optim.steps=6", "run.eval_every=3"]
ALL = {f"learnt/{name}" for name in PICTURES}


@pytest.mark.parametrize(
    ("more", "missing"),
    [
        ([], set[str]()),
        (["encoder.position=relative"], {"positions"}),
        (["encoder.position=none", "target.kind=normalised_pixels"], {"positions"}),
        (["encoder.sees_masked=false", "encoder.position_at=every_layer"], set[str]()),
    ],
)
def test_tensorboard_gets_what_there_is(
    tmp_path: Path, tiny: list[str], more: list[str], missing: set[str]
) -> None:
    run = tmp_path / "run"
    pretrain.run.main([*tiny, *ON, *more, f"run.dir={run}"])
    found = tensorboard_images(run)
    assert found.keys() == ALL - {f"learnt/{name}" for name in missing}
    for pictures in found.values():
        assert [step for step, _, _ in pictures] == [3, 6]
        for _, size, content in pictures:
            picture = Image.open(io.BytesIO(content))
            assert picture.size == size
            assert picture.mode == "RGB"
            assert len(set(picture.tobytes())) > 10  # not an empty sheet


def test_a_cut_model_is_drawn_too(tmp_path: Path, tiny: list[str]) -> None:
    """On two ranks, each of which holds a piece of the model; one of them draws and tells."""
    run = tmp_path / "run"
    more = ["encoder.position_at=every_layer", "run.parallel=fsdp", f"run.dir={run}"]
    run_ranks([*tiny, *ON, *more], 2, tmp_path / "logs")
    found = tensorboard_images(run)
    assert found.keys() == ALL
    for pictures in found.values():
        assert [step for step, _, _ in pictures] == [3, 6]


def test_without_matplotlib_a_run_goes_on(
    tmp_path: Path,
    tiny: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(draw, "is_possible", lambda: False)
    pretrain.run.main([*tiny, *ON, f"run.dir={tmp_path}/run"])
    assert tensorboard_images(tmp_path / "run") == {}
    assert len(read_records(tmp_path / "run/metrics.jsonl")) == 6
    lines = [line for line in caplog.messages if "matplotlib" in line]
    assert len(lines) == 1
    assert "pip install -e '.[report]' here" in lines[0]


def test_a_picture_that_cannot_be_drawn_stops_no_run(
    tmp_path: Path,
    tiny: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(draw, "similarity", fail)
    pretrain.run.main([*tiny, *ON, f"run.dir={tmp_path}/run"])
    assert "learnt/filters" in tensorboard_images(tmp_path / "run")
    assert "learnt/positions" not in tensorboard_images(tmp_path / "run")
    assert "a picture cannot be drawn: no space left" in caplog.text


def test_without_trackers_nothing_is_drawn(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> None:
        raise AssertionError("drawn for nobody")

    monkeypatch.setattr(draw, "pixels", fail)
    pretrain.run.main([*tiny, "optim.steps=4", f"run.dir={tmp_path}/run"])
