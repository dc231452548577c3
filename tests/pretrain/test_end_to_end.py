"""Whole runs in real processes: exactly once, on any number of ranks, resumed to the bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import finetune.fewshot
import finetune.run
import pretrain.run
from data.index.open import open_manifest
from data.order import Order
from pretrain.encoder import load_encoder
from pretrain.records.logs import read_records
from tests.launching import run_forked, run_ranks

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
STEPS_PER_EPOCH = 5  # 36 images in batches of 8
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "OMP_"))}

PYTHON = [sys.executable]
ACCELERATE = [str(BIN / "accelerate"), "launch"]
TORCHRUN = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2"]

pytestmark = pytest.mark.timeout(300)


def start(launcher: list[str], script: str, arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*launcher, str(ROOT / script), *arguments],
        cwd="/",  # from any folder
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def launch(launcher: list[str], script: str, arguments: list[str]) -> str:
    """Run an entry point to its end, which must be good; return what it said."""
    process = start(launcher, script, arguments)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "Warning" not in output
    return output


def kill_past(step: int, script: str, arguments: list[str], folder: Path) -> None:
    """Start an entry point and kill all of it when it has logged `step`."""
    process = start(PYTHON, script, arguments)
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or all(record["step"] < step for record in read_records(metrics)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def cut_to(step: int, run: Path, copy: Path) -> list[str]:
    """Copy a finished run as if it had been killed after it committed `step`; return `run.dir`."""
    shutil.copytree(run, copy, symlinks=True)
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    return [f"run.dir={copy}"]


def records(run: Path) -> list[dict[str, Any]]:
    """Read a run's metrics but for the speeds."""
    return [
        {name: value for name, value in record.items() if not name.startswith("speed/")}
        for record in read_records(run / "metrics.jsonl")
    ]


def batches(run: Path) -> list[list[str]]:
    """Read the keys of each global batch: rank after rank."""
    ranks = [read_records(path) for path in sorted((run / "trace").iterdir())]
    assert [[line["step"] for line in rank] for rank in ranks] == [[*range(1, 41)]] * len(ranks)
    return [[key for line in lines for key in line["keys"]] for lines in zip(*ranks, strict=True)]


def contents(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def assert_close(found: Path, expected: Path, tolerance: float) -> None:
    """Compare the figures of two runs step by step."""
    for one, other in zip(records(found), records(expected), strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=1e-9)


def assert_equal(found: Path, expected: Path) -> None:
    """Compare two runs to the bit: figures, trace, ledger, weights, optimizer."""
    assert records(found) == records(expected)
    for name in ("trace", "encoder", "checkpoints/step-00000040"):
        assert contents(found / name) == contents(expected / name), name
    ledger = "bad_samples.jsonl"
    assert (found / ledger).read_bytes() == (expected / ledger).read_bytes()


# ---------------------------------------------------------------- the runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one(folder: Path, tiny: list[str]) -> Path:
    """Run on one process, without a stop."""
    output = launch(ACCELERATE, "pretrain/run.py", [*tiny, f"run.dir={folder}/one"])
    assert f"finished: 40 steps; the encoder is in {folder}/one/encoder" in output
    return folder / "one"


@pytest.fixture(scope="module")
def two(folder: Path, tiny: list[str]) -> Path:
    """Run on two processes, one image at a time: half of the micro-batches of some are padding."""
    more = ["run.micro_batch_size=1", "data.workers=1", f"run.dir={folder}/two"]
    output = launch(TORCHRUN, "pretrain/run.py", [*tiny, *more])
    assert output.count("finished: 40 steps") == 1
    return folder / "two"


@pytest.fixture(scope="module")
def resumed(folder: Path, tiny: list[str]) -> Path:
    """Kill a run between two checkpoints and start it again with other workers."""
    run = folder / "resumed"
    arguments = [*tiny, f"run.dir={run}"]
    kill_past(9, "pretrain/run.py", [*arguments, "data.workers=1"], run)
    assert records(run)[-1]["step"] < 40
    command = [sys.executable, str(ROOT / "pretrain/run.py"), *arguments, "data.workers=2"]
    done = run_forked(command, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert f"resuming {run} from step " in done.stderr
    assert "Warning" not in done.stderr
    return run


@pytest.fixture(scope="module")
def accumulated(folder: Path, tiny: list[str]) -> Path:
    """Run on one process, one image at a time."""
    pretrain.run.main([*tiny, "run.micro_batch_size=1", f"run.dir={folder}/accumulated"])
    return folder / "accumulated"


# ---------------------------------------------------------------- exactly once


@pytest.mark.parametrize("name", ["one", "two", "resumed"])
def test_each_good_sample_is_in_one_batch_an_epoch(
    request: pytest.FixtureRequest, name: str
) -> None:
    shard_of = {number: 0 if number < 20 else 1 if number < 27 else 2 for number in range(36)}
    good = sorted(f"train-{shard_of[n]}.tar/{n:03d}" for n in range(36) if n != 22)
    steps = batches(request.getfixturevalue(name))
    epochs = [steps[i : i + STEPS_PER_EPOCH] for i in range(0, 40, STEPS_PER_EPOCH)]
    assert [sorted(chain(*epoch)) for epoch in epochs] == [good] * 8
    assert len({tuple(chain(*epoch)) for epoch in epochs}) == 8  # each in an order of its own
    assert all(len(epoch[-1]) <= 4 for epoch in epochs)  # 36 = 4 * 8 + 4: the last one is padded


def test_global_batches_do_not_depend_on_the_number_of_ranks(one: Path, two: Path) -> None:
    assert sorted(path.name for path in (two / "trace").iterdir()) == [
        "rank-0.jsonl",
        "rank-1.jsonl",
    ]
    assert batches(two) == batches(one)


def test_figures_do_not_depend_on_the_number_of_ranks(one: Path, two: Path) -> None:
    for found, expected in zip(records(two), records(one), strict=True):
        losses = {"train/loss", "val/loss"} & expected.keys()
        for name in losses:
            assert found[name] == pytest.approx(expected[name], rel=1e-6)
    assert_close(two, one, 1e-4)  # the gradient's norm is not a mean, and less exact


def test_a_bad_image_is_named_and_keeps_its_slot(one: Path, shards: Path) -> None:
    order = Order(open_manifest(f"{shards}/train-*.tar", "data.shards").starts, seed=0)
    ledger = read_records(one / "bad_samples.jsonl")
    assert [entry["epoch"] for entry in ledger] == list(range(8))
    steps = batches(one)
    for entry in ledger:
        assert (entry["shard"], entry["key"]) == ("train-1.tar", "022")
        assert entry["reason"] == "no image format that Pillow knows"
        epoch, position = entry["epoch"], entry["position"]
        assert [position] == [p for p in range(36) if order.samples(epoch, [p])[0] == 22]  # pyright: ignore[reportArgumentType]
        assert entry["step"] == epoch * STEPS_PER_EPOCH + position // 8 + 1
        assert len(steps[entry["step"] - 1]) == (3 if position >= 32 else 7)


@pytest.mark.parametrize("name", ["two", "resumed", "accumulated"])
def test_the_ledger_is_the_same_however_the_batch_is_cut(
    request: pytest.FixtureRequest, one: Path, name: str
) -> None:
    other: Path = request.getfixturevalue(name)
    assert read_records(other / "bad_samples.jsonl") == read_records(one / "bad_samples.jsonl")


def test_accumulation_changes_neither_keys_nor_figures(one: Path, accumulated: Path) -> None:
    """With one image at a time, the bad image and all padding are micro-batches of their own."""
    assert batches(accumulated) == batches(one)
    assert_close(accumulated, one, 1e-4)


def test_it_learns(one: Path) -> None:
    losses = [record["train/loss"] for record in records(one)]
    assert losses[0] == pytest.approx(6.24, abs=0.1)  # ln 512
    assert sum(losses[-5:]) / 5 < losses[0] - 0.3
    assert records(one)[-1]["val/loss"] < losses[0] - 0.3


# ---------------------------------------------------------------- resumed


def test_a_killed_run_continues_to_the_bit(one: Path, resumed: Path) -> None:
    assert_equal(resumed, one)


def test_two_ranks_continue_to_the_bit(tmp_path: Path, two: Path, tiny: list[str]) -> None:
    more = ["run.micro_batch_size=1", *cut_to(14, two, tmp_path / "run")]
    assert "from step 14 of 40" in run_ranks([*tiny, *more], 2, tmp_path / "logs")
    assert_equal(tmp_path / "run", two)


def test_a_run_may_continue_on_fewer_ranks(
    tmp_path: Path, one: Path, two: Path, tiny: list[str]
) -> None:
    pretrain.run.main([*tiny, *cut_to(14, two, tmp_path / "run")])
    assert_close(tmp_path / "run", one, 1e-4)
    ranks = {path.stem: read_records(path) for path in (tmp_path / "run" / "trace").iterdir()}
    assert [line["step"] for line in ranks["rank-1"]] == list(range(1, 15))
    assert [line["keys"] for line in ranks["rank-0"]][14:] == batches(one)[14:]


@pytest.mark.parametrize(
    "more",
    [
        ["optim.ema=0.9", "encoder.args.drop_path_rate=0.3"],
        ["optim.algorithm=sgd", "optim.layer_decay=0.7", "run.micro_batch_size=4"],
        ["run.precision=bf16", "encoder.args.proj_drop_rate=0.2"],
        [
            "target.kind=words",
            "target.num_words=16",
            "corruption.predicted_ratio=0.5",
            "encoder.sees_masked=false",
            "decoder.attention=cross",
        ],
        [
            "encoder.sees_masked=false",
            "encoder.position=learned_2d",
            "encoder.position_at=every_layer",
            "corruption.kind=block",
            "corruption.min_block=2",
            "target.kind=colour_grid",
            "target.grid=2",
        ],
        ["encoder.stem=resnet18", "run.micro_batch_size=4", "target.kind=pixels"],
    ],
)
def test_any_training_continues_to_the_bit(
    tmp_path: Path, tiny: list[str], more: list[str]
) -> None:
    arguments = [*tiny, *more]
    pretrain.run.main([*arguments, f"run.dir={tmp_path}/whole"])
    pretrain.run.main([*arguments, *cut_to(21, tmp_path / "whole", tmp_path / "cut")])
    assert_equal(tmp_path / "cut", tmp_path / "whole")


def test_a_damaged_checkpoint_costs_only_time(
    tmp_path: Path, one: Path, tiny: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = cut_to(14, one, tmp_path / "run")
    damaged = tmp_path / "run/checkpoints/step-00000014/model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    pretrain.run.main([*tiny, *arguments])
    assert "step-00000014 is damaged (model.safetensors has changed)" in caplog.text
    assert_equal(tmp_path / "run", one)


def test_a_finished_run_changes_nothing(tmp_path: Path, one: Path, tiny: list[str]) -> None:
    shutil.copytree(one, tmp_path / "run", symlinks=True)
    arguments = [*tiny, f"run.dir={tmp_path}/run"]
    pretrain.run.main(arguments)
    before = contents(tmp_path / "run")
    pretrain.run.main(arguments)
    assert contents(tmp_path / "run") == before
    assert_equal(tmp_path / "run", one)


def test_only_what_cannot_change_the_result_may_change(tmp_path: Path, tiny: list[str]) -> None:
    arguments = [*tiny, "optim.steps=4", f"run.dir={tmp_path}/run"]
    pretrain.run.main(arguments)
    free = ["data.workers=1", "run.log_every=2", "run.checkpoint_every=1", "data.trace=false"]
    pretrain.run.main([*arguments, *free])
    assert len(read_records(tmp_path / "run/metrics.jsonl")) == 4


# ---------------------------------------------------------------- the encoder


def test_timm_loads_the_encoder_by_itself(one: Path) -> None:
    encoder: Any = timm.create_model(f"local-dir:{one}/encoder", pretrained=True).eval()
    assert encoder.pretrained_cfg["input_size"] == (3, 16, 16)
    assert tuple(encoder.pretrained_cfg["mean"]) == (0.5, 0.5, 0.5)
    assert tuple(encoder.pretrained_cfg["std"]) == (0.5, 0.5, 0.5)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = encoder.forward_features(images)
        torch.testing.assert_close(encoder(images), tokens[:, 1:].mean(1))
        torch.testing.assert_close(encoder(images), load_encoder(one).eval()(images))


def test_the_encoder_is_not_the_untrained_one(one: Path, tiny: list[str], tmp_path: Path) -> None:
    pretrain.run.main([*tiny, "optim.lr=0", f"run.dir={tmp_path}/run"])
    trained, untrained = load_encoder(one), load_encoder(tmp_path / "run")
    for name, weight in untrained.named_parameters():
        if name != "cls_token":
            assert not torch.equal(weight, trained.get_parameter(name)), name


# ---------------------------------------------------------------- fine-tuning


@pytest.mark.parametrize("size", [16, 24])
def test_fine_tuning_writes_its_result(
    tmp_path: Path, one: Path, tiny_finetune: list[str], size: int
) -> None:
    more = [f"encoder.init={one}", f"data.image_size={size}", f"run.dir={tmp_path}/run"]
    finetune.run.main([*tiny_finetune, *more])
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["encoder.init"] == str(one)
    assert (result["steps"], result["epochs"]) == (20, 4.0)
    assert result["loss"] == records(tmp_path / "run")[-1]["val/loss"]
    assert 0 <= result["accuracy"] <= result["accuracy_top5"] == 1
    classifier: Any = timm.create_model(f"local-dir:{tmp_path}/run/encoder", pretrained=True)
    with torch.no_grad():
        assert classifier(torch.zeros(1, 3, size, size)).shape == (1, 3)


def test_fine_tuning_from_nothing_and_after_a_kill(
    tmp_path: Path, tiny_finetune: list[str]
) -> None:
    finetune.run.main([*tiny_finetune, f"run.dir={tmp_path}/whole"])
    # at lr 0 the head stays zero: the loss is ln 3, the class of number 0 is always answered
    kill_past(9, "finetune/run.py", [*tiny_finetune, f"run.dir={tmp_path}/cut"], tmp_path / "cut")
    assert not (tmp_path / "cut/result.json").exists()
    finetune.run.main([*tiny_finetune, "data.workers=1", f"run.dir={tmp_path}/cut"])
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert records(tmp_path / "whole")[0]["train/loss"] == pytest.approx(1.0986, abs=1e-4)
    for name in ("encoder/model.safetensors", "result.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("init", ["run", "none"])
def test_fewshot_prints_and_writes_its_table(
    tmp_path: Path,
    one: Path,
    shards: Path,
    encoder: list[str],
    capsys: pytest.CaptureFixture[str],
    init: str,
) -> None:
    arguments = [
        *encoder,
        f"data.train={shards}/train-*.tar",
        f"data.val={shards}/val-0.tar",
        "data.workers=0",
        f"encoder.init={one if init == 'run' else 'none'}",
        "fewshot.shots=[1,5]",
        "fewshot.num_seeds=2",
        f"fewshot.dir={tmp_path}/fewshot",
    ]
    finetune.fewshot.main(arguments)
    result = json.loads((tmp_path / "fewshot/result.json").read_text())
    assert (result["layer"], result["num_seeds"]) == (2, 2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(": 10 images")
    cells = [cell.strip() for cell in lines[-1].split("|")[1:-1]]
    assert cells[:2] == ["2", "average"]
    for shots, cell in zip((1, 5), cells[2:], strict=True):
        accuracy, deviation = result[f"accuracy/{shots}shot"], result[f"deviation/{shots}shot"]
        assert cell == f"{accuracy:.2%} ± {deviation:.2%}"
        assert 0 <= accuracy <= 1
