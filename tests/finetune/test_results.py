"""A folder for each encoder's figures, which another encoder's do not replace."""

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

import finetune.fewshot
import finetune.probe
import pretrain.run
from data.settings import UserError
from finetune.results import open_folder, result_folder
from pretrain.encoder import EncoderConfig


@pytest.mark.parametrize(
    ("config", "folder"),
    [
        (EncoderConfig(init="some/run"), "some/run/fewshot"),
        (EncoderConfig(init="some/run/encoder"), "some/run/fewshot"),
        (EncoderConfig(like="some/run"), "some/run/fewshot-untrained"),
        (EncoderConfig(init="some/mine.b"), "runs/fewshot-mine.b"),
        (EncoderConfig(init="vit_tiny.augreg_in21k"), "runs/fewshot-vit_tiny.augreg_in21k"),
        (EncoderConfig(init="hf-hub:org/name"), "runs/fewshot-hf-hub-org-name"),
        (
            EncoderConfig(name="vit_small_patch16_224"),
            "runs/fewshot-untrained-vit_small_patch16_224",
        ),
        (EncoderConfig(), "runs/fewshot-untrained-vit_base_patch16_224"),
    ],
)
def test_the_folder_follows_the_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: EncoderConfig, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some/run").mkdir(parents=True)
    (tmp_path / "some/run/config.yaml").touch()
    (tmp_path / "some/mine.b").mkdir()
    assert result_folder(None, "fewshot", config) == Path(folder)
    assert result_folder("asked", "fewshot", config) == Path("asked")


def told(init: str = "none", sha256: str = "a", **more: str) -> dict[str, Any]:
    like = {f"encoder.{key}": value for key, value in more.items()}
    return {"encoder.init": init, "encoder.sha256": sha256, **like}


@pytest.mark.parametrize(
    ("earlier", "now", "is_kept"),
    [
        (told(), told(), False),
        (told(), told(sha256="b"), True),  # of other sizes
        (told("runs/1"), told("runs/1/", "b"), False),  # trained further
        (told("runs/1"), told("runs/2", "b"), True),
        (told(like="runs/1"), told(sha256="b", like="runs/1"), False),
        (told(like="runs/1"), told(sha256="b", like="runs/2"), True),
        ({"encoder.init": "runs/1", "accuracy": 1.0}, told("runs/1"), True),  # fine-tuning's
        ("no JSON", told(), True),
        ([], told(), True),
    ],
)
def test_the_result_of_another_encoder_is_kept(
    tmp_path: Path, earlier: Any, now: dict[str, Any], is_kept: bool
) -> None:
    text = earlier if isinstance(earlier, str) else json.dumps(earlier)
    (tmp_path / "result.json").write_text(text)
    if is_kept:
        with pytest.raises(UserError, match=r"^fewshot.dir=x holds the result of another encoder"):
            open_folder(tmp_path, "fewshot.dir=x", now)
    else:
        open_folder(tmp_path, "fewshot.dir=x", now)
    assert (tmp_path / "result.json").read_text() == text


def test_two_encoders_are_measured_beside_each_other(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shards: Path,
    tiny: list[str],
    encoder: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nobody names a folder: a run's figures lie where its report looks for them."""
    monkeypatch.chdir(tmp_path)
    pretrain.run.main([*tiny, "optim.steps=1", "optim.warmup_steps=0", "run.dir=runs/mine"])
    common = [f"data.train={shards}/train-*.tar", f"data.val={shards}/val-0.tar", "data.workers=0"]
    shots = [*common, "fewshot.shots=[1]", "fewshot.num_seeds=1", "fewshot.threads=1"]
    size = ["data.image_size=16"]

    def measure(main: Any, *more: str) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        main(list(more))

    measure(finetune.fewshot.main, *shots, "encoder.init=runs/mine")
    measure(finetune.fewshot.main, *shots, "encoder.like=runs/mine")
    measure(finetune.fewshot.main, *shots, *encoder)
    measure(
        finetune.probe.main,
        *common,
        "probe.threads=1",
        "probe.penalties=[0.1]",
        "encoder.init=runs/mine",
    )
    found = {str(p.parent.relative_to("runs")): p for p in Path("runs").rglob("result.json")}
    assert sorted(found) == [
        "fewshot-untrained-vit_tiny_patch16_224",
        "mine/fewshot",
        "mine/fewshot-untrained",
        "mine/probe",
    ]
    assert "random weights, like runs/mine: 10 images" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"fewshot.dir=runs/mine/fewshot holds the result of anot"):
        measure(finetune.fewshot.main, *shots, *size, *encoder, "fewshot.dir=runs/mine/fewshot")
    # the same run, when it has gone on
    measure(finetune.fewshot.main, *shots, "encoder.init=runs/mine")
