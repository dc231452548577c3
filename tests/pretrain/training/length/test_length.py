"""How long a run is: by steps, by epochs or by default; the warm-up and the batch with it."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

import finetune.run
import pretrain.run
from data.settings import UserError
from pretrain.config import PretrainConfig
from pretrain.configuration.layers import read_yaml
from pretrain.configuration.load import load
from pretrain.records.logs import read_records
from pretrain.training.config import OptimConfig, RunConfig
from pretrain.training.length import rehearsal
from pretrain.training.length.rehearsal import Costs
from pretrain.training.length.settle import settle, usual_batch

NUM_IMAGES = 36  # of the shards: 5 batches of 8
_LENGTH = ("optim.steps=", "optim.warmup_steps=")


class _Images:
    """So many images."""

    def __init__(self, number: int) -> None:
        self.num_samples = number


def without_length(tiny: list[str]) -> list[str]:
    return [argument for argument in tiny if not argument.startswith(_LENGTH)]


def losses(run: Path) -> list[tuple[float, float]]:
    records = read_records(run / "metrics.jsonl")
    return [(record["train/loss"], record["optim/lr"]) for record in records]


def settled(*arguments: str, number: int | None = NUM_IMAGES) -> OptimConfig:
    accelerator: Any = Accelerator(cpu=True)
    config = load(PretrainConfig, ["data.shards=x", "run.dir=/nonexistent", *arguments])
    images = None if number is None else _Images(number)
    return settle(accelerator, config, images).optim


# ---------------------------------------------------------------- one of the keys


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["optim.steps=3", "optim.epochs=1"], "optim.steps and optim.epochs are set; give one"),
        (["run.minutes=3", "optim.epochs=1"], "run.minutes and optim.epochs are set; give one"),
        (["run.minutes=3", "optim.steps=1"], "run.minutes and optim.steps are set; give one"),
        (
            ["optim.warmup_ratio=0.1", "optim.warmup_steps=1"],
            "optim.warmup_ratio and optim.warmup_steps are set; give one",
        ),
        (["optim.epochs=0"], "optim.epochs=0.0 must be above 0"),
        (["optim.epochs=inf"], "optim.epochs=inf must be above 0"),
        (["run.minutes=0"], "run.minutes=0.0 is not a number above 0"),
        (["optim.warmup_ratio=1.1"], "optim.warmup_ratio=1.1 is not in [0, 1]"),
        (["optim.steps=${optim.batch_size}"], "optim.batch_size has no value"),
    ],
)
def test_two_on_one_layer_and_the_absurd_are_refused(arguments: list[str], text: str) -> None:
    with pytest.raises(UserError, match=re.escape(text)):
        load(PretrainConfig, ["data.shards=x", *arguments])


def test_two_in_one_file_are_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "both.yaml"
    path.write_text("optim: {steps: 3, epochs: 2}\n")
    with pytest.raises(UserError, match=r"give one of them \(.*both\.yaml\)"):
        load(PretrainConfig, [str(path), "data.shards=x"])
    optim = load(PretrainConfig, [str(path), "data.shards=x", "optim.epochs=4"]).optim
    assert (optim.steps, optim.epochs) == (None, 4.0)


def test_the_later_layer_wins(tmp_path: Path) -> None:
    path, other = tmp_path / "a.yaml", tmp_path / "b.yaml"
    path.write_text("optim: {steps: 30, warmup_steps: 3}\n")
    other.write_text("run: {minutes: 2}\n")
    own = ["data.shards=x"]
    optim = load(PretrainConfig, [str(path), *own, "optim.epochs=2.5"]).optim
    assert (optim.steps, optim.epochs, optim.warmup_steps) == (None, 2.5, 3)
    config = load(PretrainConfig, [str(path), str(other), *own, "optim.warmup_ratio=0.5"])
    assert (config.run.minutes, config.optim.steps, config.optim.warmup_steps) == (2, None, None)
    config = load(PretrainConfig, [str(other), str(path), *own])
    assert (config.run.minutes, config.optim.steps) == (None, 30)
    optim = load(PretrainConfig, [str(path), *own, "optim.steps=null", "optim.epochs=1"]).optim
    assert (optim.steps, optim.epochs) == (None, 1.0)
    assert load(PretrainConfig, [str(path), *own, "optim.epochs=null"]).optim.steps == 30


# ---------------------------------------------------------------- what they come to


def test_epochs_become_steps() -> None:
    assert settled("optim.epochs=2", "optim.batch_size=8").steps == 10
    assert settled("optim.epochs=0.5", "optim.batch_size=8").steps == 2  # to the even one
    assert settled("optim.epochs=0.01", "optim.batch_size=8").steps == 1


def test_what_nobody_asks_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        optim = settled()
    assert (optim.batch_size, optim.epochs, optim.steps) == (2, 100.0, 1800)
    assert optim.num_warmup_steps == 90
    assert "optim.batch_size=2, by the number of images; optim.epochs=100, as" in caplog.text
    assert "so 1,800 steps" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        settled("optim.steps=3", "optim.batch_size=8")
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("number", "world", "batch"),
    [
        (1, 1, 1),
        (200, 1, 16),
        (200, 3, 15),
        (2_000, 1, 128),
        (5_000, 1, 256),
        (50_000, 1, 256),
        (50_000, 3, 255),
        (100_000, 1, 512),
        (1_281_167, 8, 4096),
        (3, 8, 8),
        (None, 1, 256),
    ],
)
def test_the_usual_batch(number: int | None, world: int, batch: int) -> None:
    assert usual_batch(number, world) == batch


def test_a_stream_has_no_epochs() -> None:
    own = "data.read=sequential"
    text = "optim.epochs=3: data.read=sequential has no length; give optim.steps"
    with pytest.raises(UserError, match=text):
        settled(own, "optim.epochs=3", number=None)
    with pytest.raises(UserError, match=r"^data\.read=sequential has no length"):
        settled(own, number=None)
    assert settled(own, "optim.steps=3", number=None).batch_size == 256


# ---------------------------------------------------------------- a run and its resume


def test_epochs_train_and_resume_as_their_steps_do(tmp_path: Path, tiny: list[str]) -> None:
    """The record says both; either goes on, and so does a command that says nothing."""
    own = without_length(tiny)
    run, other = tmp_path / "epochs", tmp_path / "steps"
    pretrain.run.main([*own, "optim.epochs=2", f"run.dir={run}"])
    pretrain.run.main([*own, "optim.steps=10", "optim.warmup_ratio=0.05", f"run.dir={other}"])
    assert losses(run) == losses(other)
    optim = read_yaml(str(run / "config.yaml"))["optim"]
    assert (optim["epochs"], optim["steps"]) == (2.0, 10)
    before = (run / "metrics.jsonl").read_bytes()
    for more in (["optim.epochs=2"], ["optim.steps=10"], []):
        pretrain.run.main([*own, *more, f"run.dir={run}"])
    assert (run / "metrics.jsonl").read_bytes() == before
    config = str(run / "config.yaml")
    assert load(PretrainConfig, [config]).optim.epochs is None  # of the resume by steps
    copy = tmp_path / "other"
    pretrain.run.main([config, "optim.epochs=1", f"run.dir={copy}"])
    assert len(losses(copy)) == 5


def test_a_killed_run_of_epochs_goes_on_bit_for_bit(tmp_path: Path, tiny: list[str]) -> None:
    run, own = tmp_path / "run", [*without_length(tiny), "optim.epochs=2"]
    pretrain.run.main([*own, f"run.dir={run}"])
    expected = losses(run)
    for folder in (run / "checkpoints").glob("step-00000010"):
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
    (run / "encoder").unlink()
    pretrain.run.main([*own, f"run.dir={run}"])  # from step 7
    assert losses(run) == expected


def test_another_length_is_refused_by_the_key_that_says_it(tmp_path: Path, tiny: list[str]) -> None:
    run, own = tmp_path / "run", without_length(tiny)
    pretrain.run.main([*own, "optim.epochs=1", f"run.dir={run}"])

    def text(*more: str) -> str:
        with pytest.raises(UserError) as caught:
            pretrain.run.main([*own, *more, f"run.dir={run}"])
        return str(caught.value)

    assert "another configuration: optim.epochs was 1.0, now 2.0; give" in text("optim.epochs=2")
    assert "another configuration: optim.steps was 5, now 6; give" in text("optim.steps=6")
    assert "optim.steps was 5, now run.minutes=3.0; give" in text("run.minutes=3")
    assert "the warm-up was 0 steps, now 2; give" in text("optim.warmup_ratio=0.4")
    assert f"cannot be made longer: encoder.init={run} run.dir=NEW" in text("optim.epochs=2")


def test_a_run_of_an_older_version_goes_on(tmp_path: Path, tiny: list[str]) -> None:
    """It knew neither epochs nor a share that warms up, and wrote its defaults down."""
    run, own = tmp_path / "run", without_length(tiny)
    more = ["optim.steps=10", "optim.warmup_steps=2", f"run.dir={run}"]
    pretrain.run.main([*own, *more])
    path = run / "config.yaml"
    new = ("epochs:", "minutes:", "warmup_ratio:")
    lines = [line for line in path.read_text().splitlines(True) if not line.strip().startswith(new)]
    path.write_text("".join(lines))
    before = (run / "metrics.jsonl").read_bytes()
    pretrain.run.main([*own, *more])
    path.write_text("".join(lines))
    pretrain.run.main([*own, f"run.dir={run}"])
    path.write_text("".join(lines))
    pretrain.run.main([str(path)])
    assert (run / "metrics.jsonl").read_bytes() == before
    assert read_yaml(str(path))["optim"]["warmup_steps"] == 2


def test_fine_tuning_takes_epochs(tmp_path: Path, tiny_finetune: list[str]) -> None:
    own = [*without_length(tiny_finetune), "encoder.init=none", f"run.dir={tmp_path}/run"]
    finetune.run.main([*own, "optim.epochs=0.5"])
    assert len(losses(tmp_path / "run")) == 2
    with pytest.raises(UserError, match=r"optim.epochs was 0.5, now 1.0"):
        finetune.run.main([*own, "optim.epochs=1"])


# ---------------------------------------------------------------- minutes


def test_what_fits_into_minutes() -> None:
    """Validations, the last one too, and checkpoints by steps and by minutes count."""
    run = RunConfig(checkpoint_every=100, checkpoint_minutes=1.0)
    costs = Costs(start=5.0, step=0.1, measures=((2.0, 50), (1.0, 0)), checkpoint=1.0)
    assert costs.total(100, run) == pytest.approx(5 + 10 + 2 * 2 + 1 + 1)
    assert costs.total(101, run) == pytest.approx(5 + 10.1 + 3 * 2 + 1 + 2)
    for seconds in (22.0, 60.0, 600.0):
        steps = costs.steps_within(seconds, run)
        assert costs.total(steps, run) <= seconds < costs.total(steps + 1, run)
    assert costs.steps_within(9.0, run) == 1 - 1


def test_minutes_change_nothing_but_the_steps(
    tmp_path: Path,
    tiny: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The measuring leaves weights, order and generators alone; a resume takes the same steps."""
    own = [
        *without_length(tiny),
        "encoder.args.drop_path_rate=0.1",
        "run.eval_every=0",
        "optim.ema=0.5",
    ]
    run, other = tmp_path / "minutes", tmp_path / "steps"
    monkeypatch.setattr(rehearsal, "_SAFETY", 0.02)  # else the test takes them all
    with caplog.at_level(logging.INFO):
        pretrain.run.main([*own, "run.minutes=0.5", f"run.dir={run}"])
    found = re.search(r"run.minutes=0.5: .* s a step.*, so optim.steps=([\d,]+) \(", caplog.text)
    assert found is not None
    steps = read_yaml(str(run / "config.yaml"))["optim"]["steps"]
    assert steps == int(found[1].replace(",", "")) == len(losses(run))
    assert not (run / ".rehearsal").exists()
    pretrain.run.main([*own, f"optim.steps={steps}", f"run.dir={other}"])
    assert losses(run) == losses(other)
    before = (run / "metrics.jsonl").read_bytes()
    pretrain.run.main([*own, "run.minutes=0.5", f"run.dir={run}"])
    assert (run / "metrics.jsonl").read_bytes() == before
    with pytest.raises(UserError, match=r"configuration: run\.minutes was 0\.5, now 5\.0"):
        pretrain.run.main([*own, "run.minutes=5", f"run.dir={run}"])


def test_minutes_that_are_too_few(tmp_path: Path, tiny: list[str]) -> None:
    own = [*without_length(tiny), f"run.dir={tmp_path}/run"]
    with pytest.raises(UserError, match=r"run\.minutes=0\.0001 is too short for a step: \d+ s"):
        pretrain.run.main([*own, "run.minutes=1e-4"])
    pretrain.run.main([*own, "optim.steps=1"])  # nothing stands in its way
