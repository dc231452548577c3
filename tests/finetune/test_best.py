"""A fine-tuning run that hands on its best step, and that stops when none gets better."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import finetune.run
from data.settings import UserError
from finetune.load import load_classifier
from pretrain.records.logs import read_records
from tests.finetune.test_run import result, stopped_at, weights
from tests.launching import run_ranks

KEPT = ["run.keep_best=true", "run.eval_every=2", "optim.lr=0.5", "optim.momentum=0"]


def start(*told: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    finetune.run.main(list(told))


def validations(run: Path) -> dict[int, float]:
    records: list[dict[str, Any]] = read_records(run / "metrics.jsonl")
    return {r["step"]: r["val/accuracy"] for r in records if "val/accuracy" in r}


def first_best(found: dict[int, float]) -> int:
    return max(found, key=lambda step: (found[step], -step))


def checkpoints(run: Path) -> set[int]:
    return {int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir()}


@pytest.mark.parametrize("ema", [[], pytest.param(["optim.ema=0.5"], marks=pytest.mark.slow)])
def test_the_best_step_is_handed_on(
    tmp_path: Path, tiny_finetune: list[str], ema: list[str]
) -> None:
    run = tmp_path / "run"
    told = [*tiny_finetune, *KEPT, *ema, f"run.dir={run}", "run.keep_checkpoints=1"]
    start(*told)
    found = validations(run)
    best = first_best(found)
    assert 0 < best < 20, "else nothing is tested here"
    assert checkpoints(run) == {best, 20}
    assert result(run)["best_step"] == best
    assert result(run)["accuracy"] == found[best]
    folder = run / f"checkpoints/step-{best:08d}"
    assert (run / "encoder").resolve() == (folder / "encoder").resolve()
    name = "ema.safetensors" if ema else "model.safetensors"
    model = load_classifier(run)
    for key, value in load_file(folder / name).items():
        assert torch.equal(model.state_dict()[key], value)
    (run / "result.json").unlink()
    start(*told)  # it was finished: the best step is measured again
    assert result(run)["accuracy"] == found[best]


def test_it_continues_to_the_bit(tmp_path: Path, tiny_finetune: list[str]) -> None:
    told = [*tiny_finetune, *KEPT]
    start(*told, f"run.dir={tmp_path}/run")
    best = first_best(validations(tmp_path / "run"))
    for step in sorted(checkpoints(tmp_path / "run"))[:2]:
        copy = tmp_path / f"copy-{step}"
        start(*told, stopped_at(step, tmp_path / "run", copy))
        assert weights(copy) == weights(tmp_path / "run")
        assert result(copy) == result(tmp_path / "run")
        assert (copy / "encoder").resolve().parent.name == f"step-{best:08d}"


def test_a_damaged_best_step_is_said(
    tmp_path: Path, tiny_finetune: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    told = [*tiny_finetune, *KEPT, f"run.dir={run}"]
    start(*told)
    best = first_best(validations(run))
    shutil.rmtree(run / f"checkpoints/step-{best:08d}")
    start(*told)
    assert f"step-{best:08d}, the best step by val/accuracy, is gone or damaged" in caplog.text
    assert load_classifier(run).class_names == ["0", "1", "2"]


def test_a_run_ends_when_nothing_gets_better_on_all_ranks(
    tmp_path: Path, tiny_finetune: list[str]
) -> None:
    run = tmp_path / "run"
    told = [*tiny_finetune, *KEPT, "optim.lr=0", "run.patience=3", f"run.dir={run}"]
    said = run_ranks(told, 2, tmp_path, script="finetune.run")
    why = "no better val/accuracy in 3 validations (run.patience); the best is that of step 2"
    assert f"ended at step 8 of 20: {why}" in said
    assert (result(run)["steps"], result(run)["best_step"]) == (8, 2)
    before = weights(run)
    said = run_ranks(told, 1, tmp_path, script="finetune.run")
    assert f"{run} was finished before, at step 8; {why}" in said
    assert weights(run) == before


def test_one_validation_is_said_to_be_no_choice(
    tmp_path: Path, tiny_finetune: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    told = [*tiny_finetune, "run.keep_best=true", "optim.steps=3", f"run.dir={tmp_path}/run"]
    start(*told, "run.eval_every=3")
    assert (
        "run.keep_best=true has no choice: run.eval_every=3 leaves one validation, after the last "
        "of 3 steps; for one an epoch, set it to 5"
    ) in caplog.text
    assert result(tmp_path / "run")["best_step"] == 3


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["run.patience=3"], "run.patience=3 without run.keep_best=true would hand on a step that"),
        (["run.patience=-1"], "run.patience=-1 is below 0; 0 turns it off"),
        (["run.keep_best=true", "run.eval_every=0"], "run.keep_best=true chooses among validatio"),
    ],
)
def test_keys_that_choose_nothing_are_refused(
    tmp_path: Path, tiny_finetune: list[str], more: list[str], text: str
) -> None:
    with pytest.raises(UserError) as caught:
        start(*tiny_finetune, *more, f"run.dir={tmp_path}/run")
    assert str(caught.value).startswith(text)
    assert not (tmp_path / "run").exists()
