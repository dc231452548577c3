"""Trackers: each step once, also after a kill; nothing of the run changes by them."""

import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingTypeStubs]
    EventAccumulator,
)
from tensorboard.plugins.hparams import plugin_data_pb2 as _hparams
from wandb.proto import wandb_internal_pb2 as _untyped

import pretrain.records.trackers
import pretrain.run
from data.batch import Batch
from data.settings import RunStopped, UserError
from pretrain.config import PretrainConfig
from pretrain.configuration.load import load
from pretrain.records.logs import read_records
from pretrain.records.trackers import PROJECT, Trackers
from pretrain.training.trainer import Trainer
from tests.faults.test_ranks import figures, stop_after, terminate, weights_hash
from tests.launching import Ranks, run_ranks

HParamsPluginData: Any = _hparams.HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]
Record: Any = _untyped.Record  # pyright: ignore[reportAttributeAccessIssue]
OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
BOTH = "run.trackers=[tensorboard,wandb]"
pytestmark = pytest.mark.timeout(600)

PICTURES = ("filters", "positions", "attention_distance", "rollout", "patches", "reconstructions")
Points = dict[str, list[tuple[int, float]]]


# ---------------------------------------------------------------- reading back


def expected(run: Path) -> Points:
    """Read what `metrics.jsonl` holds: (step, value) of each name, what is null left out."""
    points: Points = {}
    for record in read_records(run / "metrics.jsonl"):
        for name, value in record.items():
            if name != "step" and value is not None:
                points.setdefault(name, []).append((record["step"], value))
    return points


def tensorboard(run: Path) -> Points:
    events: Any = EventAccumulator(str(run / PROJECT), {"scalars": 0}).Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def hyper_parameters(run: Path) -> dict[str, Any]:
    """Read what TensorBoard shows as the hyper-parameters of a run."""
    events: Any = EventAccumulator(str(run / PROJECT)).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    told = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in told.items()}


def wandb(run: Path) -> Points:
    """Read the offline files in the order in which `wandb sync` sends them."""
    points: Points = {}
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: item for item in record.history.item}
                step = int(items["_step"].value_json)
                for name, item in items.items():
                    if not name.startswith(("_", "learnt/")):
                        points.setdefault(name, []).append((step, float(item.value_json)))
    return points


def wandb_steps(run: Path) -> list[int]:
    return [step for step, _ in wandb(run).get("train/loss", [])]


Pictures = dict[str, list[tuple[int, tuple[int, int], bytes]]]  # step, (width, height), PNG


def tensorboard_images(run: Path) -> Pictures:
    events: Any = EventAccumulator(str(run / PROJECT), {"images": 0}).Reload()
    return {
        name: [
            (event.step, (event.width, event.height), event.encoded_image_string)
            for event in events.Images(name)
        ]
        for name in events.Tags()["images"]
    }


def wandb_images(run: Path) -> Pictures:
    """Read the pictures that the offline files name, from beside them."""
    found: Pictures = {}
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for record in wandb_records(path):
            if record.WhichOneof("record_type") != "history":
                continue
            values: dict[str, Any] = {}
            for item in record.history.item:
                name, *more = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                values[name] = values.get(name, {}) | {more[0]: value} if more else value
            for name, about in values.items():
                if name.startswith("learnt/"):
                    [file] = about["filenames"]
                    content = (path.parent / "files" / file).read_bytes()
                    size = about["width"], about["height"]
                    found.setdefault(name, []).append((values["_step"], size, content))
    return found


def wandb_records(path: Path) -> Iterator[Any]:
    """Read a file of wandb's: LevelDB's log format behind 7 bytes."""
    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def assert_same(found: Points, run: Path, tolerance: float) -> None:
    wanted = expected(run)
    assert {name: [step for step, _ in points] for name, points in found.items()} == {
        name: [step for step, _ in points] for name, points in wanted.items()
    }
    for name, points in wanted.items():
        assert dict(found[name]) == pytest.approx(dict(points), rel=tolerance), name


# ---------------------------------------------------------------- each step once


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.faults)])
def test_a_killed_run_that_goes_on_gives_each_step_once(
    tmp_path: Path, tiny: list[str], world: int
) -> None:
    run = tmp_path / "run"
    arguments = [*tiny, BOTH, "optim.steps=20", "run.checkpoint_every=7", f"run.dir={run}"]
    arguments += ["run.eval_every=4"]
    options: dict[str, Any] = {"environment": OFFLINE, "prepare": _pause}
    for step in (5, 12):  # before the first checkpoint, and past it
        with Ranks(arguments, world, tmp_path / "logs", **options) as ranks:
            stop_after(ranks, run, step, Ranks.kill)
            assert "is told no more" not in ranks.output
        assert len(read_records(run / "metrics.jsonl")) >= step - 1
        time.sleep(1.1)  # tensorboard's files sort by the second
    output = run_ranks(arguments, world, tmp_path / "logs", environment=OFFLINE)
    assert "resuming" in output
    assert "is told no more" not in output
    assert len(read_records(run / "metrics.jsonl")) == 20
    assert_same(tensorboard(run), run, 1e-6)  # it keeps single precision
    assert_same(wandb(run), run, 1e-12)
    for found in (tensorboard_images(run), wandb_images(run)):
        assert found.keys() == {f"learnt/{name}" for name in PICTURES}
        for pictures in found.values():
            assert [step for step, _, _ in pictures] == [4, 8, 12, 16, 20]
    assert len(list(run.glob("wandb/offline-run-*"))) == 3
    assert len({path.name for path in run.glob("wandb/offline-run-*/*.wandb")}) == 1  # one id
    assert {path.parent for path in run.rglob("events.out.*")} == {run / PROJECT}  # one run
    assert hyper_parameters(run)["optim.lr"] == 2e-3


def _pause() -> None:
    """Let wandb's process write what it was told, which it does each tenth of a second."""
    plain = Trainer._write_trace

    def write_trace(self: Trainer, done: int, batches: list[Batch]) -> None:
        is_main, deadline = self.accelerator.is_main_process, time.monotonic() + 60
        while done == 12 and is_main and 7 not in wandb_steps(self.folder):
            assert time.monotonic() < deadline, "wandb has not written the first seven steps"
            time.sleep(0.1)
        plain(self, done, batches)

    Trainer._write_trace = write_trace


def test_trackers_change_nothing_of_a_run(tmp_path: Path, tiny: list[str]) -> None:
    """And of two ranks, one tells."""
    arguments = [*tiny, "optim.steps=8", "run.checkpoint_every=8", "run.eval_every=3"]
    for name, more in {"with": [BOTH], "without": []}.items():
        own = [*arguments, *more, f"run.dir={tmp_path}/{name}"]
        run_ranks(own, 2, tmp_path / "logs", environment=OFFLINE)
    assert len(list((tmp_path / "with").glob("wandb/offline-run-*"))) == 1
    assert_same(tensorboard(tmp_path / "with"), tmp_path / "with", 1e-6)
    assert len(tensorboard_images(tmp_path / "with")["learnt/rollout"]) == 3
    assert figures(tmp_path / "with") == figures(tmp_path / "without")
    assert weights_hash(tmp_path / "with", 8) == weights_hash(tmp_path / "without", 8)
    assert not (tmp_path / "without" / PROJECT).exists()


def test_a_run_that_is_asked_to_leave_tells_all(tmp_path: Path, tiny: list[str]) -> None:
    """And a run may begin without trackers."""
    run = tmp_path / "run"
    arguments = [*tiny, "optim.steps=4000", "run.eval_every=0", f"run.dir={run}"]
    for step, more in {3: [], 30: [BOTH]}.items():
        with Ranks([*arguments, *more], 1, tmp_path / "logs", environment=OFFLINE) as ranks:
            stop_after(ranks, run, step, terminate)
    wanted = expected(run)
    for found in (tensorboard(run), wandb(run)):
        assert found.keys() == wanted.keys()
        steps = [step for step, _ in found["train/loss"]]
        assert steps == [step for step, _ in wanted["train/loss"]][-len(steps) :]
        assert 3 < steps[0] <= 30 <= steps[-1]


def test_the_configuration_is_told(tmp_path: Path, tiny: list[str]) -> None:
    arguments = [*tiny, BOTH, "optim.steps=4", f"run.dir={tmp_path}/run"]
    run_ranks(arguments, 1, tmp_path / "logs", environment=OFFLINE)
    found = hyper_parameters(tmp_path / "run")
    assert found["optim.lr"] == 2e-3
    assert found["data.image_size"] == "[16, 16]"
    assert (found["encoder.init"], found["data.trace"]) == ("none", True)
    (path,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    told = {
        item.key or item.nested_key[0]: item.value_json
        for record in wandb_records(path)
        if record.WhichOneof("record_type") == "config"
        for item in record.config.update
    }
    assert told["optim.lr"] == "0.002"


# ---------------------------------------------------------------- what cannot forget, what fails


class Listener(GeneralTracker):
    """A tracker that cannot remove a record."""

    name = "listener"
    requires_logging_directory = False
    heard: list[Any]
    fails_from = 99

    def __init__(self, run_name: str, **_: Any) -> None:
        super().__init__()

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        type(self).heard = []

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.heard.append(values["optim.lr"])

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        assert step is not None
        if step >= self.fails_from:
            raise OSError("no space left")
        self.heard.append((step, values))

    def finish(self) -> None:
        self.heard.append("end")


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> type[Listener]:
    monkeypatch.setattr(pretrain.records.trackers, "get_available_trackers", lambda: ["listener"])
    monkeypatch.setitem(pretrain.records.trackers.LOGGER_TYPE_TO_CLASS, "listener", Listener)
    monkeypatch.setattr(Listener, "fails_from", 99)
    return Listener


def test_what_cannot_forget_is_told_at_checkpoints(
    tmp_path: Path, tiny: list[str], listener: type[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    plain = Trackers.commit

    def commit(self: Trackers) -> None:
        heard.append(len(listener.heard))
        plain(self)

    monkeypatch.setattr(Trackers, "commit", commit)
    arguments = [*tiny, "run.trackers=[listener]", "optim.steps=10", f"run.dir={tmp_path}/run"]
    pretrain.run.main(arguments)
    assert heard == [1, 8]  # the configuration alone; then what the checkpoint at step 7 holds
    assert listener.heard[0] == 2e-3
    assert listener.heard[-1] == "end"
    records = read_records(tmp_path / "run/metrics.jsonl")
    assert listener.heard[1:-1] == [
        (record.pop("step"), {name: v for name, v in record.items() if v is not None})
        for record in records
    ]


def test_a_tracker_that_fails_stops_no_run(
    tmp_path: Path,
    tiny: list[str],
    listener: type[Listener],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(listener, "fails_from", 9)
    pretrain.run.main(
        [*tiny, "run.trackers=[listener]", "optim.steps=10", f"run.dir={tmp_path}/run"]
    )
    assert len(read_records(tmp_path / "run/metrics.jsonl")) == 10
    assert [step for step, _ in listener.heard[1:]] == list(range(1, 9))
    assert "run.trackers: listener failed (no space left)" in caplog.text


def test_what_is_not_finite_is_left_out(
    tmp_path: Path, tiny: list[str], listener: type[Listener]
) -> None:
    arguments = [*tiny, "run.trackers=[listener]", "optim.lr=1e30", "optim.grad_clip=0"]
    more = ["run.max_bad_steps=0", "optim.steps=8", "run.eval_every=0"]
    with pytest.raises(RunStopped, match="the last step's result is no finite number"):
        pretrain.run.main([*arguments, *more, f"run.dir={tmp_path}/run"])
    records = read_records(tmp_path / "run/metrics.jsonl")
    assert any(record["train/loss"] is None for record in records)
    for record, (step, values) in zip(records[:7], listener.heard[1:-1], strict=True):
        assert step == record["step"]
        assert ("train/loss" in values) == (record["train/loss"] is not None)


# ---------------------------------------------------------------- mistakes


def test_a_name_that_accelerate_does_not_know(tiny: list[str]) -> None:
    with pytest.raises(
        UserError, match=r"run.trackers=tensorbord is no tracker .* tensorboard, tr"
    ):
        load(PretrainConfig, [*tiny, "run.trackers=[tensorbord]"])


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("wandb", r"pip install -e '.\[trackers\]' here"), ("mlflow", "pip install mlflow")],
)
def test_a_package_that_is_missing(
    tmp_path: Path, tiny: list[str], name: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain.records.trackers, "get_available_trackers", list[str])
    with pytest.raises(UserError, match=f"run.trackers={name}: its package .*; {remedy}"):
        pretrain.run.main([*tiny, f"run.trackers=[{name}]", f"run.dir={tmp_path}/run"])
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_be_started(tmp_path: Path, tiny: list[str]) -> None:
    """On all ranks, in one line: here wandb is online and has no key."""
    missing = {"WANDB_MODE": "online", "WANDB_API_KEY": "", "HOME": str(tmp_path)}
    environment = {
        **missing,
        "NETRC": str(tmp_path / "none"),
        "WANDB_BASE_URL": "http://127.0.0.1:9",
    }
    arguments = [*tiny, "run.trackers=[wandb]", f"run.dir={tmp_path}/run"]
    with Ranks(arguments, 2, tmp_path / "logs", environment=environment) as ranks:
        assert ranks.wait() == [2, 2], ranks.output
        output = ranks.output
    assert output.count("error: run.trackers=wandb cannot be started: ") == 1
    assert "Traceback" not in output
    assert os.environ.get("WANDB_MODE") is None
